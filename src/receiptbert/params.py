"""``params.yaml`` as frozen dataclasses, checked key by key.

The dataclasses have no defaults: ``params.yaml`` is the only source of values. Unknown, missing
and mistyped keys and values out of range are errors that name the key. Where a setting that depends on the
size of the model is ``auto``, the dataclasses hold the value for that size (see ``sizes``).
"""

import dataclasses
import difflib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from receiptbert.choices import ACT_FUNCS, AMP_BACKENDS, PRECISIONS
from receiptbert.errors import UserError
from receiptbert.sizes import SIZE_PER_HEAD, SIZES, FinetuneTraining, Training, follow_width

Section = TypeVar("Section")

OF_SHAPE = ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"]
# What may be `auto`: the value for model.size, or as many processes as there are GPUs.
MAY_BE_AUTO = {f"model.{name}" for name in OF_SHAPE}
MAY_BE_AUTO |= {f"pretrain.{field.name}" for field in dataclasses.fields(Training)}
MAY_BE_AUTO |= {f"finetune.{field.name}" for field in dataclasses.fields(FinetuneTraining)}
MAY_BE_AUTO |= {"runtime.processes"}


@dataclass(frozen=True, kw_only=True, slots=True)
class DataParams:
    """Where the corpus is."""

    archive: str
    train_on_held_out_texts: bool

    def __post_init__(self) -> None:
        _require(_may_be_path(self.archive), "archive", "the path of a zip")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerParams:
    """The vocabulary."""

    vocab_size: int
    min_frequency: int

    def __post_init__(self) -> None:
        _require(10 <= self.vocab_size <= 1_000_000, "vocab_size", "between 10 and 1,000,000")
        _require(self.min_frequency >= 1, "min_frequency", "at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class PretokenizeParams:
    """The lengths of the texts."""

    max_length_quantile: float

    def __post_init__(self) -> None:
        _require(0 < self.max_length_quantile <= 1, "max_length_quantile", "above 0 and at most 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelParams:
    """The shape of BERT; where all of it is set by hand, the size only decides settings of training."""

    size: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    act_func: str

    def __post_init__(self) -> None:
        for name in OF_SHAPE:
            _require(getattr(self, name) >= 1, name, "at least 1")
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            "hidden_size",
            f"a multiple of num_attention_heads ({self.num_attention_heads})",
        )
        _require(self.act_func in ACT_FUNCS, "act_func", " or ".join(ACT_FUNCS))

    def kwargs(self) -> dict[str, Any]:
        """As keyword arguments of ``BertModel``."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "size"}


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainParams:
    """Pretraining."""

    seed: int
    precision: str
    epochs: int
    max_steps: int
    batch_size: int
    num_accum_steps: int
    lr: float
    final_lr: float
    warmup: float
    weight_decay: float
    max_grad_norm: float
    dropout: float
    mask_prob: float
    random_prob: float
    keep_unchanged_prob: float
    whole_words: bool
    letters_only: bool
    permute_prob: float
    sop_weight: float
    holdout: int

    def __post_init__(self) -> None:
        _require_training_ranges(self)
        _require(self.max_steps >= 1, "max_steps", "at least 1")
        _require(self.num_accum_steps >= 1, "num_accum_steps", "at least 1")
        _require(0.001 <= self.mask_prob < 1, "mask_prob", "at least 0.001 and below 1")
        for name in ("random_prob", "keep_unchanged_prob", "permute_prob", "sop_weight"):
            _require(0 <= getattr(self, name) <= 1, name, "between 0 and 1")
        _require(
            self.random_prob + self.keep_unchanged_prob <= 1,
            "random_prob",
            f"at most 1 - keep_unchanged_prob ({1 - self.keep_unchanged_prob:g})",
        )
        _require(self.holdout >= 1, "holdout", "at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneParams:
    """Finetuning."""

    seed: int
    precision: str
    init: str
    epochs: int
    min_steps: int
    batch_size: int
    lr: float
    final_lr: float
    layer_lr_decay: float
    warmup: float
    weight_decay: float
    max_grad_norm: float
    dropout: float
    label_smoothing: float
    teachers: int

    def __post_init__(self) -> None:
        _require_training_ranges(self)
        _require(0 < self.layer_lr_decay <= 1, "layer_lr_decay", "above 0 and at most 1")
        _require(0 <= self.label_smoothing < 1, "label_smoothing", "at least 0 and below 1")
        _require(self.min_steps >= 0, "min_steps", "at least 0")
        _require(self.teachers >= 0, "teachers", "at least 0")
        _require(_may_be_path(self.init), "init", "pretrained, scratch, or a checkpoint folder")

    @property
    def of_our_shape(self) -> bool:
        """Whether the model has the shape and the vocabulary of the one that ``pretrain`` makes."""
        return self.init in ("pretrained", "scratch")


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeParams:
    """Hardware: not a hyperparameter, so no stage tracks it."""

    device: str
    processes: int | None  # None is `auto`
    deterministic: bool
    activation_checkpointing: bool
    amp_backend: str  # what is installed here; fp16 itself is tracked, as pretrain.precision
    checkpoint_seconds: float

    def __post_init__(self) -> None:
        _require(self.processes is None or self.processes >= 1, "processes", "at least 1, or auto")
        _require(self.amp_backend in AMP_BACKENDS, "amp_backend", " or ".join(AMP_BACKENDS))
        _require(self.checkpoint_seconds >= 0, "checkpoint_seconds", "at least 0")
        _require(
            self.device == "auto" or self.device.split(":")[0] in ("cpu", "cuda"),
            "device",
            "auto, cpu or cuda",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Params:
    """All sections of ``params.yaml``."""

    data: DataParams
    tokenizer: TokenizerParams
    pretokenize: PretokenizeParams
    model: ModelParams
    pretrain: PretrainParams
    finetune: FinetuneParams
    runtime: RuntimeParams


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
    except _BadValueError as error:
        raise UserError(f"{path}: {error}") from None


class _BadValueError(Exception):
    """A complaint about one key, before the file and the section are known."""


def _without_auto(document: Any) -> Any:
    """``document`` with each ``auto`` replaced by ``model.size``'s number; ``_build`` checks the rest."""
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        return document
    model, name = document["model"], document["model"].get("size")
    if not isinstance(name, str):
        return document
    if name not in SIZES:
        raise _BadValueError(f"model.size = {name!r} must be one of {', '.join(SIZES)}")
    size = SIZES[name]
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
            raise _BadValueError(
                f"model.num_attention_heads = auto is hidden_size / {SIZE_PER_HEAD}, "
                f"and {hidden_size} is not a multiple of it; set a number"
            )
        values["model"] |= follow_width(hidden_size)
    return document | {
        section: {key: auto.get(key, value) if value == "auto" else value for key, value in written.items()}
        for section, auto in values.items()
        if isinstance(written := document.get(section), dict)
    }


def _build(kind: type[Section], values: Any, prefix: str) -> Section:
    """Make a dataclass from a mapping; ``prefix`` precedes its keys in messages, as ``pretrain.`` does."""
    if not isinstance(values, dict):
        raise _BadValueError(f"{prefix.rstrip('.') or 'the document'} must be a mapping of names to values")
    hints = get_type_hints(kind)
    if unknown := sorted(str(key) for key in values.keys() - hints.keys()):
        near = difflib.get_close_matches(unknown[0], hints, n=1)
        hint = f"is {prefix}{near[0]} meant? " if near else ""
        raise _BadValueError(f"unknown key {prefix}{unknown[0]}; {hint}known are {', '.join(hints)}")
    if missing := [key for key in hints if key not in values]:
        raise _BadValueError(f"missing key {prefix}{missing[0]}")
    converted = {key: _convert(hint, values[key], prefix + key) for key, hint in hints.items()}
    try:
        return kind(**converted)
    except _BadValueError as error:
        raise _BadValueError(f"{prefix}{error}") from None


def _convert(hint: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{key}.")  # type: ignore[arg-type]
    if hint == int | None:
        if value == "auto":
            return None
        hint = int
    if hint in (int, float) and type(value) is int and abs(value) >= 1 << 31:
        raise _BadValueError(f"{key} must be below {1 << 31:,}")
    # bool is an int to Python, never to a person who writes `epochs: yes`.
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        or_auto = " or auto" if key in MAY_BE_AUTO else ""
        raise _BadValueError(f"{key} = {value!r} must be {_TYPE_NAMES[hint]}{or_auto}")
    if isinstance(value, float) and not math.isfinite(value):
        raise _BadValueError(f"{key} = {value!r} must be a finite number")
    return value


_TYPE_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _require(holds: bool, key: str, rule: str) -> None:
    if not holds:
        raise _BadValueError(f"{key} must be {rule}")


def _may_be_path(text: str) -> bool:
    try:
        return bool(text) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _require_training_ranges(params: PretrainParams | FinetuneParams) -> None:
    _require(params.seed >= 0, "seed", "at least 0")
    _require(params.precision in PRECISIONS, "precision", f"one of {', '.join(PRECISIONS)}")
    _require(params.epochs >= 1, "epochs", "at least 1")
    _require(params.batch_size >= 1, "batch_size", "at least 1")
    _require(params.lr > 0, "lr", "above 0")
    _require(0 <= params.final_lr <= params.lr, "final_lr", f"between 0 and lr ({params.lr:g})")
    _require(0 <= params.warmup < 1, "warmup", "a fraction of all steps, at least 0 and below 1")
    _require(params.weight_decay >= 0, "weight_decay", "at least 0")
    _require(params.max_grad_norm > 0, "max_grad_norm", "above 0")
    _require(0 <= params.dropout < 1, "dropout", "at least 0 and below 1")
