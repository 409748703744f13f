"""Whatever comes in, a refusal comes out or something that keeps its promises; never a crash.

The examples of this file add up to more than ``PROMISED``; the last test counts them.
"""

import csv
import io
import random
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from receiptbert import Collator, PretrainDataset, WordpieceTokenizer
from receiptbert.archive import extract_corpus
from receiptbert.corpus import (
    COLUMNS,
    LABEL,
    LABELLED,
    MAX_TEXT,
    SPLIT,
    SPLITS,
    TEXT,
    TRAIN,
    UNSUPERVISED,
    label_list,
    read_corpus,
)
from receiptbert.corpus_report import describe
from receiptbert.csv_faults import RUSSIAN_ENCODINGS, guess_encoding
from receiptbert.equal_texts import fold, held_out_too, number_texts
from receiptbert.errors import UserError
from receiptbert.token_store import TokenStore
from tests.conftest import SHAPE

PROMISED = 10_000
SCRATCH = tempfile.TemporaryDirectory()  # a folder for each example would take most of the time

Test = Callable[..., None]
counted: dict[str, int] = {}


def check_refusal(error: UserError) -> None:
    assert str(error).isprintable()
    assert len(str(error)) < 2000


def examples(count: int) -> Callable[[Test], Test]:
    """So many examples, which the last test adds up."""

    def decorate(test: Test) -> Test:
        counted[test.__name__] = count
        return settings(max_examples=count)(test)

    return decorate


# --- Reading a CSV ---

PIECES = [*COLUMNS, *SPLITS, "1", "2", "7.0", "чай", "молоко 3,2%", "NA", " ", ""]
MARKS = [",", ",", ",", "\n", "\n", "\r\n", '"', '""', ";", "\t", "\r", "\0", "\ufeff", "\u2028", "\x1b"]
near_csv = st.lists(st.sampled_from(PIECES + MARKS) | st.text(max_size=3), max_size=60).map("".join)
with_header = st.tuples(st.sampled_from(["", "text,label,split\n"]), near_csv).map("".join)
GOOD = [["чай", "1", "train"], ["сыр", "2", "train"], ["мыло", "1", "val"], ["сок", "2", "test"]]
GOOD.append(["квас", "", "unsupervised"])
ROWS = "text,label,split\n" + "".join(",".join(row) + "\n" for row in GOOD)
changed = st.tuples(near_csv, st.integers(0, len(ROWS))).map(lambda it: ROWS[: it[1]] + it[0] + ROWS[it[1] :])


def read(content: bytes) -> pd.DataFrame | None:
    """What ``read_corpus`` makes of ``content``; None if it refuses."""
    path = Path(SCRATCH.name) / "data.csv"
    path.write_bytes(content)
    try:
        return read_corpus(path)
    except UserError as error:
        check_refusal(error)
        return None


def check_corpus(corpus: pd.DataFrame) -> None:
    """What every corpus that is not refused keeps."""
    assert list(corpus.columns) == COLUMNS
    assert all(isinstance(value, str) for value in corpus.to_numpy().ravel())
    assert set(corpus[SPLIT]) == set(SPLITS)
    assert ((corpus[LABEL] == "") == (corpus[SPLIT] == UNSUPERVISED)).all()
    assert corpus.loc[corpus[SPLIT] == TRAIN, LABEL].nunique() > 1
    assert corpus[TEXT].str.len().max() <= MAX_TEXT
    labels = label_list(corpus)
    assert len(set(labels)) == len(labels)
    assert set(corpus.loc[corpus[SPLIT].isin(LABELLED), LABEL]) == set(labels)
    texts = number_texts(corpus[TEXT])
    assert sum(describe(corpus, texts)["rows"].values()) == len(corpus)
    left = corpus[~held_out_too(corpus, texts)]
    assert not held_out_too(left, number_texts(left[TEXT])).any()


@examples(1500)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(content: bytes) -> None:
    assert read(content) is None


@examples(1500)
@given(with_header)
def test_near_csvs_are_read_or_refused(content: str) -> None:
    if (corpus := read(content.encode())) is not None:
        check_corpus(corpus)


@examples(1000)
@given(changed, st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "cp1251", "utf-16", "latin-1"]))
def test_corpora_with_a_fault_are_read_or_refused(content: str, encoding: str) -> None:
    if (corpus := read(content.encode(encoding, errors="replace"))) is not None:
        check_corpus(corpus)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)


@examples(200)
@given(st.lists(st.tuples(texts, st.sampled_from(SPLITS)), max_size=8))
def test_a_well_written_csv_is_read_as_it_is(rows: list[tuple[str, str]]) -> None:
    table = [*GOOD, *([text, "" if split == UNSUPERVISED else "1", split] for text, split in rows)]
    buffer = io.StringIO()
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows([COLUMNS, *table])
    corpus = read(buffer.getvalue().encode())
    assert corpus is not None
    assert corpus.to_numpy().tolist() == table


@examples(1500)
@given(st.binary(min_size=1, max_size=60).filter(lambda content: any(byte > 127 for byte in content)))
def test_an_encoding_is_guessed_or_not(sample: bytes) -> None:
    guesses = {"utf-8 with a few damaged bytes", "latin-1 or windows-1252", *RUSSIAN_ENCODINGS.values(), None}
    assert guess_encoding(sample) in guesses


# --- Archives ---


@cache
def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in {"data.csv": ROWS, "categories.csv": "label,name\n1,Tea\n"}.items():
            # Of one time, so that every run changes the same bytes.
            opened.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


@examples(600)
@given(st.lists(st.tuples(st.integers(0, len(archive()) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_archives_with_other_bytes_are_read_or_refused(changes: list[tuple[int, int]]) -> None:
    content = bytearray(archive())
    for place, byte in changes:
        content[place] = byte
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.zip"
        path.write_bytes(content)
        try:
            extract_corpus(path, Path(folder) / "raw")
        except UserError as error:
            check_refusal(error)
        written = {str(found.relative_to(folder)) for found in Path(folder).rglob("*")}
        assert written <= {"a.zip", "raw", "raw/data.csv", "raw/categories.csv"}


# --- Token stores; test_token_store.py has the round trip ---


@examples(400)
@given(st.text(max_size=20))
def test_texts_are_folded_to_the_words_of_the_tokenizer(text: str) -> None:
    words = BertPreTokenizer().pre_tokenize_str(BertNormalizer().normalize_str(text))
    assert fold(pd.Series([text])).tolist() == [" ".join(word for word, _ in words)]


def store_of(rows: list[list[int]], tokenizer: str = "v") -> TokenStore:
    return TokenStore(
        ids=np.array([i for row in rows for i in row], dtype=np.uint16),
        offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        labels=np.arange(len(rows)),
        tokenizer_fingerprint=tokenizer,
    )


@cache
def saved_store() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        store_of([[1, 2], [], [3]]).save(Path(folder) / "s")
        return (Path(folder) / "s").read_bytes()


def load(content: bytes) -> TokenStore | None:
    path = Path(SCRATCH.name) / "s"
    path.write_bytes(content)
    try:
        return TokenStore.load(path)
    except UserError as error:
        check_refusal(error)
        return None


@examples(1100)
@given(st.binary(max_size=100))
def test_arbitrary_bytes_are_no_store(content: bytes) -> None:
    assert load(content) is None


@examples(800)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4))
def test_stores_with_other_bytes_are_read_or_refused(changes: list[tuple[int, int]]) -> None:
    content = bytearray(saved_store())
    for place, byte in changes:
        content[place % len(content)] = byte
    if (store := load(bytes(content))) is not None:
        rows = [store[i].tolist() for i in range(len(store))]
        assert sum(map(len, rows)) == len(store.ids)
        assert store.labels is None or len(store.labels) == len(rows)


# --- Segments and masks ---


@cache
def small_tokenizer() -> WordpieceTokenizer:
    """Made here: Hypothesis and fixtures of a test do not go together."""
    words = ["абв", "где", "жаба", "вада", "деже", "бега"]
    with tempfile.TemporaryDirectory() as folder:
        return WordpieceTokenizer.from_corpus(
            words * 5, Path(folder) / "corpus.txt", folder, "t", vocab_size=40
        )


@cache
def ordinary_ids() -> list[int]:
    tokenizer = small_tokenizer()
    return [i for i in range(tokenizer.vocab_size) if i not in tokenizer.special_token_ids]


@st.composite
def batches(draw: st.DrawFn) -> dict[str, Any]:
    """A dataset of a few texts, among them unknown tokens, and which of them to look at."""
    seed = draw(st.integers(0, 1 << 20))
    lengths = draw(st.lists(st.integers(1, 20), min_size=1, max_size=6))
    rng = random.Random(seed)
    ids = [*ordinary_ids(), small_tokenizer().unk_token_id]
    rows = [rng.choices(ids, k=length) for length in lengths]
    maxlen = draw(st.integers(1, SHAPE["max_seqlen"]))
    permute_prob = draw(st.sampled_from([0.0, 0.5, 1.0]))
    index = draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5))
    torch.manual_seed(seed)
    dataset = PretrainDataset(store_of(rows), small_tokenizer(), 1, maxlen, permute_prob)
    return {"dataset": dataset, "rows": rows, "maxlen": maxlen, "index": index, "permute_prob": permute_prob}


@examples(700)
@given(batches())
def test_segments_are_the_two_halves_of_a_window_of_the_text(batch: dict[str, Any]) -> None:
    tokenizer = small_tokenizer()
    pairs = batch["dataset"].__getitems__(batch["index"])
    for ids, types, permuted, number in zip(*(part.tolist() for part in pairs), batch["index"], strict=True):
        text = batch["rows"][number]
        shown = min(len(text), batch["maxlen"])
        assert ids[0] == tokenizer.cls_token_id
        assert ids[shown + 2 :] == [tokenizer.pad_token_id] * (len(ids) - shown - 2)
        sep = ids.index(tokenizer.sep_token_id)
        assert types == [0] * (sep + 1) + [1] * (shown + 1 - sep) + [0] * (len(ids) - shown - 2)
        first, second = ids[1:sep], ids[sep + 1 : shown + 2]
        assert abs(len(first) - len(second)) <= 1
        window = second + first if permuted else first + second
        assert any(text[i : i + shown] == window for i in range(len(text) - shown + 1))
        assert permuted in {0.0: [False], 0.5: [False, True], 1.0: [True]}[batch["permute_prob"]]
    assert len(pairs.input_ids[0]) == 2 + max(
        min(len(batch["rows"][i]), batch["maxlen"]) for i in batch["index"]
    )


@examples(700)
@given(
    batches(),
    st.sampled_from([0.01, 0.3, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.booleans(),
    st.booleans(),
)
def test_masks_hide_targets_alone(
    batch: dict[str, Any], mask_prob: float, random_prob: float, whole_words: bool, letters_only: bool
) -> None:
    tokenizer = small_tokenizer()
    pairs = batch["dataset"].__getitems__(batch["index"])
    collator = Collator(
        tokenizer,
        mask_prob=mask_prob,
        random_prob=random_prob,
        keep_unchanged_prob=0.0,
        whole_words=whole_words,
        letters_only=letters_only,
    )
    input_ids, types, labels, permuted = collator(pairs)
    target = labels != -100
    special = torch.isin(pairs.input_ids, torch.tensor(tokenizer.special_token_ids))
    assert not (target & special).any()
    assert torch.equal(labels[target], pairs.input_ids[target])
    assert torch.equal(input_ids[~target], pairs.input_ids[~target])
    replaced = set(input_ids[target].tolist())
    assert replaced <= {0.0: {tokenizer.mask_token_id}, 1.0: set(ordinary_ids())}.get(
        random_prob, {tokenizer.mask_token_id, *ordinary_ids()}
    )
    letters = torch.tensor([any(map(str.isalpha, token)) for token in tokenizer.tokens])[pairs.input_ids]
    may_be_target = ~special & letters if letters_only else ~special
    assert not (target & ~may_be_target).any()
    if mask_prob == 1.0:
        assert torch.equal(target, may_be_target)
    assert torch.equal(types, pairs.token_type_ids)
    assert torch.equal(permuted, pairs.permuted)


def test_the_examples_are_as_many_as_promised() -> None:
    assert sum(counted.values()) >= PROMISED
