"""A training that was cut off ends with the same weights, curves and metrics as one that was not."""

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from receiptbert.checkpoints import Checkpoints
from receiptbert.errors import Interrupted, UserError
from receiptbert.history import History
from tests.conftest import Cut, Make, overflow
from tests.projects import logged
from tests.training_runs import Result, assert_equal, at, cut, watch, weights

pytestmark = pytest.mark.usefixtures("no_rest")


@pytest.mark.parametrize(
    ("run", "kwargs", "steps"),
    [
        ("run_pretrain", {}, 11),
        ("run_pretrain", {"max_steps": 10}, 10),  # the last step alone is of the last epoch
        ("run_finetune", {}, 15),
    ],
)
def test_a_training_cut_off_in_every_step_ends_as_if_it_were_not(
    request: pytest.FixtureRequest, run: str, kwargs: dict[str, int], steps: int
) -> None:
    train = partial(request.getfixturevalue(run), **kwargs)
    whole = train()
    assert [record["step"] for record in whole[1]] == list(range(1, steps + 1))
    for step in range(steps):
        cut_off, begun = at(step, cut), []
        with pytest.raises(Cut):
            train(
                lambda trainer, cut_off=cut_off, begun=begun: (begun.append(trainer._step), cut_off(trainer))
            )
        assert begun[0] == max(step - 1, 0)
        torch.rand(7)  # a new process has other random numbers
    assert_equal(train(), whole)


def test_an_epoch_cut_off_in_its_evaluation_is_evaluated_again(run_finetune: Callable[..., Result]) -> None:
    whole = run_finetune()
    for epoch in (2, 3):
        with pytest.raises(Cut):
            run_finetune(before_score=at(5 * epoch, cut))
    assert_equal(run_finetune(), whole)


def test_weights_of_the_best_epoch_are_kept_with_its_score(finetuner: Make, tmp_path: Path) -> None:
    """On another device the last epoch may be scored a little lower than it was, and be the best no more."""

    def train(folder: str, *scores: float) -> tuple[int, list[Tensor]]:
        left = list(scores)
        with Checkpoints(tmp_path / folder, "parameters", seconds=60) as checkpoints:
            trainer, loaders = finetuner(checkpoints=checkpoints)
            trainer.train(loaders, len(scores), lambda _: ("f1", left.pop(0)))
        return trainer.best_epoch, weights(trainer._model)

    assert train("one", 0.5, 0.6)[0] == 2
    # The checkpoint of the end is of the last step: what came after it is done again.
    best_epoch, found = train("one", 0.4, 0.4)
    assert best_epoch == 1
    _, expected = train("other", 0.5, 0.4)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def overflow_and_cut(after: int) -> Callable[[Any], object]:
    """Have the fifth step overflow, and end after so many."""
    actions = [at(4, overflow), at(after, cut)]
    return lambda trainer: [action(trainer) for action in actions]


@pytest.mark.parametrize("backend", ["torch", "apex"])
def test_a_training_in_fp16_goes_on_with_its_scale_and_its_skipped_steps(
    apex: ModuleType, run_pretrain: Callable[..., Result], backend: str
) -> None:
    fp16 = {"precision": "fp16", "amp_backend": backend}
    whole = run_pretrain(at(4, overflow), **fp16)
    assert sum(record["skipped"] for record in whole[1]) == 1
    for after, good_batches in ((5, 1), (8, 6)):
        with pytest.raises(Cut):
            run_pretrain(overflow_and_cut(after), **fp16)
        apex.calls.clear()
        assert_equal(run_pretrain(**fp16), whole)
        if backend == "apex":
            assert apex.calls[3] == {"loss_scaler0": {"loss_scale": 2.0**15, "unskipped": good_batches}}


def test_a_pass_is_not_cut_off(pretrainer: Make, pretrain_loader: Make, tmp_path: Path) -> None:
    """Between its forward and its backward pass, a checkpoint would have the gradients of half of a batch."""
    finished = []
    with Checkpoints(tmp_path / "pretrain", "parameters", seconds=60) as checkpoints:
        trainer = pretrainer(checkpoints=checkpoints)
        backward = trainer._backward

        def backward_with_a_signal(loss: Tensor) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            backward(loss)
            finished.append(loss)

        trainer._backward = backward_with_a_signal
        with pytest.raises(Interrupted):
            trainer.train(pretrain_loader(), 1)
    assert len(finished) == 1


def test_a_signal_within_a_step_saves_the_scale_from_before_it(
    apex: ModuleType, run_pretrain: Callable[..., Result]
) -> None:
    """Apex's changes in each backward pass."""
    actions = [at(4, overflow), at(4, lambda _: os.kill(os.getpid(), signal.SIGINT))]
    fp16 = {"precision": "fp16", "amp_backend": "apex"}
    with pytest.raises(Interrupted):
        run_pretrain(lambda trainer: [action(trainer) for action in actions], **fp16)
    apex.calls.clear()
    run_pretrain(**fp16)
    good_batches = 7  # of an epoch's five, the third step has one
    assert apex.calls[3] == {"loss_scaler0": {"loss_scale": 2.0**16, "unskipped": good_batches}}


def test_a_training_in_fp16_can_go_on_with_the_other_backend(
    apex: ModuleType,  # noqa: ARG001
    run_pretrain: Callable[..., Result],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for backend, other in (("torch", "apex"), ("apex", "torch")):
        scales: list[float] = []
        with pytest.raises(Cut):
            run_pretrain(overflow_and_cut(6), precision="fp16", amp_backend=backend)
        run_pretrain(lambda t, s=scales: s.append(t._amp.scale), precision="fp16", amp_backend=other)
        assert scales[0] == 2.0**15
        assert f"amp_backend was {backend}, is {other}: the result will" in capsys.readouterr().err


def test_a_training_that_has_ended_is_not_done_again(
    pretrainer: Make, pretrain_loader: Make, tmp_path: Path
) -> None:
    """If what comes after it is cut off; a checkpoint was not due."""
    begun: list[int] = []
    for _ in range(2):
        with Checkpoints(tmp_path / "pretrain", "parameters", seconds=3600) as checkpoints:
            trainer = pretrainer(checkpoints=checkpoints)
            watch(trainer, lambda trainer: begun.append(trainer._step))
            trainer.train(pretrain_loader(), 1)
    assert begun == list(range(len(trainer.history)))


@pytest.mark.parametrize(
    ("training", "step", "expected"),
    [
        ("run_pretrain", 4, [(0, 11), (3, 11), (4, 11), (6, 11), (9, 11)]),
        ("run_pretrain", 3, [(0, 11), (3, 11), (3, 11), (3, 11), (6, 11), (9, 11)]),
        ("run_finetune", 4, [(0, 15), (4, 15), (5, 15), (10, 15)]),
    ],
)
def test_progress_goes_on_where_it_was(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    training: str,
    step: int,
    expected: list[tuple[int, int]],
) -> None:
    run = request.getfixturevalue(training)
    shown: list[tuple[int, int]] = []

    def track(steps: Any, _: str, total: int, __: str, before: int) -> Any:
        shown.append((before, total))
        return steps

    for module in ("trainer", "finetune_trainer"):
        monkeypatch.setattr(f"receiptbert.{module}.track", track)
    with pytest.raises(Cut):
        run(before_step=at(step, cut))
    run()
    assert shown == expected


def test_the_event_log_has_every_step_once(run_pretrain: Callable[..., Result], tmp_path: Path) -> None:
    with pytest.raises(Cut):
        run_pretrain(at(6, cut), logdir=str(tmp_path / "first"))
    run_pretrain(logdir=str(tmp_path / "second"))
    assert list(logged(tmp_path / "first")["MLM"]) == list(range(1, 12))
    assert not (tmp_path / "second").exists()


def test_the_event_log_has_every_score_once(run_finetune: Callable[..., Result], tmp_path: Path) -> None:
    run_finetune(logdir=str(tmp_path / "whole"))
    expected = logged(tmp_path / "whole")
    step, _ = expected["eval_loss"]
    with pytest.raises(Cut):  # after the first score, and before the step that follows
        run_finetune(at(step, cut), logdir=str(tmp_path / "first"))
    run_finetune()
    assert logged(tmp_path / "first") == expected


def test_a_resumed_log_forgets_the_steps_that_are_done_again(tmp_path: Path) -> None:
    device, losses = torch.device("cpu"), {1: 0.9, 2: 0.8, 3: 0.7, 4: 0.6}
    interrupted, resumed = History(device, str(tmp_path)), History(device, None)
    for step, loss in losses.items():
        interrupted.log({"loss": loss}, step)
    interrupted.close()
    resumed.resume([{"step": 1, "loss": 0.9}, {"step": 2, "loss": 0.8}], str(tmp_path))
    resumed.log({"loss": 0.5}, 3)
    resumed.close()
    assert logged(tmp_path)["loss"] == pytest.approx({1: 0.9, 2: 0.8, 3: 0.5})


@pytest.mark.parametrize("left_on_way", [0, 1])  # on a GPU the newest steps have yet to arrive
def test_steps_of_a_failed_run_in_this_process_are_not_noted_twice(
    pretrainer: Make,
    pretrain_loader: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    left_on_way: int,
) -> None:
    """As in a notebook: what ended it was no signal, so nothing was saved after the checkpoint."""
    monkeypatch.setattr("receiptbert.history.RECENT_STEPS", 1)
    with Checkpoints(tmp_path / "notebook", "parameters", seconds=0) as checkpoints:
        trainer = pretrainer(checkpoints=checkpoints)
        trainer._history._left_on_way = left_on_way
        watch(trainer, at(3, lambda _: setattr(checkpoints, "_seconds", 3600)))
        watch(trainer, at(6, cut))
        loader = pretrain_loader()
        with pytest.raises(Cut):
            trainer.train(loader, 4, max_steps=8)
        trainer.train(loader, 4, max_steps=8)
    assert [record["step"] for record in trainer.history] == list(range(1, 9))


def test_a_loss_that_is_no_number_ends_the_training_and_spares_the_checkpoint(
    run_pretrain: Callable[..., Result],
) -> None:
    def spoil(trainer: Any) -> None:
        next(trainer._model.parameters()).data.fill_(torch.nan)

    whole = run_pretrain()
    with pytest.raises(UserError, match="the MLM loss became nan at step 4; lower lr"):
        run_pretrain(at(3, spoil))
    begun: list[int] = []
    assert_equal(run_pretrain(lambda trainer: begun.append(trainer._step)), whole)
    assert begun[0] == 3


def test_a_gradient_that_is_no_number_ends_the_training(pretrainer: Make, pretrain_loader: Make) -> None:
    trainer = pretrainer()
    overflow(trainer)
    with pytest.raises(UserError, match=r"^the gradient became inf at step 1; lower lr or max_grad_norm"):
        trainer.train(pretrain_loader(), 1, max_steps=1)


def test_a_training_goes_on_where_conditions_have_other_names(
    run_pretrain: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a CPU to a GPU, which has more of them, and back."""
    on_cpu, on_gpu = {"device": "cpu", "threads": 2}, {"device": "H200", "deterministic": True, "threads": 2}
    for step, now in ((3, on_cpu), (6, on_gpu), (9, on_cpu)):
        monkeypatch.setattr("receiptbert.resumption.conditions", lambda *_, now=now: now)
        with pytest.raises(Cut):
            run_pretrain(at(step, cut))
    said = [line for line in capsys.readouterr().err.splitlines() if " was " in line]
    assert [line.split(":")[0] for line in said] == ["device was cpu, is H200", "device was H200, is cpu"]
