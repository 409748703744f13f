import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from receiptbert import WordpieceTokenizer
from receiptbert.token_store import TokenStore
from tests.small_stores import store_of


@pytest.fixture(autouse=True, scope="module")
def _few_texts_at_once() -> Iterator[None]:
    """Have the small stores of these tests be worked on in several parts, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("receiptbert.token_store.TEXTS_AT_ONCE", 7)
        yield


ragged = st.lists(st.lists(st.integers(0, 65_535), max_size=6), max_size=30)


def rows_of(store: TokenStore) -> list[list[int]]:
    return [store[i].tolist() for i in range(len(store))]


def test_from_texts_keeps_each_text(texts: list[str], tokenizer: WordpieceTokenizer) -> None:
    store = TokenStore.from_texts([*texts, ""], tokenizer, labels=range(len(texts) + 1))
    assert rows_of(store) == [tokenizer(text) for text in [*texts, ""]]
    assert store.labels is not None
    assert store.labels.tolist() == list(range(len(texts) + 1))
    assert len(TokenStore.from_texts([], tokenizer)) == 0


def test_a_vocabulary_of_more_than_16_bits(tmp_path: Path) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(66_000))]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    large = WordpieceTokenizer(tmp_path / "vocab.txt")
    store = TokenStore.from_texts(["w65999 w0"], large)
    assert rows_of(store) == [[66_004, 5]]
    store.save(tmp_path / "store.safetensors")
    assert rows_of(TokenStore.load(tmp_path / "store.safetensors")) == [[66_004, 5]]


# Words apart, joined, and what normalization removes, changes or divides at; a mark that joins what precedes.
HARD = [
    " ",
    "  ",
    "а",
    "бв",
    "Ё",
    "é",
    "\u0301",
    "\u0308",
    "茶",
    "[PAD]",
    "[MASK]",
    "##а",
    ",",
    "İ",
    "Σ",
    "½",
]
HARD += ["\n", "\r", "\t", "\u00a0", "\u0085", "\x1c", "\u200b", "\u2028", "\u3000", "\0"]
hard_texts = st.lists(st.lists(st.sampled_from(HARD), max_size=9).map("".join), max_size=5)


@pytest.fixture(scope="module")
def tokenizers(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[WordpieceTokenizer]:
    """Of every normalization, and those with which a space does not divide a text."""
    folder = tmp_path_factory.mktemp("tokenizers")
    corpus = [*texts, *HARD, "a b"]

    def train(**options: bool) -> WordpieceTokenizer:
        return WordpieceTokenizer.from_corpus(corpus, folder / "c.txt", folder, "t", 90, 2, **options)

    def changed(change: Callable[[Tokenizer], object]) -> WordpieceTokenizer:
        train().save_pretrained(folder)
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        change(backend)
        backend.save(str(folder / "tokenizer.json"))
        return WordpieceTokenizer.from_pretrained(folder)

    return [
        train(),
        train(lowercase=False),
        train(strip_accents=False),
        train(clean_text=False),
        changed(lambda backend: backend.add_tokens(["а бв"])),
        changed(lambda backend: backend.add_tokens(["\n"])),
        changed(lambda backend: backend.add_tokens(["а\u00a0бв"])),
        changed(
            lambda backend: backend.add_tokens([AddedToken("бв", lstrip=True, rstrip=True, single_word=True)])
        ),
        changed(lambda backend: setattr(backend, "normalizer", normalizers.Replace(Regex(" +"), ""))),
        changed(lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.Split(",", "removed"))),
    ]


@given(hard_texts)
@example(["а бв", "бв а", "а, бв", "а  бв"])
def test_words_are_tokenized_as_in_their_text(
    tokenizers: list[WordpieceTokenizer], hard_texts: list[str]
) -> None:
    for tokenizer in tokenizers:
        store = TokenStore.from_texts(hard_texts, tokenizer)
        assert rows_of(store) == [tokenizer(text) for text in hard_texts]


def test_spaces_are_no_words(tokenizer: WordpieceTokenizer) -> None:
    assert tokenizer.words("  а   бв ") == ["а", "бв"]
    assert tokenizer.words(" " * 9) == []


@given(ragged, st.data())
def test_take_picks_texts_and_labels_together(rows: list[list[int]], data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=40)) if rows else []
    taken = store_of(rows, list(range(len(rows)))).take(np.array(index, dtype=np.int64))
    assert rows_of(taken) == [rows[i] for i in index]
    assert taken.labels is not None
    assert taken.labels.tolist() == index


def test_to_take_all_copies_nothing() -> None:
    store = store_of([[1, 2], [3]], [0, 1])
    assert store.take(store.lengths > 0) is store


@given(ragged)
def test_sorting_keeps_every_text_with_its_own_label(rows: list[list[int]]) -> None:
    ordered = store_of(rows, list(range(len(rows)))).sorted_by_length()
    assert ordered.labels is not None
    assert rows_of(ordered) == sorted(rows, key=len)
    assert [rows[i] for i in ordered.labels] == rows_of(ordered)


@given(ragged)
def test_a_saved_store_loads_equal_and_equal_stores_are_equal_bytes(rows: list[list[int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        a, b = Path(folder) / "a", Path(folder) / "b"
        store_of(rows, list(range(len(rows)))).save(a)
        store_of(rows, list(range(len(rows)))).save(b)
        loaded = TokenStore.load(a)
        assert a.read_bytes() == b.read_bytes()
    assert rows_of(loaded) == rows
    assert loaded.labels is not None
    assert loaded.labels.tolist() == list(range(len(rows)))


def test_a_store_without_labels_has_none(tmp_path: Path) -> None:
    store_of([[1], [2, 3]]).save(tmp_path / "s")
    assert TokenStore.load(tmp_path / "s").labels is None


@given(ragged)
def test_hashes_are_equal_for_equal_texts_alone(rows: list[list[int]]) -> None:
    hashes = store_of([*rows, *rows]).hashes().tolist()
    assert hashes[: len(rows)] == hashes[len(rows) :]
    assert len(set(hashes)) == len(set(map(tuple, rows)))


def test_held_out_texts_are_as_many_as_asked_and_never_elsewhere() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 30, size=rng.integers(1, 4)).tolist() for _ in range(2000)] + [[7, 7]] * 1000
    store = store_of(rows)
    mask = store.held_out(100)
    held_out = {tuple(row) for row in rows_of(store.take(mask))}
    trained = {tuple(row) for row in rows_of(store.take(~mask))}
    assert mask.sum() == 100
    assert not held_out & trained
    reversed_mask = store.take(np.arange(3000)[::-1]).held_out(100)
    assert reversed_mask.tolist() == mask[::-1].tolist()


def test_a_small_corpus_holds_out_a_tenth_at_the_most() -> None:
    assert store_of([[i] for i in range(50)]).held_out(1000).sum() == 5
    assert store_of([[i] for i in range(9)]).held_out(1000).sum() == 0


def test_texts_are_indexed_as_in_a_list() -> None:
    store = store_of([[1], [2, 3]])
    assert store[-1].tolist() == [2, 3]
    with pytest.raises(IndexError):
        store[2]
