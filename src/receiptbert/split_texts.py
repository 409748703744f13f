"""The raw texts of a split, in the order of the corpus, beside their token ids.

The token ids of the unsupervised texts are in another order, by length.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from receiptbert.errors import PRETOKENIZE_AGAIN, UserError
from receiptbert.files import whole

QUOTED = json.JSONEncoder(ensure_ascii=False).encode  # `json.dumps` would make an encoder for each text


def save_texts(tokenized: Path, split: str, texts: Iterable[str]) -> None:
    """Write ``texts`` as JSON strings, one per line, whatever line breaks they contain."""
    with whole(tokenized / f"{split}.jsonl") as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(f"{QUOTED(text)}\n" for text in texts)


def load_texts(tokenized: Path, split: str, count: int | None = None) -> list[str]:
    """What ``save_texts`` wrote.

    Args:
        count: how many must be there, if that matters.

    Raises:
        UserError: there is no such file, it is damaged, or it has a different number of texts.
    """
    path = tokenized / f"{split}.jsonl"
    texts: list[str] = []
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                texts.append(json.loads(line))
                if not isinstance(texts[-1], str):
                    raise ValueError("no text")
    except FileNotFoundError:
        raise UserError(f"{path} not found; run `dvc repro pretokenize`") from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged (after {len(texts)} lines: {error}); {PRETOKENIZE_AGAIN}"
        ) from None
    if count is not None and len(texts) != count:
        raise UserError(f"{path} has {len(texts):,} texts, but {count:,} are tokenized; {PRETOKENIZE_AGAIN}")
    return texts
