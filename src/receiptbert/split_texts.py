"""The texts of a split as they are written, beside their token ids."""

import json
from collections.abc import Iterable
from pathlib import Path

from receiptbert.errors import UserError
from receiptbert.files import whole


def save_texts(tokenized: Path, split: str, texts: Iterable[str]) -> None:
    """Write ``texts`` as JSON strings, one a line, whatever line breaks they hold; in their order."""
    with whole(tokenized / f"{split}.jsonl") as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(text, ensure_ascii=False)}\n" for text in texts)


def load_texts(tokenized: Path, split: str) -> list[str]:
    """What ``save_texts`` wrote.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    path = tokenized / f"{split}.jsonl"
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            texts = [json.loads(line) for line in file]
    except FileNotFoundError:
        raise UserError(f"{path} not found; run `dvc repro pretokenize`") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); run `dvc repro -f pretokenize`") from None
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{path} is damaged (not all of it are texts); run `dvc repro -f pretokenize`")
    return texts
