"""Which texts make a batch, and in which order the batches come."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from receiptbert.flat_texts import NUM_MARKS


class LengthGroupedBatchSampler(Sampler[list[int]]):
    """Batches of texts of like length, each with about as many tokens as the others.

    Padding is next to nothing, and a batch of long texts takes no more memory than one of short texts. They
    come in random order, other batches in every epoch: no epoch begins with the short texts and ends with the
    long ones, which the falling learning rate would leave untrained.

    Args:
        lengths: tokens of each text, shape (n,).
        batch_size: texts in a batch, on average.
        seed: with the same seed, the same batches.
        shuffle: if False, the shortest texts come first, in every epoch the same.
    """

    def __init__(self, lengths: Tensor, batch_size: int, seed: int = 0, shuffle: bool = True) -> None:
        super().__init__()
        self._lengths = lengths
        self._generator = torch.Generator().manual_seed(seed)
        self._shuffle = shuffle
        self._skipped = 0
        # The token that ends each text, counted over all texts; it tells the text's batch.
        ends = (lengths.sort().values + NUM_MARKS).cumsum(0)
        num_batches = -(-len(lengths) // batch_size)
        number = (ends - 1) * num_batches // ends[-1:]  # (n,), not falling
        self._sizes = torch.unique_consecutive(number, return_counts=True)[1].tolist()

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def state(self) -> Tensor:
        """Of the random generator: it decides the next epoch and those after it."""
        return self._generator.get_state()

    def resume(self, state: Tensor, batches: int) -> None:
        """Have the next epoch be the one that began at ``state``, without its first ``batches``."""
        self._generator.set_state(state)
        self._skipped = batches

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(len(self._lengths))
        if self._shuffle:
            # Sorting a shuffled list keeps equally long texts shuffled: that is what changes the batches.
            order = torch.randperm(len(self._lengths), generator=self._generator)
        order = order[torch.argsort(self._lengths[order], stable=True)]
        batches = torch.split(order, self._sizes)
        numbers = torch.arange(len(batches))
        if self._shuffle:
            numbers = torch.randperm(len(batches), generator=self._generator)
        skipped, self._skipped = self._skipped, 0
        for number in numbers[skipped:].tolist():
            yield batches[number].tolist()
