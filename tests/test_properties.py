"""Whatever comes in, a refusal comes out or something that keeps its promises; never a crash."""

import csv
import io
import random
import re
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from receiptbert.archive import extract_corpus
from receiptbert.corpus import MAX_TEXT, label_list, read_corpus
from receiptbert.corpus_report import describe
from receiptbert.decoding import RUSSIAN_ENCODINGS, guess_encoding
from receiptbert.equal_texts import fold, held_out_too, number_texts
from receiptbert.errors import UserError
from receiptbert.splits import COLUMNS, LABEL, LABELLED, SPLIT, SPLITS, TEXT, TRAIN, UNSUPERVISED
from receiptbert.token_store import TokenStore
from tests.conftest import ROOT
from tests.small_stores import store_of

SCRATCH = tempfile.TemporaryDirectory()  # a folder for each example would take most of the time


def check_refusal(error: UserError) -> None:
    assert str(error).isprintable()
    assert len(str(error)) < 2000


# --- Reading a CSV ---

PIECES = [*COLUMNS, *SPLITS, "1", "2", "7.0", "чай", "молоко 3,2%", "NA", " ", ""]
MARKS = [",", ",", ",", "\n", "\n", "\r\n", '"', '""', ";", "\t", "\r", "\0", "\ufeff", "\u2028", "\x1b"]
pieces = st.sampled_from(PIECES + MARKS) | st.text(max_size=3)
near_csv = st.lists(pieces, max_size=60).map("".join)
with_header = st.tuples(st.sampled_from(["", "text,label,split\n"]), near_csv).map("".join)
GOOD = [["чай", "1", "train"], ["сыр", "2", "train"], ["мыло", "1", "val"], ["сок", "2", "test"]]
# Of two rows one may lose its split, and the rest is still a corpus.
GOOD += [["соль", "1", "val"], ["квас", "", "unsupervised"], ["лёд", "", "unsupervised"]]
ROWS = "text,label,split\n" + "".join(",".join(row) + "\n" for row in GOOD)
# A little in place of a text, in place of any field, or anywhere: many of these CSVs are still corpora.
FIELDS = [found.span() for found in re.finditer(r"[^,\n]+|(?<=,)(?=,)", ROWS)]
between = st.integers(0, len(ROWS)).map(lambda place: (place, place))
spans = st.sampled_from(FIELDS[3::3]) | st.sampled_from(FIELDS) | between
changed = st.tuples(st.lists(pieces, min_size=1, max_size=4).map("".join), spans).map(
    lambda it: ROWS[: it[1][0]] + it[0] + ROWS[it[1][1] :]
)


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


@settings(max_examples=150)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(content: bytes) -> None:
    assert read(content) is None


@settings(max_examples=300)
@given(with_header)
def test_near_csvs_are_read_or_refused(content: str) -> None:
    read(content.encode())


def test_changed_csvs_are_read_or_refused() -> None:
    tried = 0
    kept = set()

    @settings(max_examples=1000)
    @given(changed, st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "cp1251", "utf-16", "latin-1"]))
    def change(content: str, encoding: str) -> None:
        nonlocal tried
        tried += 1
        if (corpus := read(content.encode(encoding, errors="replace"))) is not None:
            check_corpus(corpus)
            kept.add(content)

    change()
    assert len(kept - {ROWS}) > 0.15 * tried  # else hardly any corpus was checked


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)


@settings(max_examples=200)
@given(st.lists(st.tuples(texts, st.sampled_from(SPLITS)), max_size=8))
def test_a_well_written_csv_is_read_as_it_is(rows: list[tuple[str, str]]) -> None:
    table = [*GOOD, *([text, "" if split == UNSUPERVISED else "1", split] for text, split in rows)]
    buffer = io.StringIO()
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows([COLUMNS, *table])
    corpus = read(buffer.getvalue().encode())
    assert corpus is not None
    assert corpus.to_numpy().tolist() == table


@settings(max_examples=750)
@given(st.binary(min_size=1, max_size=60).filter(lambda content: any(byte > 127 for byte in content)))
def test_an_encoding_is_guessed_or_not(sample: bytes) -> None:
    guesses = {"utf-8 with a few damaged bytes", "latin-1 or windows-1252", *RUSSIAN_ENCODINGS.values(), None}
    assert guess_encoding(sample) in guesses


@pytest.mark.parametrize("change", [str.lower, str.upper, str.title])
@pytest.mark.parametrize(("codec", "name"), RUSSIAN_ENCODINGS.items())
def test_the_encoding_of_a_hundred_words_is_guessed(
    codec: str, name: str, change: Callable[[str], str]
) -> None:
    """Of a few words several encodings may seem right."""
    words = sorted(set(re.findall("[А-ЯЁа-яё]{2,}", (ROOT / "data/lexicon.yaml").read_text("utf-8"))))
    random.Random(0).shuffle(words)
    for start in range(0, len(words), 100):
        text = change(" ".join(words[start : start + 100]))
        assert guess_encoding(text.encode(codec)) == name, text


# --- Archives ---


@cache
def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in {"data.csv": ROWS, "categories.csv": "label,name\n1,Tea\n"}.items():
            # Of one time, so that every run changes the same bytes.
            opened.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


@settings(max_examples=600)
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


@settings(max_examples=400)
@given(st.text(max_size=20))
def test_texts_are_folded_to_the_words_of_the_tokenizer(text: str) -> None:
    words = BertPreTokenizer().pre_tokenize_str(BertNormalizer().normalize_str(text))
    assert fold(pd.Series([text])).tolist() == [" ".join(word for word, _ in words)]


@cache
def saved_store() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        store_of([[1, 2], [], [3]], [0, 1, 2]).save(Path(folder) / "s")
        return (Path(folder) / "s").read_bytes()


def load(content: bytes) -> TokenStore | None:
    path = Path(SCRATCH.name) / "s"
    path.write_bytes(content)
    try:
        return TokenStore.load(path)
    except UserError as error:
        check_refusal(error)
        return None


@settings(max_examples=150)
@given(st.binary(max_size=100))
def test_arbitrary_bytes_are_no_store(content: bytes) -> None:
    assert load(content) is None


@settings(max_examples=800)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4))
def test_stores_with_other_bytes_are_read_or_refused(changes: list[tuple[int, int]]) -> None:
    content = bytearray(saved_store())
    for place, byte in changes:
        content[place % len(content)] = byte
    if (store := load(bytes(content))) is not None:
        rows = [store[i].tolist() for i in range(len(store))]
        assert sum(map(len, rows)) == len(store.ids)
        assert store.labels is None or len(store.labels) == len(rows)
