"""Many batches made at once are those that are made one after another."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from receiptbert import Collator, FinetuneDataset, PretrainDataset, WordpieceTokenizer, collate_fn
from receiptbert.loading import ManyAtOnce, make_loader
from receiptbert.sampling import LengthGroupedBatchSampler

Batch = tuple[torch.Tensor, ...]


@pytest.fixture
def both() -> Callable[..., tuple[list[Batch], list[Batch]]]:
    def make(dataset: Any, collate: Any) -> tuple[list[Batch], list[Batch]]:
        lengths = dataset.shown_lengths
        alone = make_loader(dataset, LengthGroupedBatchSampler(lengths, 20), collate)
        together = ManyAtOnce(dataset, LengthGroupedBatchSampler(lengths, 20), collate)
        assert len(alone) == len(together)
        return list(alone), list(together)

    return make


@pytest.fixture(params=[1, 500, 1500, 2**19], ids=["singly", "two", "several", "all"])
def _tokens_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("receiptbert.loading.TOKENS_AT_ONCE", request.param)


@pytest.mark.usefixtures("_tokens_at_once")
@pytest.mark.parametrize("probabilities", [False, True])
def test_of_finetuning(
    both: Callable[..., Any], texts: list[str], tokenizer: WordpieceTokenizer, probabilities: bool
) -> None:
    # As many classes as a wide batch has columns: they are no tokens.
    targets = np.random.default_rng(0).random((len(texts), 14)) if probabilities else np.arange(len(texts))
    dataset = FinetuneDataset(texts, targets, tokenizer, maxlen=12)
    alone, together = both(dataset, partial(collate_fn, pad_idx=tokenizer.pad_token_id))
    for one, other in zip(alone, together, strict=True):
        assert all(map(torch.equal, one, other))


@pytest.mark.usefixtures("_tokens_at_once")
def test_of_pretraining(both: Callable[..., Any], texts: list[str], tokenizer: WordpieceTokenizer) -> None:
    """What chance does differs: compared are true ids without regard to their order."""

    def true_ids(batch: Batch) -> torch.Tensor:
        input_ids, _, labels, _ = batch
        return torch.where(labels == -100, input_ids, labels).sort(dim=1).values

    dataset = PretrainDataset(texts, tokenizer, minlen=1, maxlen=60)
    alone, together = both(dataset, Collator(tokenizer, mask_prob=0.3))
    for one, other in zip(alone, together, strict=True):
        assert [part.shape for part in one] == [part.shape for part in other]
        assert torch.equal(true_ids(one), true_ids(other))
        assert (other[1].sum(1) > 0).any()


def test_a_long_text_does_not_pad_thousands(
    tokenizer: WordpieceTokenizer, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiptbert.loading.TOKENS_AT_ONCE", 2000)
    dataset = FinetuneDataset([*texts, "чай " * 300], np.arange(len(texts) + 1), tokenizer, maxlen=300)
    made: list[torch.Size] = []

    def collate(items: Any) -> Batch:
        batch = collate_fn(items, tokenizer.pad_token_id)
        made.append(batch[0].shape)
        return batch

    batches = ManyAtOnce(dataset, LengthGroupedBatchSampler(dataset.shown_lengths, 4), collate)
    assert sum(len(targets) for _, targets in batches) == len(dataset)
    assert max(width for _, width in made) > 300
    assert all(number * width <= 2000 for number, width in made)
    assert len(made) < len(batches) / 2


@pytest.mark.usefixtures("_tokens_at_once")
def test_a_resumed_epoch_begins_with_the_next_batch(texts: list[str], tokenizer: WordpieceTokenizer) -> None:
    dataset = FinetuneDataset(texts, np.arange(len(texts)), tokenizer, maxlen=12)
    sampler = LengthGroupedBatchSampler(dataset.lengths, 20)
    loader = ManyAtOnce(dataset, sampler, partial(collate_fn, pad_idx=tokenizer.pad_token_id))
    state = sampler.state
    whole = [targets.tolist() for _, targets in loader]
    sampler.resume(state, 3)
    assert [targets.tolist() for _, targets in loader] == whole[3:]


@pytest.mark.parametrize(
    ("device", "deterministic", "expected"),
    [("cpu", False, DataLoader), ("meta", False, ManyAtOnce), ("meta", True, DataLoader)],
)
def test_batches_are_made_at_once_on_a_gpu_that_need_not_be_deterministic(
    texts: list[str],
    tokenizer: WordpieceTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    deterministic: bool,
    expected: type,
) -> None:
    """For a GPU stands torch's device without data."""
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    dataset = PretrainDataset(texts, tokenizer, minlen=1, maxlen=60, device=device)
    loader = make_loader(dataset, LengthGroupedBatchSampler(dataset.lengths, 20), Collator(tokenizer))
    assert type(loader) is expected
