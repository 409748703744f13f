"""Both loops: what is shown and logged, and golden losses that a refactor must keep."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from receiptbert import WordpieceTokenizer, make_scorer
from receiptbert.flat_texts import padding_mask
from receiptbert.modeling import dropout_everywhere
from tests.conftest import Make
from tests.projects import logged
from tests.small_trainings import labelled

GOLDEN = Path(__file__).parent / "golden" / "losses.json"


def test_golden_losses(
    request: pytest.FixtureRequest,
    pretrain_model: Make,
    pretrainer: Make,
    pretrain_loader: Make,
    finetune_model: Make,
    finetuner: Make,
) -> None:
    """A change of these numbers is a change of the training: explain it in CHANGELOG.md, and only then
    write them anew with ``pytest --update-golden``. Those without dropout must survive a mere change of the
    order in which random numbers are drawn."""
    losses: dict[str, list[Any]] = {}
    for kind, dropout in (("", 0.0), (" with dropout", 0.1)):
        trainer = pretrainer(pretrain_model(**dropout_everywhere(dropout)), max_grad_norm=1.0)
        loader = pretrain_loader()
        torch.manual_seed(1)
        while len(trainer.history) < 20:
            trainer.train(loader, 1)
        losses[f"pretrain{kind}"] = [[record["MLM"], record["SOP"]] for record in trainer.history[:20]]
    for kind, dropout in (("", 0.0), (" with dropout", 0.1)):
        trainer, loaders = finetuner(finetune_model(hidden_dropout_prob=dropout), max_grad_norm=1.0)
        torch.manual_seed(1)
        trainer.train(loaders, 4)
        losses[f"finetune{kind}"] = [record["loss"] for record in trainer.history[:20]]
    if request.config.getoption("--update-golden"):
        GOLDEN.write_text(json.dumps(losses, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert losses.keys() == golden.keys()
    for name, expected in golden.items():
        # Other processors round otherwise; twenty steps do not let that grow beyond this.
        np.testing.assert_allclose(losses[name], expected, rtol=2e-3, err_msg=name)


def test_progress_is_that_of_the_whole_training(
    pretrainer: Make, pretrain_loader: Make, finetuner: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[str, int, int]] = []

    def track(steps: Any, what: str, total: int, _: str, before: int) -> Any:
        shown.append((what, before, total))
        return steps

    for module in ("trainer", "finetune_trainer"):
        monkeypatch.setattr(f"receiptbert.{module}.track", track)
    loader = pretrain_loader()
    size = len(loader)
    pretrainer().train(loader, 2)
    pretrainer().train(loader, 9, max_steps=size + 1)
    trainer, loaders = finetuner()
    trainer.train(loaders, 2)
    per_epoch = len(loaders["train"])
    assert shown == [
        ("epoch 1 of 2", 0, 2 * size),
        ("epoch 2 of 2", size, 2 * size),
        ("epoch 1 of 9", 0, size + 1),
        ("epoch 2 of 9", size, size + 1),
        ("epoch 1 of 2", 0, 2 * per_epoch),
        ("epoch 2 of 2", per_epoch, 2 * per_epoch),
    ]


def steps_of(run: Path) -> dict[str, list[int]]:
    return {name: list(curve) for name, curve in logged(run).items()}


def test_tensorboard_has_every_step(
    texts: list[str],
    tokenizer: WordpieceTokenizer,
    pretrainer: Make,
    pretrain_loader: Make,
    finetuner: Make,
    tmp_path: Path,
) -> None:
    threads = set(threading.enumerate())
    trainer = pretrainer(logdir=str(tmp_path / "pretrain"))
    trainer.train(pretrain_loader(), 1)
    steps = [record["step"] for record in trainer.history]
    assert steps == list(range(1, len(steps) + 1))
    assert steps_of(tmp_path / "pretrain") == dict.fromkeys(
        ("MLM", "SOP", "tokens", "grad_norm", "lr"), steps
    )

    trainer, loaders = finetuner(logdir=str(tmp_path / "finetune"))
    trainer.train(loaders, 2, make_scorer(*labelled(texts), tokenizer, 12))
    steps = [record["step"] for record in trainer.history]
    epoch_ends = [steps[len(steps) // 2 - 1], steps[-1]]
    assert steps_of(tmp_path / "finetune") == {
        **dict.fromkeys(("loss", "grad_norm", "lr"), steps),
        **dict.fromkeys(("train_loss", "eval_loss", "f1"), epoch_ends),
    }
    assert set(threading.enumerate()) <= threads  # the logs are closed


def test_a_training_that_fails_keeps_its_log(
    pretrainer: Make, pretrain_loader: Make, finetuner: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of what it had fetched from the device by then; here, of its first epoch."""

    def fail(_: str) -> None:
        raise OSError("no space left")

    for module in ("trainer", "finetune_trainer"):
        monkeypatch.setattr(f"receiptbert.{module}.say", fail)
    threads = set(threading.enumerate())
    one, loader = pretrainer(logdir=str(tmp_path / "pretrain")), pretrain_loader()
    other, loaders = finetuner(logdir=str(tmp_path / "finetune"))
    for train in (lambda: one.train(loader, 2), lambda: other.train(loaders, 2)):
        with pytest.raises(OSError, match="no space left"):
            train()
    assert set(threading.enumerate()) <= threads
    assert steps_of(tmp_path / "pretrain")["MLM"] == list(range(1, len(loader) + 1))
    assert steps_of(tmp_path / "finetune")["loss"] == list(range(1, len(loaders["train"]) + 1))


def test_padding_mask() -> None:
    assert padding_mask(torch.tensor([[5, 6], [7, 8]]), pad_token_id=0) is None
    on_gpu = torch.empty(2, 2, dtype=torch.long, device="meta")  # as good as one: its values are not there
    assert padding_mask(on_gpu, pad_token_id=0) is not None
    mask = padding_mask(torch.tensor([[5, 6], [7, 0]]), pad_token_id=0)
    assert mask is not None
    assert mask.tolist() == [[1, 1], [1, 0]]
