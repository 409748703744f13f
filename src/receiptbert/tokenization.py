"""WordPiece: the tokenizer of BERT, trained on our own texts to the same bytes every time."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from tokenizers import BertWordPieceTokenizer, Tokenizer

from receiptbert.errors import UserError
from receiptbert.files import naming
from receiptbert.progress import in_terminal

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MARKS = ["pad", "unk", "cls", "sep", "mask"]  # what the configuration calls them
CONTINUATION = "##"
CONFIG = "tokenizer_config.json"
# What of it concerns a BERT tokenizer, and what an older one means by leaving it out.
DEFAULTS: dict[str, Any] = {
    "tokenizer_class": "BertTokenizer",
    "do_lower_case": True,
    "strip_accents": None,  # as do_lower_case
    "tokenize_chinese_chars": True,
    **{f"{name}_token": token for name, token in zip(MARKS, SPECIAL_TOKENS, strict=True)},
}
# As in the reference trainer: a thousand characters are kept, what is rarer becomes [UNK].
MAX_ALPHABET = 1000
# Texts handed to the Rust side at once: enough to keep every core busy, little enough to bound memory.
CHUNK = 10_000


class WordpieceTokenizer:
    """The assignment's tokenizer: WordPiece with BERT's normalization, behind a small interface.

    Args:
        vocab_path: a ``vocab.txt``, one token a line, the line number being the id.
        strip_accents: remove accents (й becomes и, as in BERT).
        clean_text: remove control characters, make every white space a space.
        lowercase: put the text into lower case.
    """

    def __init__(
        self,
        vocab_path: str | Path,
        strip_accents: bool = True,
        clean_text: bool = True,
        lowercase: bool = True,
    ) -> None:
        self._config = DEFAULTS | {"do_lower_case": lowercase, "strip_accents": strip_accents}
        self._backend = _untrained(Path(vocab_path), self._config, clean_text)

    @classmethod
    def from_corpus(
        cls,
        corpus: Iterable[str],
        corpus_save_path: str | Path,
        tokenizer_save_path: str | Path,
        tokenizer_name: str,
        vocab_size: int = 30000,
        min_frequency: int = 2,
        strip_accents: bool = True,
        clean_text: bool = True,
        lowercase: bool = True,
    ) -> "WordpieceTokenizer":
        """Learn a vocabulary from ``corpus``.

        Args:
            corpus: raw texts, read once.
            corpus_save_path: where to put the texts, one a line, while training; removed afterwards.
            tokenizer_save_path: folder for ``<tokenizer_name>-vocab.txt``.
            vocab_size: entries wanted, special tokens included. A small corpus gives fewer.
            min_frequency: a pair of pieces seen less often is not joined.
        """
        corpus_path = Path(corpus_save_path)
        trainer = BertWordPieceTokenizer(
            clean_text=clean_text, strip_accents=strip_accents, lowercase=lowercase
        )
        try:
            words = _write_lines(corpus, corpus_path)
            tokens = _train(trainer, corpus_path, words, vocab_size, min_frequency)
        finally:
            corpus_path.unlink(missing_ok=True)
        folder = Path(tokenizer_save_path)
        folder.mkdir(parents=True, exist_ok=True)
        vocab_path = folder / f"{tokenizer_name}-vocab.txt"
        vocab_path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
        return cls(vocab_path, strip_accents, clean_text, lowercase)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "WordpieceTokenizer":
        """Load from a folder that holds Hugging Face tokenizer files, ours or any other BERT's."""
        saved, vocabulary = Path(folder) / "tokenizer.json", Path(folder) / "vocab.txt"
        tokenizer = cls.__new__(cls)
        tokenizer._config = _read_config(Path(folder))
        if saved.exists():
            tokenizer._backend = _read_tokenizer(saved)
        elif vocabulary.exists():
            tokenizer._backend = _untrained(vocabulary, tokenizer._config)
        else:
            raise UserError(
                f"{folder} holds no tokenizer.json and no vocab.txt; name a BERT checkpoint folder"
            )
        for name in MARKS:
            if tokenizer._special(name) is None:
                raise UserError(f"{folder}: the tokenizer has no {name} token; name a BERT checkpoint folder")
        return tokenizer

    def save_pretrained(self, folder: str | Path, max_seqlen: int | None = None) -> None:
        """Write ``vocab.txt`` and the files that ``AutoTokenizer`` loads.

        Args:
            max_seqlen: longest input of the model beside it, special tokens included; tools cut longer texts.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = self._config if max_seqlen is None else self._config | {"model_max_length": max_seqlen}
        (folder / CONFIG).write_text(
            json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )
        (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in self.tokens), encoding="utf-8")
        self._backend.save(str(folder / "tokenizer.json"))

    def __call__(self, text: str) -> list[int]:
        """Token ids of one raw text, without special tokens."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(
        self, texts: Iterable[str]
    ) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]]:
        """Token ids of many texts on all cores, a chunk at a time.

        Yields:
            the ids of a chunk one after another, shape (tokens,), and how many each text has, shape (texts,).
        """
        iterator = iter(texts)
        while chunk := list(islice(iterator, CHUNK)):
            encodings = self._backend.encode_batch_fast(chunk, add_special_tokens=False)
            lengths = np.fromiter(map(len, encodings), np.int64, len(chunk))
            ids = chain.from_iterable(encoding.ids for encoding in encodings)
            yield np.fromiter(ids, np.int32, lengths.sum()), lengths

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """The tokens behind ``ids``."""
        return [cast(str, self._backend.id_to_token(number)) for number in ids]

    @property
    def tokens(self) -> list[str]:
        """The vocabulary in the order of its ids."""
        vocabulary: dict[str, int] = self._backend.get_vocab()
        return sorted(vocabulary, key=vocabulary.__getitem__)

    @property
    def special_token_ids(self) -> list[int]:
        """Ids that are no text: padding, unknown, and the marks that the model's inputs carry."""
        marks = {self._special(name) for name in MARKS}
        added = self._backend.get_added_tokens_decoder().items()
        return sorted(marks | {number for number, token in added if token.special})

    @property
    def cls_token_id(self) -> int:
        """Id of [CLS]."""
        return self._special("cls")

    @property
    def pad_token_id(self) -> int:
        """Id of [PAD]."""
        return self._special("pad")

    @property
    def mask_token_id(self) -> int:
        """Id of [MASK]."""
        return self._special("mask")

    @property
    def sep_token_id(self) -> int:
        """Id of [SEP]."""
        return self._special("sep")

    @property
    def unk_token_id(self) -> int:
        """Id of [UNK]."""
        return self._special("unk")

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return self._backend.get_vocab_size()

    def _special(self, name: str) -> int:
        return cast(int, self._backend.token_to_id(self._config[f"{name}_token"]))


def _untrained(vocabulary: Path, config: dict[str, Any], clean_text: bool = True) -> Tokenizer:
    """The tokenizer of a ``vocab.txt``."""
    wordpiece = BertWordPieceTokenizer(
        str(vocabulary),
        clean_text=clean_text,
        handle_chinese_chars=config["tokenize_chinese_chars"],
        strip_accents=config["strip_accents"],
        lowercase=config["do_lower_case"],
        **{name: token for name, token in config.items() if name.endswith("_token")},
    )
    return Tokenizer.from_str(wordpiece.to_str())


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no class of its own for it
        raise UserError(f"{path} is damaged ({error}); take it again from where it came") from None
    # Settings of whoever saved it last; cutting and padding are the datasets' business.
    backend.no_padding()
    backend.no_truncation()
    return backend


def _read_config(folder: Path) -> dict[str, Any]:
    """``tokenizer_config.json`` as far as it concerns us; a folder without one has the defaults."""
    try:
        saved = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        saved = {}
    except ValueError:
        raise UserError(
            f"{folder / CONFIG} is not JSON; take the checkpoint again from where it came"
        ) from None
    config = {name: saved.get(name, default) for name, default in DEFAULTS.items()}
    # Older versions of transformers wrote a special token as a mapping.
    return {name: value["content"] if isinstance(value, dict) else value for name, value in config.items()}


def _write_lines(corpus: Iterable[str], path: Path) -> Counter[str]:
    """Write the texts one a line and count their words."""
    counts: Counter[str] = Counter()
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), path.open("w", encoding="utf-8") as file:
        for text in corpus:
            words = text.split()
            counts.update(words)
            file.write(" ".join(words) + "\n")
    return counts


def _train(
    trainer: BertWordPieceTokenizer,
    corpus_path: Path,
    words: Counter[str],
    vocab_size: int,
    min_frequency: int,
) -> list[str]:
    """The vocabulary in the order of its ids, the same on every run.

    Left alone, the trainer numbers the continuation characters (``##а``) in the order in which a hash map
    yields the words, and breaks ties between equally frequent pairs by those numbers, so that every run
    gives another vocabulary. Numbers given beforehand are kept: a first training, which may join nothing
    and needs each word but once, tells which such characters there are; the second gets them, sorted, as if
    they were special tokens.
    """
    alphabet = _alphabet(trainer, words)

    def train(path: Path, size: int, first: list[str]) -> dict[str, int]:
        trainer.train(
            str(path),
            vocab_size=size,
            min_frequency=min_frequency,
            limit_alphabet=len(alphabet),
            initial_alphabet=alphabet,
            special_tokens=first,
            # Without a terminal its bar is nothing but empty lines.
            show_progress=size > 0 and in_terminal(),
        )
        return cast(dict[str, int], trainer.get_vocab())

    words_path = corpus_path.with_suffix(".words")
    try:
        with naming(words_path):
            words_path.write_text("\n".join(words), encoding="utf-8")
        known = train(words_path, 0, SPECIAL_TOKENS)
    finally:
        words_path.unlink(missing_ok=True)
    continuations = sorted(token for token in known if token.startswith(CONTINUATION))
    vocabulary = train(corpus_path, vocab_size, SPECIAL_TOKENS + continuations)
    if len(vocabulary) > vocab_size:
        raise UserError(
            f"tokenizer.vocab_size = {vocab_size} is too small: the characters of the corpus alone "
            f"need {len(vocabulary)} entries"
        )
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _alphabet(trainer: BertWordPieceTokenizer, words: Counter[str]) -> list[str]:
    """The most frequent characters after normalization, ties broken by code point (not by a hash map)."""
    characters: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    counts: Counter[str] = Counter()
    for character, count in characters.items():
        for normalized in trainer.normalize(character):
            counts[normalized] += count
    by_frequency = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    return sorted(by_frequency[:MAX_ALPHABET])
