"""Batches for training: one after another on a CPU, many at once on a GPU."""

from collections.abc import Callable, Iterator, Sized
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from receiptbert.datasets import FinetuneDataset, PretrainDataset
from receiptbert.sampling import LengthGroupedBatchSampler

TOKENS_AT_ONCE = 2**19  # padding included

Collate = Callable[[Any], tuple[Tensor, ...]]


class Batches(Sized, Protocol):
    """What a trainer needs from a ``DataLoader``."""

    def __iter__(self) -> Iterator[Any]: ...


class ManyAtOnce:
    """The batches of a ``DataLoader``, made many at once.

    On a GPU a batch is made by dozens of small kernels, each of which takes longer to launch than to run.

    Args:
        dataset: on a GPU.
        batch_sampler: which texts make a batch.
        collate_fn: takes what the dataset makes; the 2-D integer tensors have a column per token.
    """

    def __init__(
        self,
        dataset: PretrainDataset | FinetuneDataset,
        batch_sampler: LengthGroupedBatchSampler,
        collate_fn: Collate,
    ) -> None:
        self.dataset = dataset
        self.batch_sampler = batch_sampler
        self._collate = collate_fn

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for some in self._blocks():
            tensors = self._collate(self.dataset.__getitems__([text for batch, _ in some for text in batch]))
            sizes = [len(batch) for batch, _ in some]
            split = zip(*(torch.split(tensor, sizes) for tensor in tensors), strict=True)
            for (_, width), parts in zip(some, split, strict=True):
                yield tuple(part[:, :width] if _is_of_tokens(part) else part for part in parts)

    def _blocks(self) -> Iterator[list[tuple[list[int], int]]]:
        """The batches that are made at once, with their columns: of ``TOKENS_AT_ONCE`` tokens at most, or a
        single one."""
        block: list[tuple[list[int], int]] = []
        texts = widest = 0
        for batch in self.batch_sampler:
            width = self.dataset.width(batch)
            texts, widest = texts + len(batch), max(widest, width)
            if block and texts * widest > TOKENS_AT_ONCE:
                yield block
                block, texts, widest = [], len(batch), width
            block.append((batch, width))
        if block:
            yield block


def make_loader(
    dataset: PretrainDataset | FinetuneDataset,
    batch_sampler: LengthGroupedBatchSampler,
    collate_fn: Collate,
) -> Batches:
    """The batches of ``dataset``, on its device.

    A resumed run begins to make them where it was interrupted, with different random numbers if that is
    amid many made at once. So where runs must be deterministic, batches are made one after another.
    """
    if dataset.device.type == "cpu" or torch.are_deterministic_algorithms_enabled():
        return DataLoader(dataset, batch_sampler=batch_sampler, collate_fn=collate_fn)
    return ManyAtOnce(dataset, batch_sampler, collate_fn)


def _is_of_tokens(part: Tensor) -> bool:
    """(B, S) ids, segments or labels, as opposed to (B, C) class probabilities."""
    return part.dim() == 2 and not part.is_floating_point()
