"""Read ``params.yaml``, checked key by key.

Unknown, missing and mistyped keys and values out of range are errors that name the key.
"""

import dataclasses
import difflib
import math
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from receiptbert.errors import UserError
from receiptbert.params import OF_SHAPE, BadValueError, Params
from receiptbert.sizes import SIZE_PER_HEAD, SIZES, FinetuneTraining, Size, Training, follow_width

Section = TypeVar("Section")

# What may be `auto`: the value for model.size, or as many processes as there are GPUs.
MAY_BE_AUTO = {f"model.{name}" for name in OF_SHAPE}
MAY_BE_AUTO |= {f"pretrain.{field.name}" for field in dataclasses.fields(Training)}
MAY_BE_AUTO |= {f"finetune.{field.name}" for field in dataclasses.fields(FinetuneTraining)}
MAY_BE_AUTO |= {"runtime.processes"}
TYPE_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def load_params(path: Path) -> Params:
    """Read ``path`` with DVC's own YAML parser, so that both see the same numbers.

    PyYAML would read ``3e-05``, which is what ``dvc exp run -S finetune.lr=3e-5`` writes, as a string.

    Raises:
        UserError: the file is missing, is not YAML, or a key is unknown, missing, mistyped or out of range.
    """
    try:
        document = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} not found; run from the project's root") from None
    # The others come from values that are not what they look like (2024-02-30) and endless brackets.
    except (YAMLError, ValueError, LookupError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return _build(Params, _without_auto(document), "")
    except BadValueError as error:
        raise UserError(f"{path}: {error}") from None


def _without_auto(document: Any) -> Any:
    """``document`` with each ``auto`` replaced by ``model.size``'s number; ``_build`` checks the rest."""
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        return document
    name = document["model"].get("size")
    if not isinstance(name, str):
        return document
    if name not in SIZES:
        raise BadValueError(f"model.size = {name!r} must be one of {', '.join(SIZES)}")
    return document | {
        section: {key: auto.get(key, value) if value == "auto" else value for key, value in written.items()}
        for section, auto in _values_of_auto(SIZES[name], document).items()
        if isinstance(written := document.get(section), dict)
    }


def _values_of_auto(size: Size, document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What each ``auto`` stands for, by section and key."""
    model = document["model"]
    values: dict[str, dict[str, Any]] = {
        "model": {"hidden_size": size.hidden_size, "num_hidden_layers": size.num_hidden_layers},
        "pretrain": dataclasses.asdict(size.pretrain),
        "finetune": dataclasses.asdict(size.finetune),
    }
    if isinstance(document.get("finetune"), dict) and document["finetune"].get("init") == "scratch":
        # Layers that have learned nothing have nothing that a high rate could destroy.
        values["finetune"]["layer_lr_decay"] = 1.0
    # These two follow the width, whether the size or a person sets it.
    hidden_size = size.hidden_size if model.get("hidden_size") == "auto" else model.get("hidden_size")
    if type(hidden_size) is int:
        if model.get("num_attention_heads") == "auto" and hidden_size % SIZE_PER_HEAD:
            raise BadValueError(
                f"model.num_attention_heads = auto is hidden_size / {SIZE_PER_HEAD}, "
                f"and {hidden_size} is not a multiple of it; set a number"
            )
        values["model"] |= follow_width(hidden_size)
    return values


def _build(kind: type[Section], values: Any, prefix: str) -> Section:
    """Make a dataclass from a mapping; ``prefix`` precedes its keys in messages, as ``pretrain.`` does."""
    if not isinstance(values, dict):
        raise BadValueError(f"{prefix.rstrip('.') or 'the document'} must be a mapping of names to values")
    hints = get_type_hints(kind)
    if unknown := sorted(str(key) for key in values.keys() - hints.keys()):
        near = difflib.get_close_matches(unknown[0], hints, n=1)
        hint = f"is {prefix}{near[0]} meant? " if near else ""
        raise BadValueError(f"unknown key {prefix}{unknown[0]}; {hint}known are {', '.join(hints)}")
    if missing := [key for key in hints if key not in values]:
        raise BadValueError(f"missing key {prefix}{missing[0]}")
    converted = {key: _convert(hint, values[key], prefix + key) for key, hint in hints.items()}
    try:
        return kind(**converted)
    except BadValueError as error:
        raise BadValueError(f"{prefix}{error}") from None


def _convert(hint: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{key}.")  # type: ignore[arg-type]
    if hint == int | None:
        if value == "auto":
            return None
        hint = int
    if hint in (int, float) and type(value) is int and abs(value) >= 1 << 31:
        raise BadValueError(f"{key} must be below {1 << 31:,}")
    # bool is an int to Python, never to a person who writes `epochs: yes`.
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        or_auto = " or auto" if key in MAY_BE_AUTO else ""
        raise BadValueError(f"{key} = {value!r} must be {TYPE_NAMES[hint]}{or_auto}")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadValueError(f"{key} = {value!r} must be a finite number")
    return value
