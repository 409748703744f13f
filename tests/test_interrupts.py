"""A training that a signal ends leaves a checkpoint, and goes on from it."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import torch

from receiptbert.checkpoints import Checkpoints
from receiptbert.errors import Interrupted
from receiptbert.interrupts import Interrupts
from tests.conftest import Cut, Make
from tests.training_runs import Result, assert_equal, at, cut, watch, weights

pytestmark = pytest.mark.usefixtures("no_rest")


def test_a_signal_is_raised_once() -> None:
    interrupts = Interrupts()
    with interrupts.raised():
        for block in (nullcontext, interrupts.held):
            with pytest.raises(Interrupted), block():
                os.kill(os.getpid(), signal.SIGTERM)
            with interrupts.held():
                pass  # nothing is pending
    with interrupts.raised(), suppress(Cut), interrupts.held():
        os.kill(os.getpid(), signal.SIGTERM)
        raise Cut
    with interrupts.raised():
        assert not interrupts.number  # it was of the training before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_a_checkpoint_of_the_last_step(
    run_finetune: Callable[..., Result], number: signal.Signals
) -> None:
    whole = run_finetune()
    before = signal.getsignal(number)
    for where, step in (("before_step", 0), ("before_step", 2), ("before_score", 10), ("before_step", 10)):
        with pytest.raises(Interrupted) as caught:
            run_finetune(**{where: at(step, lambda _: os.kill(os.getpid(), number))})
        assert caught.value.number == number
    assert signal.getsignal(number) == before
    begun: list[int] = []
    assert_equal(run_finetune(lambda trainer: begun.append(trainer._step)), whole)
    assert begun == list(range(10, 15))


def test_an_epoch_evaluated_just_before_a_signal_is_noted_once(finetuner: Make, tmp_path: Path) -> None:
    for stop in (True, False):
        with Checkpoints(tmp_path / "finetune", "parameters", seconds=3600) as checkpoints:
            trainer, loaders = finetuner(checkpoints=checkpoints)
            if stop:
                watch(trainer, at(5, lambda _: os.kill(os.getpid(), signal.SIGINT)))
            with pytest.raises(Interrupted) if stop else nullcontext():
                trainer.train(loaders, 2)
    assert [record["epoch"] for record in trainer.epochs] == [1, 2]


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_training_that_was_interrupted_can_go_on_in_the_same_process(
    pretrain_model: Make, pretrainer: Make, pretrain_loader: Make, tmp_path: Path, step: int
) -> None:
    """As in a notebook."""

    def train(folder: str, times: int) -> Result:
        loader, model = pretrain_loader(), pretrain_model()
        torch.manual_seed(1)
        with Checkpoints(tmp_path / folder, "parameters", seconds=0) as checkpoints:
            trainer = pretrainer(model, checkpoints=checkpoints)
            if times > 1:
                watch(trainer, at(step, lambda _: os.kill(os.getpid(), signal.SIGINT)))
                with pytest.raises(Interrupted):
                    trainer.train(loader, 4, max_steps=5)
            trainer.train(loader, 4, max_steps=5)
        return weights(model), trainer.history, trainer.tokens_seen

    assert_equal(train("cut", 2), train("whole", 1))


def test_the_loss_of_an_epoch_is_that_of_its_own_steps(finetuner: Make) -> None:
    """After a training without checkpoints that was cut off in the same process, too."""
    trainer, loaders = finetuner()
    watch(trainer, at(3, cut))
    with pytest.raises(Cut):
        trainer.train(loaders, 1)
    trainer.train(loaders, 1)
    losses = [record["loss"] for record in trainer.history[-len(loaders["train"]) :]]
    assert trainer.epochs[0]["train_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)


def test_a_training_may_run_in_another_thread(run_pretrain: Callable[..., Result]) -> None:
    """Where Python lets nobody handle signals; as in a notebook, or a server."""
    with ThreadPoolExecutor(1) as pool:
        _, history, _ = pool.submit(run_pretrain, max_steps=2).result()
    assert len(history) == 2


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_what_a_training_was_started_to_ignore_does_not_end_it(
    run_finetune: Callable[..., Result], number: signal.Signals
) -> None:
    """A closed terminal under ``nohup``; Ctrl-C in a shell script that started it with ``&``."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        run_finetune(at(2, lambda _: os.kill(os.getpid(), number)))
    finally:
        signal.signal(number, before)
