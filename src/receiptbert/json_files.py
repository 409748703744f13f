"""Read JSON files that others wrote, or that may have been damaged since."""

import json
from pathlib import Path
from typing import Any

from receiptbert.errors import UserError


def read_json_object(path: Path, mend: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        mend: how to get the file whole again, for the error.

    Raises:
        FileNotFoundError: there is no such file; the caller knows what that means.
        UserError: the file holds no JSON, or something other than an object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); {mend}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged (it holds no JSON object); {mend}")
    return values
