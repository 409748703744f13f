"""JSON files: write them, and read what others wrote, or what may have been damaged since."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from receiptbert.errors import UserError


def write_json_object(path: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` in their own order, so that people can read them."""
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def read_json_object(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        remedy: how to get the file, for the error.

    Raises:
        UserError: there is no such file, or it holds no JSON, or something other than an object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} not found; {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); {remedy}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged (it holds no JSON object); {remedy}")
    return values
