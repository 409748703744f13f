"""Passes replayed from a CUDA graph train as others do. Without a GPU each is only computed anew."""

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.utils.data import DataLoader

from receiptbert import (
    Collator,
    FinetuneDataset,
    FinetuneTrainer,
    PretrainDataset,
    Scheduler,
    Trainer,
    WordpieceTokenizer,
    collate_fn,
    get_optimizer,
)
from receiptbert.base_trainer import BaseTrainer
from receiptbert.checkpoints import Checkpoints
from receiptbert.cuda_graphs import Compute, GraphedPasses, _Recorded, can_capture
from receiptbert.errors import Interrupted
from receiptbert.modeling import dropout_everywhere
from receiptbert.partial_embedding import only_tokens, tokens_in
from receiptbert.sampling import LengthGroupedBatchSampler
from receiptbert.token_store import TokenStore
from tests.conftest import Cut, Make
from tests.small_trainings import labelled

History = list[dict[str, float]]


class Replay:
    """A graph that computes anew what one on a GPU would replay."""

    def __init__(self, run: Callable[[], None]) -> None:
        self.replay = run


class PassesOnCpu(GraphedPasses):
    """All but the recording itself."""

    def _record(self, inputs: tuple[torch.Tensor, ...], compute: Compute) -> _Recorded:
        places = tuple(tensor.clone() for tensor in inputs)
        with torch.random.fork_rng():  # recording draws no random numbers
            noted = compute(*places)[1]
        values = torch.zeros(len(noted))

        def replay() -> None:
            loss, noted = compute(*places)
            torch._foreach_add_(self._gradients, torch.autograd.grad(loss, list(self._parameters)))
            values.copy_(torch.stack([value.detach() for value in noted.values()]))

        return _Recorded(cast(Any, Replay(replay)), places, list(noted), values)

    def _record_update(self, step: Callable[[], torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        norm = torch.zeros(())
        return cast(Any, Replay(lambda: norm.copy_(step()))), norm


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no GPU")
    else:
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
        monkeypatch.setattr(torch.cuda, "Stream", lambda _device: None)
        monkeypatch.setattr(
            BaseTrainer, "_make_graphs", lambda trainer: PassesOnCpu(list(trainer._model.parameters()))
        )
    return cast(str, request.param)


def test_passes_are_recorded_where_they_do_no_more_than_launch_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = torch.device("cuda")
    assert can_capture(gpu, False, "torch")
    assert not can_capture(gpu, True, "torch")
    assert not can_capture(gpu, False, "apex")
    assert not can_capture(torch.device("cpu"), False, "torch")
    with monkeypatch.context() as patch:
        patch.setattr("receiptbert.cuda_graphs.num_processes", lambda: 2)
        assert not can_capture(gpu, False, "torch")
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert not can_capture(gpu, False, "torch")


DROPOUT = dropout_everywhere(0.1)


@pytest.fixture
def pretrain(
    texts: list[str], tokenizer: WordpieceTokenizer, pretrain_model: Make, device: str
) -> Callable[..., History]:
    def run(
        epochs: int = 4,
        before_step: Callable[[int], None] = lambda _: None,
        **kwargs: Any,
    ) -> History:
        dataset = PretrainDataset(texts, tokenizer, minlen=3, maxlen=12, device=device)
        sampler = LengthGroupedBatchSampler(dataset.shown_lengths, 40)
        collate = Collator(tokenizer, mask_prob=0.3, whole_words=True)
        loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate)
        bert = pretrain_model().to(device)
        optimizer = get_optimizer(bert)
        schedule = Scheduler(optimizer, 0.0, 5e-3, 0.0, 2, epochs * len(sampler))
        torch.manual_seed(1)
        trainer = Trainer(
            bert, optimizer, schedule, tokenizer.pad_token_id, device, max_grad_norm=1.0, **kwargs
        )
        step = trainer._optimize
        trainer._optimize = lambda noted: (before_step(trainer._step), step(noted))  # type: ignore[method-assign]
        try:
            trainer.train(loader, epochs)
        except Interrupted:
            trainer.train(loader, epochs)
        if trainer._graphs is not None:
            assert len(trainer._graphs._recorded) > 1
        return trainer.history

    return run


@pytest.fixture
def finetune(
    texts: list[str], tokenizer: WordpieceTokenizer, finetune_model: Make, device: str
) -> Callable[..., History]:
    def run(model: dict[str, float] | None = None, **kwargs: Any) -> History:
        lines, targets = labelled(texts)
        dataset = FinetuneDataset(lines, targets, tokenizer, maxlen=12, device=device)
        sampler = LengthGroupedBatchSampler(dataset.shown_lengths, 40)
        collate = partial(collate_fn, pad_idx=tokenizer.pad_token_id)
        loaders: dict[str, Any] = {
            "train": DataLoader(dataset, batch_sampler=sampler, collate_fn=collate),
            "eval": DataLoader(dataset, batch_size=33, collate_fn=collate),
        }
        bert = finetune_model(**(model or {})).to(device)
        torch.manual_seed(1)
        with only_tokens(bert, tokens_in(TokenStore.from_texts(lines, tokenizer), tokenizer)):
            optimizer = get_optimizer(bert, layer_lr_decay=0.5)
            schedule = Scheduler(optimizer, 0.0, 5e-3, 0.0, 2, 4 * len(sampler))
            trainer = FinetuneTrainer(bert, optimizer, schedule, tokenizer.pad_token_id, device, **kwargs)
            trainer.train(loaders, 4)
        if trainer._graphs is not None:
            assert len(trainer._graphs._recorded) > 1
        return trainer.history

    return run


@pytest.fixture
def as_usual(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], History]], History]:
    def run(train: Callable[[], History]) -> History:
        with monkeypatch.context() as patch:
            patch.setattr(BaseTrainer, "_make_graphs", lambda _: None)
            return train()

    return run


def values(history: History) -> Iterator[Any]:
    for record in history:
        yield pytest.approx(record, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_accum_steps": 3},
        {"precision": "bf16"},
        {"precision": "fp16"},
    ],
    ids=["fp32", "accumulation", "bf16", "fp16"],
)
def test_pretraining_learns_the_same(
    pretrain: Callable[..., History], as_usual: Callable[..., History], settings: dict[str, Any]
) -> None:
    assert pretrain(**settings) == list(values(as_usual(partial(pretrain, **settings))))


@pytest.mark.parametrize("settings", [{}, {"model": DROPOUT}, {"precision": "bf16"}, {"precision": "fp16"}])
def test_finetuning_learns_the_same(
    finetune: Callable[..., History], as_usual: Callable[..., History], settings: dict[str, Any]
) -> None:
    assert finetune(**settings) == list(values(as_usual(partial(finetune, **settings))))


def test_shapes_beyond_a_number_are_run_as_usual(
    pretrain: Callable[..., History],
    as_usual: Callable[..., History],
    monkeypatch: pytest.MonkeyPatch,
    device: str,
) -> None:
    recorded = []
    used = PassesOnCpu if device == "cpu" else GraphedPasses
    record = used._record
    monkeypatch.setattr(used, "_record", lambda self, *given: recorded.append(1) or record(self, *given))
    monkeypatch.setattr("receiptbert.cuda_graphs.MAX_GRAPHS", 2)
    assert pretrain() == list(values(as_usual(pretrain)))
    assert len(recorded) == 2


def test_a_training_that_was_cut_off_goes_on_as_if_it_were_not(
    pretrain: Callable[..., History], tmp_path: Path
) -> None:
    def cut(step: int) -> None:
        if step == 21:
            raise Cut

    whole = pretrain(8)
    with Checkpoints(tmp_path / "pretrain", "parameters", seconds=0) as checkpoints:
        with pytest.raises(Cut):
            pretrain(8, before_step=cut, checkpoints=checkpoints)
        assert pretrain(8, checkpoints=checkpoints) == list(values(whole))


def test_a_trainer_that_was_interrupted_can_train_on(
    pretrain: Callable[..., History], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    interrupted: list[int] = []

    def interrupt(step: int) -> None:
        if step == 21 and not interrupted:
            interrupted.append(step)
            os.kill(os.getpid(), signal.SIGINT)

    whole = pretrain(8)
    of_steps = []
    record = PassesOnCpu._record_update
    monkeypatch.setattr(
        PassesOnCpu, "_record_update", lambda self, step: of_steps.append(step) or record(self, step)
    )
    with Checkpoints(tmp_path / "pretrain", "parameters", seconds=60) as checkpoints:
        assert pretrain(8, before_step=interrupt, checkpoints=checkpoints) == list(values(whole))
    # What is recorded reads the optimizer's tensors of its time, which are others after the interruption.
    assert len(of_steps) == (2 if device == "cpu" else 0)
