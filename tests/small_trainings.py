"""Trainers and loaders for trainings of a few small batches."""

from functools import partial
from typing import Any

import pytest
from torch.utils.data import DataLoader

from receiptbert import (
    BertFinetuneModel,
    BertModel,
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
from receiptbert.sampling import LengthGroupedBatchSampler
from tests.conftest import Make


def labelled(texts: list[str]) -> tuple[list[str], list[int]]:
    """Texts with a class that one word of each gives away."""
    targets = [len(text) % 3 for text in texts]
    return [f"{'абв'[target]} {text}" for text, target in zip(texts, targets, strict=True)], targets


@pytest.fixture
def pretrainer(tokenizer: WordpieceTokenizer, pretrain_model: Make) -> Make:
    """Make a ``Trainer`` of a small model; keyword arguments go to it."""

    def make(model: BertModel | None = None, steps: int = 20, **kwargs: Any) -> Trainer:
        model = model or pretrain_model()
        optimizer = get_optimizer(model)
        schedule = Scheduler(optimizer, 0.0, 5e-3, 0.0, 2, steps)
        return Trainer(model, optimizer, schedule, tokenizer.pad_token_id, "cpu", **kwargs)

    return make


@pytest.fixture
def pretrain_loader(texts: list[str], tokenizer: WordpieceTokenizer) -> Make:
    """Make a loader for ``pretrainer``, which begins with the first epoch."""

    def make(texts: list[str] = texts) -> DataLoader[Any]:
        dataset = PretrainDataset(texts, tokenizer, minlen=3, maxlen=12)
        sampler = LengthGroupedBatchSampler(dataset.lengths, 40)
        return DataLoader(dataset, batch_sampler=sampler, collate_fn=Collator(tokenizer))

    return make


@pytest.fixture
def finetuner(texts: list[str], tokenizer: WordpieceTokenizer, finetune_model: Make) -> Make:
    """Make a ``FinetuneTrainer`` of a small model, and its loaders of ``labelled`` texts."""

    def make(
        model: BertFinetuneModel | None = None, texts: list[str] = texts, **kwargs: Any
    ) -> tuple[FinetuneTrainer, dict[str, Any]]:
        lines, targets = labelled(texts)
        dataset = FinetuneDataset(lines, targets, tokenizer, maxlen=12)
        collate = partial(collate_fn, pad_idx=tokenizer.pad_token_id)
        sampler = LengthGroupedBatchSampler(dataset.lengths, 40)
        loaders = {
            "train": DataLoader(dataset, batch_sampler=sampler, collate_fn=collate),
            "eval": DataLoader(dataset, batch_size=33, collate_fn=collate),
        }
        model = model or finetune_model()
        optimizer = get_optimizer(model)
        schedule = Scheduler(optimizer, 0.0, 5e-3, 0.0, 2, 40)
        return FinetuneTrainer(model, optimizer, schedule, tokenizer.pad_token_id, "cpu", **kwargs), loaders

    return make
