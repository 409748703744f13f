"""Runs of the stage finetune on a few texts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import finetune
import pipeline
from receiptbert import WordpieceTokenizer
from receiptbert.corpus_facts import Classes
from receiptbert.hf_format import save_pretrained
from receiptbert.params_file import load_params
from receiptbert.split_texts import save_texts
from receiptbert.token_store import TokenStore
from tests.conftest import SETTINGS
from tests.projects import with_value
from tests.small_trainings import labelled

CHANGED = {
    "finetune.epochs": "2",
    "finetune.min_steps": "0",
    "finetune.batch_size": "40",
    "finetune.teachers": "2",
    "finetune.precision": "fp32",
    "runtime.device": "cpu",
    "runtime.checkpoint_seconds": "0",
}


SIZES = {"train": 80, "val": 40, "unsupervised": 80}


# 2 batches an epoch of each teacher, and of the final model: its pool is 80 + 80 texts in batches of 80.
STEPS = 2 * 2 * 2 + 2 * 2


@pytest.fixture
def run_stage(
    texts: list[str],
    tokenizer: WordpieceTokenizer,
    pretrain_model: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., dict[Path, bytes]]:
    """Run the stage in a project of its own; its outputs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("receiptbert.checkpoints.REST", 0)
    lines, classes = labelled(texts)
    first = 0
    pipeline.TOKENIZED.mkdir(parents=True)
    for split, size in SIZES.items():
        some, their = lines[first : first + size], classes[first : first + size]
        TokenStore.from_texts(some, tokenizer, their).save(pipeline.TOKENIZED / f"{split}.safetensors")
        save_texts(pipeline.TOKENIZED, split, some)
        first += size
    Classes(labels=list("012"), names=list("абв")).save(pipeline.CLASSES)
    save_pretrained(pretrain_model(), tokenizer, pipeline.PRETRAINED)

    def run_stage(**overrides: str) -> dict[Path, bytes]:
        document = SETTINGS.read_text()
        for key, value in (CHANGED | {f"finetune.{key}": value for key, value in overrides.items()}).items():
            document = with_value(document, key, value)
        (tmp_path / "params.yaml").write_text(document)
        finetune.finetune(load_params(tmp_path / "params.yaml"))
        outputs = [*pipeline.FINETUNED.iterdir(), *pipeline.METRICS.rglob("*.*")]
        return {path: path.read_bytes() for path in outputs}

    return run_stage
