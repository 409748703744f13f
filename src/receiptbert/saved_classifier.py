"""Load a finetuned checkpoint, ours or any Hugging Face ``BertForSequenceClassification``."""

from pathlib import Path
from typing import Any, NamedTuple

from receiptbert.errors import TAKE_AGAIN, UserError
from receiptbert.hf_format import (
    CONFIG,
    LABELS,
    TEMPERATURE,
    copy_all,
    load_tokenizer,
    read_config,
    read_weights,
    shape_of,
)
from receiptbert.hf_names import HEADS, OUR_SOP, from_hf
from receiptbert.modeling import BertFinetuneModel
from receiptbert.tokenization import WordpieceTokenizer


class SavedClassifier(NamedTuple):
    """What a finetuned checkpoint holds."""

    model: BertFinetuneModel  # without dropout
    tokenizer: WordpieceTokenizer
    names: list[str]  # of the classes, in the order of their ids
    labels: list[str]  # what the corpus calls them; the names, if the checkpoint does not say
    temperature: float  # what logits are divided by before the softmax; 1, if it does not say


def load_classifier(folder: Path) -> SavedClassifier:
    """Load what finetune wrote, or any Hugging Face ``BertForSequenceClassification``.

    Raises:
        UserError: no such folder, no BERT checkpoint in it, one without a classifier, with a head that does
            anything else than choose a class, or with invalid classes or temperature.
    """
    if not folder.is_dir():
        here = "" if folder.is_absolute() else f" in {Path.cwd()}"
        raise UserError(
            f"{folder} is not a folder{here}; name that of a finetuned model (`dvc repro` makes one, "
            "`dvc checkout` brings back the last one)"
        )
    config = read_config(folder)
    shape, weights = shape_of(config, folder), read_weights(folder)
    if (bias := weights.get(f"{HEADS[OUR_SOP]}.bias")) is None:
        raise UserError(f"{folder} holds a BERT without a classifier; name a finetuned checkpoint")
    kind = config.get("problem_type")
    if kind not in (None, "single_label_classification") or len(bias) < 2:
        raise UserError(
            f"{folder}: its head has {len(bias)} outputs and the problem_type {kind!r}; name a checkpoint "
            "that chooses one of several classes"
        )
    names, labels = _classes(config, len(bias), folder)
    model, ours = BertFinetuneModel(**shape.kwargs(), num_classes=len(names)), from_hf(weights)
    copy_all(model, ours, folder)
    tokenizer = load_tokenizer(folder, shape)
    return SavedClassifier(model.eval(), tokenizer, names, labels, _temperature(config, folder))


def _classes(config: dict[str, Any], number: int, folder: Path) -> tuple[list[str], list[str]]:
    """The names of the classes, and what the corpus calls them.

    Args:
        number: how many outputs the head has, for a config.json that names none.
    """
    # Absent where nobody named the classes; these are transformers' names.
    of_ids = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(number)}
    if not isinstance(of_ids, dict) or set(of_ids) != {str(i) for i in range(len(of_ids))}:
        raise UserError(f"{folder / CONFIG}: id2label must name the classes 0, 1, 2 and so on; {TAKE_AGAIN}")
    names = _class_names([of_ids[str(i)] for i in range(len(of_ids))], folder, "id2label")
    labels = names if config.get(LABELS) is None else _class_names(config[LABELS], folder, LABELS)
    if len(labels) != len(names):
        raise UserError(
            f"{folder}: {CONFIG} has {len(names)} classes and {len(labels)} {LABELS}; {TAKE_AGAIN}"
        )
    return names, labels


def _class_names(values: Any, folder: Path, key: str) -> list[str]:
    """The list ``values``, which config.json has under ``key``, as strings; integers are converted."""
    if not isinstance(values, list) or any(type(value) not in (str, int) for value in values):
        raise UserError(f"{folder / CONFIG}: {key} must hold the classes as texts; {TAKE_AGAIN}")
    return list(map(str, values))


def _temperature(config: dict[str, Any], folder: Path) -> float:
    temperature = config.get(TEMPERATURE, 1.0)
    if type(temperature) not in (int, float) or not 0.001 <= temperature <= 1000:
        raise UserError(
            f"{folder / CONFIG}: {TEMPERATURE} = {temperature!r} must be a number between 0.001 and 1000; "
            "restore it with `dvc repro`, or take the line out for 1"
        )
    return float(temperature)
