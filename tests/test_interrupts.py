"""A training that a signal ends leaves a checkpoint, and goes on from it."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest

from receiptbert.checkpoints import Checkpoints
from receiptbert.errors import Interrupted
from tests.conftest import Make
from tests.training_runs import Result, assert_equal, at, watch

pytestmark = pytest.mark.usefixtures("no_rest")


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


def test_a_training_that_was_interrupted_can_go_on_in_the_same_process(
    pretrainer: Make, pretrain_loader: Make, tmp_path: Path
) -> None:
    """As in a notebook."""
    loader = pretrain_loader()
    with Checkpoints(tmp_path / "pretrain", "parameters", seconds=0) as checkpoints:
        trainer = pretrainer(checkpoints=checkpoints)
        watch(trainer, at(2, lambda _: os.kill(os.getpid(), signal.SIGINT)))
        with pytest.raises(Interrupted):
            trainer.train(loader, 4, max_steps=5)
        trainer.train(loader, 4, max_steps=5)
    assert len(trainer.history) == 5


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
