"""Which texts make a batch, and in which order the batches come."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from receiptbert.flat_texts import SPECIAL_TOKENS_PER_TEXT


class LengthGroupedBatchSampler(Sampler[list[int]]):
    """Batches of texts of similar length, each with about as many tokens as the others.

    There is next to no padding, and a batch of long texts takes no more memory than one of short texts,
    unless a text is far longer than the next shorter ones, which are padded to its length. Batches come in
    random order and differ from epoch to epoch. With the shortest texts first, the model would end each epoch
    adapted to long ones; and in a training of a single epoch these would come when the learning rate is
    nearly 0.

    Args:
        lengths: tokens of each text, shape (n,).
        batch_size: texts in a batch, on average.
        seed: with the same seed, the same batches.
        shuffle: if False, the shortest texts come first, the same in every epoch.
    """

    def __init__(self, lengths: Tensor, batch_size: int, seed: int = 0, shuffle: bool = True) -> None:
        super().__init__()
        self._lengths = lengths
        self._generator = torch.Generator().manual_seed(seed)
        self._shuffle = shuffle
        self._skipped = 0
        self._num_batches = math.ceil(len(lengths) / batch_size)

    def __len__(self) -> int:
        return self._num_batches

    @property
    def state(self) -> Tensor:
        """What decides the next epoch and those after it: the random generator's state, in bytes."""
        return self._generator.get_state()

    def resume(self, state: Tensor, batches: int) -> None:
        """Make the next epoch the one that began at ``state``, without its first ``batches``."""
        self._generator.set_state(state)
        self._skipped = batches

    def __iter__(self) -> Iterator[list[int]]:
        texts = self._next_texts()
        if self._shuffle:
            # A stable sort keeps equally long texts shuffled: that is what varies the batches.
            texts = texts[torch.randperm(len(texts), generator=self._generator)]
        texts = texts[torch.argsort(self._lengths[texts], stable=True)]
        batches = torch.split(texts, batch_sizes(self._lengths[texts], self._num_batches))
        numbers = torch.arange(len(batches))
        if self._shuffle:
            numbers = torch.randperm(len(batches), generator=self._generator)
        skipped, self._skipped = self._skipped, 0
        for number in numbers[skipped:].tolist():
            yield batches[number].tolist()

    def _next_texts(self) -> Tensor:
        """The texts of the next epoch, in any order."""
        return torch.arange(len(self._lengths))


class MixtureBatchSampler(LengthGroupedBatchSampler):
    """Epochs of all labelled texts with the next of the unlabelled ones mixed in.

    There are as many batches as without the unlabelled texts, and each has as many labelled ones on average.

    Args:
        lengths: tokens of each text, shape (n + U,), the n labelled ones first.
        num_labelled: n.
        num_drawn: unlabelled texts in an epoch, at most U.
        batch_size: labelled texts in a batch, on average.
        seed: with the same seed, the same batches.
    """

    def __init__(
        self, lengths: Tensor, num_labelled: int, num_drawn: int, batch_size: int, seed: int = 0
    ) -> None:
        super().__init__(lengths, batch_size, seed)
        self._num_batches = math.ceil(num_labelled / batch_size)
        self._num_labelled = num_labelled
        self._num_unlabelled = len(lengths) - num_labelled
        self._num_drawn = num_drawn
        self._next = 0  # index among the unlabelled texts

    @property
    def state(self) -> Tensor:
        """What decides the next epoch and those after it, in bytes."""
        return torch.cat([super().state, torch.tensor([self._next]).view(torch.uint8)])

    def resume(self, state: Tensor, batches: int) -> None:
        """Make the next epoch the one that began at ``state``, without its first ``batches``."""
        super().resume(state[:-8], batches)
        self._next = int(state[-8:].clone().view(torch.int64))

    def _next_texts(self) -> Tensor:
        drawn = (self._next + torch.arange(self._num_drawn)) % max(self._num_unlabelled, 1)
        self._next += self._num_drawn
        return torch.cat([torch.arange(self._num_labelled), self._num_labelled + drawn])


def batch_sizes(lengths: Tensor, num_batches: int) -> list[int]:
    """How many texts go into each batch, so that all have about as many tokens, and none is empty.

    Texts of 1, 1, 2, 3 and 7 tokens, with ``[CLS]`` and ``[SEP]`` of 3, 3, 4, 5 and 9, end at tokens 3, 6,
    10, 15 and 24. Of two batches, the first has the texts that end in the first 12 tokens: three of them.

    Args:
        lengths: tokens of each text, the shortest first, shape (n,).
        num_batches: at most n.
    """
    if not num_batches:
        return []
    # The number of tokens up to the end of each text; it decides the text's batch.
    ends = (lengths + SPECIAL_TOKENS_PER_TEXT).cumsum(0)
    batch = (ends - 1) * num_batches // ends[-1]  # (n,), non-decreasing
    numbers = torch.arange(num_batches + 1)
    starts = torch.searchsorted(batch, numbers)  # (num_batches + 1,): the last is n
    # A text longer than a batch leaves batches next to its own empty; each of these takes a text nearby: it
    # starts at least one text after the one before it, and leaves at least one to each that follows.
    starts = (starts - numbers).cummax(0).values + numbers
    starts = torch.minimum(starts, len(lengths) - numbers.flip(0))
    return starts.diff().tolist()


def largest_batch_ratio(lengths: Tensor, num_batches: int) -> float:
    """Tokens of the largest batch, padding included, as a multiple of what a batch has on average.

    Args:
        lengths: tokens of each text, shape (n,).
        num_batches: from 1 to n.
    """
    lengths = lengths.sort().values
    sizes = torch.tensor(batch_sizes(lengths, num_batches))
    widths = lengths[sizes.cumsum(0) - 1] + SPECIAL_TOKENS_PER_TEXT
    mean = (lengths + SPECIAL_TOKENS_PER_TEXT).sum() / num_batches
    return float((sizes * widths).max() / mean)
