"""Trainings of a few steps with checkpoints, which can be cut off at any step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from receiptbert import WordpieceTokenizer, make_scorer
from receiptbert.checkpoints import Checkpoints
from tests.conftest import Cut, Make
from tests.small_trainings import labelled

Result = tuple[list[Tensor], list[dict[str, float]], Any]


@pytest.fixture
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a checkpoint after every step, however long it took."""
    monkeypatch.setattr("receiptbert.checkpoints.REST", 0)


def weights(model: torch.nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.fixture
def run_pretrain(
    pretrain_model: Make, pretrainer: Make, pretrain_loader: Make, tmp_path: Path
) -> Callable[..., Result]:
    def run(
        before_step: Callable[[Any], object] = lambda _: None, max_steps: int = 11, **kwargs: Any
    ) -> Result:
        model = pretrain_model(hidden_dropout_prob=0.1)
        loader = pretrain_loader()
        torch.manual_seed(1)
        with Checkpoints(tmp_path / "pretrain", "parameters", seconds=0) as checkpoints:
            trainer = pretrainer(model, num_accum_steps=2, checkpoints=checkpoints, **kwargs)
            watch(trainer, before_step)
            trainer.train(loader, 4, max_steps=max_steps)
            checkpoints.remove()
        return weights(model), trainer.history, trainer.tokens_seen

    return run


@pytest.fixture
def run_finetune(
    texts: list[str], tokenizer: WordpieceTokenizer, finetune_model: Make, finetuner: Make, tmp_path: Path
) -> Callable[..., Result]:
    def run(
        before_step: Callable[[Any], object] = lambda _: None,
        before_score: Callable[[Any], object] = lambda _: None,
        **kwargs: Any,
    ) -> Result:
        model = finetune_model(hidden_dropout_prob=0.1)
        score = make_scorer(*labelled(texts), tokenizer, 12)
        torch.manual_seed(1)
        with Checkpoints(tmp_path / "finetune", "parameters", seconds=0) as checkpoints:
            trainer, loaders = finetuner(model, checkpoints=checkpoints, **kwargs)
            watch(trainer, before_step)
            trainer.train(loaders, 3, lambda t: (before_score(t), score(t))[1], eval_every=2)
            checkpoints.remove()
        return weights(model), trainer.history, (trainer.epochs, trainer.best_epoch)

    return run


def watch(trainer: Any, before_step: Callable[[Any], object]) -> None:
    """Call ``before_step`` with the trainer in the midst of each step."""
    backward = trainer._backward
    trainer._backward = lambda loss: (before_step(trainer), backward(loss))


def at(step: int, action: Callable[[Any], object]) -> Callable[[Any], object]:
    """Do ``action`` in the first step that comes after ``step`` steps."""
    waiting = [step]
    return lambda trainer: (waiting.pop(), action(trainer)) if waiting == [trainer._step] else None


def cut(_: object = None) -> None:
    raise Cut


def assert_equal(one: Result, other: Result) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))
    assert one[1:] == other[1:]
