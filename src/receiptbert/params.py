"""The settings of ``params.yaml`` as frozen dataclasses, which check ranges; ``params_file`` reads the file.

The dataclasses have no defaults: ``params.yaml`` is the only source of values. Where a setting that depends
on the size of the model is ``auto`` there, they hold the value for that size (see ``sizes``).
"""

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from receiptbert.choices import ACT_FUNCS, AMP_BACKENDS, PRECISIONS

OF_SHAPE = ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"]


class BadValueError(Exception):
    """A complaint about one key, before the file and the section are known."""


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
    amp_backend: str  # what is installed here; fp16 itself is tracked, as ``precision``
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


def _require(holds: bool, key: str, rule: str) -> None:
    if not holds:
        raise BadValueError(f"{key} must be {rule}")


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
