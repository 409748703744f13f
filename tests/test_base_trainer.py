"""What a step is: batches accumulated, gradients clipped, a rate of the schedule, a record in the history."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch

from receiptbert.optimization import num_optimizer_steps
from tests.conftest import Cut, Make


def test_a_training_that_was_cut_off_leaves_no_gradients_to_the_next(
    pretrainer: Make, pretrain_loader: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = pretrainer(num_accum_steps=2)
    model, backward, losses = trainer._model, trainer._backward, []

    def cut_off_the_second(loss: torch.Tensor) -> None:
        losses.append(loss)
        if len(losses) == 2:
            raise Cut
        backward(loss)

    monkeypatch.setattr(trainer, "_backward", cut_off_the_second)
    with pytest.raises(Cut):
        trainer.train(pretrain_loader(), 1)
    assert any(parameter.grad is not None for parameter in model.parameters())
    trainer.train([], 0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_there_must_be_something_to_train_on(pretrainer: Make, finetuner: Make) -> None:
    with pytest.raises(ValueError, match="no batches"):
        pretrainer().train([], 1)
    trainer, loaders = finetuner()
    with pytest.raises(ValueError, match="no batches"):
        trainer.train(loaders | {"train": []}, 1)


def test_accumulated_batches_are_one_step(pretrainer: Make, pretrain_loader: Make) -> None:
    """Twice the same batch accumulated is that batch once; 5 batches at 2 a step are 3 steps."""
    torch.manual_seed(3)
    batch = next(iter(pretrain_loader()))
    once, trainer = pretrainer(), pretrainer(num_accum_steps=2)
    once.train([batch], 3)
    trainer.train([batch, batch], 3)
    for a, b in zip(once._model.parameters(), trainer._model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    for name in ("grad_norm", "MLM"):  # AdamW hardly sees a constant factor of the gradients
        records = [record[name] for record in trainer.history]
        assert records == pytest.approx([record[name] for record in once.history], rel=1e-4)
    trainer.train([batch] * 5, 1)
    assert len(trainer.history) == 3 + 3


def test_each_batch_has_random_numbers_of_its_own(
    pretrainer: Make, pretrain_loader: Make, finetuner: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions = []

    def note(_: torch.device, *position: int) -> AbstractContextManager[None]:
        positions.append(position)
        return nullcontext()

    monkeypatch.setattr("receiptbert.base_trainer.own_random_numbers", note)
    batch = next(iter(pretrain_loader()))
    pretrainer(num_accum_steps=2).train([batch] * 5, 2)
    assert len(set(positions)) == 10
    positions.clear()
    trainer, loaders = finetuner()
    trainer.train(loaders, 2)
    assert len(set(positions)) == 2 * len(loaders["train"]) > 2


@pytest.mark.parametrize(
    ("batches", "epochs", "accumulated", "steps"), [(5, 2, 1, 10), (5, 2, 2, 6), (4, 3, 4, 3)]
)
def test_schedule_is_as_long_as_the_training(
    pretrainer: Make, pretrain_loader: Make, batches: int, epochs: int, accumulated: int, steps: int
) -> None:
    assert num_optimizer_steps(batches, epochs, accumulated) == steps
    batch = next(iter(pretrain_loader()))
    trainer = pretrainer(steps=steps, num_accum_steps=accumulated)
    trainer.train([batch] * batches, epochs)
    rates = [record["lr"] for record in trainer.history]
    assert len(rates) == steps
    assert rates[-1] > 0
    assert trainer._scheduler.get_last_lr()[0] == 0.0


def test_gradients_are_clipped_and_their_norm_logged(pretrainer: Make, pretrain_loader: Make) -> None:
    trainer = pretrainer(max_grad_norm=1e-3)
    norms = []
    step = trainer._optimizer.step
    trainer._optimizer.step = lambda: (
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in trainer._model.parameters()]).item()),
        step(),
    )
    trainer.train(pretrain_loader(), 1)
    assert norms == pytest.approx([1e-3] * len(trainer.history), rel=1e-2)
    assert all(record["grad_norm"] > 1e-3 for record in trainer.history)


def test_without_a_limit_gradients_stay_as_they_are(
    pretrainer: Make, pretrain_loader: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = pretrainer()
    backward = trainer._backward
    monkeypatch.setattr(trainer, "_backward", lambda loss: backward(1000 * loss))
    norms = []

    def note_norm(*_: Any) -> None:
        gradients = [parameter.grad for parameter in trainer._model.parameters()]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())

    trainer._optimizer.register_step_pre_hook(note_norm)
    trainer.train(pretrain_loader(), 1)
    assert norms == pytest.approx([record["grad_norm"] for record in trainer.history])
    assert min(norms) > 10


@pytest.mark.parametrize("left", [0, 1])
def test_the_history_is_whole_however_late_the_device_sends_it(
    pretrainer: Make, pretrain_loader: Make, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    monkeypatch.setattr("receiptbert.history.RECENT_STEPS", 3)
    trainer = pretrainer()
    trainer._history._left_on_way = left
    behind = []
    step = trainer._optimize

    def optimize(losses: dict[str, torch.Tensor]) -> None:
        step(losses)
        behind.append(trainer._step - len(trainer.history))

    monkeypatch.setattr(trainer, "_optimize", optimize)
    trainer.train(pretrain_loader(), 2)
    assert [record["step"] for record in trainer.history] == list(range(1, trainer._step + 1))
    assert max(behind) == 3 * left + 2
    usual = pretrainer()
    usual.train(pretrain_loader(), 2)
    assert [sorted(record) for record in trainer.history] == [sorted(record) for record in usual.history]


def test_of_accumulated_batches_the_mean_losses_and_all_tokens_are_told(
    pretrainer: Make, pretrain_loader: Make
) -> None:
    batches = list(pretrain_loader())[:2]
    alone, together = [pretrainer() for _ in batches], pretrainer(num_accum_steps=2)
    for trainer, batch in zip(alone, batches, strict=True):
        trainer.train([batch], 1)
    together.train(batches, 1)
    (record,), (one, other) = together.history, (trainer.history[0] for trainer in alone)
    assert together.tokens_seen == one["tokens"] + other["tokens"]
    for part in ("MLM", "SOP"):
        assert record[part] == pytest.approx((one[part] + other[part]) / 2)
