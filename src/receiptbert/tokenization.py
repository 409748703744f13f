"""WordPiece: the tokenizer of BERT, trained on our own texts with byte-identical results every time."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from types import NoneType
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from tokenizers import BertWordPieceTokenizer, Tokenizer
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from receiptbert.errors import TAKE_AGAIN, UserError
from receiptbert.json_files import read_json_object, write_json_object
from receiptbert.vocabulary import SPECIAL_TOKENS, learn_vocabulary

SPECIAL_NAMES = ["pad", "unk", "cls", "sep", "mask"]  # what the configuration calls them
CONFIG = "tokenizer_config.json"
# The settings that concern a BERT tokenizer, and what an older file means by leaving one out.
DEFAULTS: dict[str, Any] = {
    "tokenizer_class": "BertTokenizer",
    "do_lower_case": True,
    "strip_accents": None,  # as do_lower_case
    "tokenize_chinese_chars": True,
    **{f"{name}_token": token for name, token in zip(SPECIAL_NAMES, SPECIAL_TOKENS, strict=True)},
}
# Texts handed to the Rust side at once: enough to keep every core busy, few enough to bound memory.
TEXTS_AT_ONCE = 10_000
# Tokenizers differ in what they make of capitals, accents, Chinese, unseen and compatibility characters and
# punctuation, before they look for pieces.
PROBE = "ЧАЙ Ёлка CAFÉ 茶葉 a\u0000b\u200bc № ½ ﬁ 3,2%"


class WordpieceTokenizer:
    """The assignment's tokenizer: WordPiece with BERT's normalization, behind a small interface.

    Args:
        vocab_path: a ``vocab.txt``, one token per line, the line number being the id.
        strip_accents: remove accents (й becomes и, as in BERT).
        clean_text: remove control characters, turn all whitespace into spaces.
        lowercase: convert the text to lower case.
    """

    def __init__(
        self,
        vocab_path: str | Path,
        strip_accents: bool = True,
        clean_text: bool = True,
        lowercase: bool = True,
    ) -> None:
        self._config = DEFAULTS | {"do_lower_case": lowercase, "strip_accents": strip_accents}
        self._backend = _from_vocabulary(Path(vocab_path), self._config, clean_text)

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
            corpus_save_path: where to put the texts while training; removed afterwards.
            tokenizer_save_path: folder for ``<tokenizer_name>-vocab.txt``.
            vocab_size: entries wanted, special tokens included. A small corpus gives fewer.
            min_frequency: a pair of pieces seen less often is not merged.

        Raises:
            UserError: the characters alone need more than ``vocab_size`` entries.
        """
        new_trainer = partial(
            BertWordPieceTokenizer, clean_text=clean_text, strip_accents=strip_accents, lowercase=lowercase
        )
        tokens = learn_vocabulary(new_trainer, corpus, Path(corpus_save_path), vocab_size, min_frequency)
        folder = Path(tokenizer_save_path)
        folder.mkdir(parents=True, exist_ok=True)
        vocab_path = folder / f"{tokenizer_name}-vocab.txt"
        vocab_path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
        return cls(vocab_path, strip_accents, clean_text, lowercase)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "WordpieceTokenizer":
        """Load from a folder that holds Hugging Face tokenizer files, ours or any other BERT's.

        Raises:
            UserError: it holds none, or damaged ones.
        """
        saved, vocabulary = Path(folder) / "tokenizer.json", Path(folder) / "vocab.txt"
        tokenizer = cls.__new__(cls)
        tokenizer._config = _read_config(Path(folder))
        if saved.exists():
            tokenizer._backend = _read_tokenizer(saved)
            # What tokenizer_config.json leaves out or contradicts; transformers goes by that file alone.
            if isinstance(found := tokenizer._backend.normalizer, BertNormalizer):
                tokenizer._config |= {
                    "do_lower_case": found.lowercase,
                    "strip_accents": found.strip_accents,
                    "tokenize_chinese_chars": found.handle_chinese_chars,
                }
        elif vocabulary.exists():
            with _damage_named(vocabulary):
                tokenizer._backend = _from_vocabulary(vocabulary, tokenizer._config)
        else:
            raise UserError(
                f"{folder} holds no tokenizer.json and no vocab.txt; run `dvc repro`, or name a BERT "
                "checkpoint folder"
            )
        for name in SPECIAL_NAMES:
            if tokenizer._special(name) is None:
                raise UserError(f"{folder}: the tokenizer has no {name} token; name a BERT checkpoint folder")
        return tokenizer

    def save_pretrained(self, folder: str | Path, max_seqlen: int | None = None) -> None:
        """Write ``vocab.txt`` and the files that ``AutoTokenizer`` loads.

        Args:
            max_seqlen: longest input of its model, special tokens included; tools truncate longer texts.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = self._config if max_seqlen is None else self._config | {"model_max_length": max_seqlen}
        write_json_object(folder / CONFIG, config)
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
        while chunk := list(islice(iterator, TEXTS_AT_ONCE)):
            encodings = self._backend.encode_batch_fast(chunk, add_special_tokens=False)
            lengths = np.fromiter(map(len, encodings), np.int64, len(chunk))
            ids = chain.from_iterable(encoding.ids for encoding in encodings)
            yield np.fromiter(ids, np.int32, lengths.sum()), lengths

    def words(self, text: str) -> list[str]:
        """Parts of ``text`` that may be tokenized by themselves: their tokens in turn are those of the text.

        They are what stands between spaces, or the whole text if it is not sure that spaces divide it.
        """
        return list(filter(None, text.split(" "))) if self._spaces_divide else [text]

    @cached_property
    def _spaces_divide(self) -> bool:
        """Whether the tokens of any text are those of its parts between spaces, one after another.

        They are if BERT's own rules come first, which cut at spaces and look at single characters, and if no
        token added to the vocabulary has a space, or whitespace that is normalized to one.
        """
        added = self._backend.get_added_tokens_decoder().values()
        return (
            isinstance(self._backend.normalizer, BertNormalizer)
            and isinstance(self._backend.pre_tokenizer, BertPreTokenizer)
            and not any(character.isspace() for token in added for character in token.content)
        )

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """The tokens behind ``ids``."""
        return [cast(str, self._backend.id_to_token(number)) for number in ids]

    @cached_property
    def tokens(self) -> list[str]:
        """The token of each id; ``[gapN]`` for an id N whose token ``vocab.txt`` has again further down."""
        of_id = {number: token for token, number in self._backend.get_vocab().items()}
        return [of_id.get(number, f"[gap{number}]") for number in range(max(of_id) + 1)]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary and of the words of ``PROBE``: ids of one tokenizer mean nothing to a
        model of another."""
        normalizer, pre_tokenizer = self._backend.normalizer, self._backend.pre_tokenizer
        normalized = normalizer.normalize_str(PROBE) if normalizer else PROBE
        words = pre_tokenizer.pre_tokenize_str(normalized) if pre_tokenizer else [(normalized, None)]
        return hashlib.sha256("\n".join([*self.tokens, *(word for word, _ in words)]).encode()).hexdigest()

    @property
    def special_token_ids(self) -> list[int]:
        """Ids that are not text: ``[PAD]``, ``[UNK]``, ``[CLS]``, ``[SEP]``, ``[MASK]``, and added ones."""
        special = {self._special(name) for name in SPECIAL_NAMES}
        added = self._backend.get_added_tokens_decoder().items()
        return sorted(special | {number for number, token in added if token.special})

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
        """How many embeddings a model needs: one for each token, special ones included, and for each gap."""
        return len(self.tokens)

    def _special(self, name: str) -> int:
        return cast(int, self._backend.token_to_id(self._config[f"{name}_token"]))


def _from_vocabulary(vocabulary: Path, config: dict[str, Any], clean_text: bool = True) -> Tokenizer:
    """The tokenizer of a ``vocab.txt``."""
    wordpiece = BertWordPieceTokenizer(
        str(vocabulary),
        clean_text=clean_text,
        handle_chinese_chars=config["tokenize_chinese_chars"],
        strip_accents=config["strip_accents"],
        lowercase=config["do_lower_case"],
        **{name: token for name, token in config.items() if name.endswith("_token")},
    )
    return Tokenizer.from_str(wordpiece.to_str())  # its JSON: it shows its Tokenizer to nobody


def _read_tokenizer(path: Path) -> Tokenizer:
    with _damage_named(path):
        backend = Tokenizer.from_file(str(path))
    # Settings of whoever saved it last; truncation and padding are the datasets' business.
    backend.no_padding()
    backend.no_truncation()
    return backend


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    path.open("rb").close()  # a file that may not be read is not damaged
    try:
        str(path).encode()  # the library may report such a name as another fault
        yield
    except UnicodeEncodeError:
        raise UserError(f"{path}: its name is not in UTF-8, as the tokenizer needs it; rename it") from None
    except Exception as error:  # the library raises no more specific class
        raise UserError(f"{path} is damaged ({error}); {TAKE_AGAIN}") from None


def _read_config(folder: Path) -> dict[str, Any]:
    """``tokenizer_config.json`` as far as it concerns us; what it omits or sets to null has a default."""
    path = folder / CONFIG
    saved = read_json_object(path, TAKE_AGAIN) if path.exists() else {}
    config: dict[str, Any] = {}
    for name, default in DEFAULTS.items():
        value = default if saved.get(name) is None else saved[name]
        # Older versions of transformers wrote a special token as a mapping.
        config[name] = value["content"] if isinstance(value, dict) and "content" in value else value
        kinds = (str,) if isinstance(default, str) else (bool, NoneType)
        if not isinstance(config[name], kinds):
            raise UserError(f"{path}: {name} cannot be {value!r}; {TAKE_AGAIN}")
    return config
