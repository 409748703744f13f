"""The raw texts of a split, in the order of the corpus, beside their token ids.

The token ids of the unsupervised texts are in another order, by length.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import compress
from pathlib import Path

import numpy as np

from receiptbert.errors import PRETOKENIZE_AGAIN, UserError

QUOTED = json.JSONEncoder(ensure_ascii=False).encode  # `json.dumps` would make an encoder for each text


def texts_path(tokenized: Path, split: str) -> Path:
    """Where ``pretokenize`` puts the raw texts of a split."""
    return tokenized / f"{split}.jsonl"


def save_texts(tokenized: Path, split: str, texts: Iterable[str]) -> None:
    """Write ``texts`` as JSON strings, one per line, whatever line breaks they contain."""
    with texts_path(tokenized, split).open("w", encoding="utf-8") as file:
        file.writelines(f"{QUOTED(text)}\n" for text in texts)


def load_texts(tokenized: Path, split: str, count: int) -> list[str]:
    """What ``save_texts`` wrote.

    Args:
        count: how many must be there.

    Raises:
        UserError: there is no such file, it is damaged, or it has a different number of texts.
    """
    path = texts_path(tokenized, split)
    texts = [_text(path, number, line) for number, line in enumerate(_lines(path), start=1)]
    if len(texts) != count:
        raise UserError(f"{path} has {len(texts):,} texts, but {count:,} are tokenized; {PRETOKENIZE_AGAIN}")
    return texts


def draw_texts(tokenized: Path, split: str, number: int, seed: int) -> list[str]:
    """``number`` of the texts of a split, or all if there are fewer, chosen at random and in random order.

    Only these are held in memory.

    Raises:
        UserError: there is no such file, or one of the chosen lines is damaged.
    """
    path = texts_path(tokenized, split)
    total = sum(1 for _ in _lines(path))
    drawn = np.random.default_rng(seed).permutation(total)[:number]
    is_drawn = np.zeros(total, dtype=bool)
    is_drawn[drawn] = True
    numbered = compress(enumerate(_lines(path), start=1), is_drawn)
    texts = [_text(path, number, line) for number, line in numbered]  # in the order of the file
    places = np.argsort(np.argsort(drawn))  # of each drawn row among the others
    return [texts[place] for place in places]


def _text(path: Path, number: int, line: bytes) -> str:
    """The text in line ``number``."""
    try:
        text = json.loads(line.decode())
        if not isinstance(text, str):
            raise ValueError("no text")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged (line {number}: {error}); {PRETOKENIZE_AGAIN}") from None
    return text


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:
        raise UserError(f"{path} not found; {PRETOKENIZE_AGAIN}") from None
