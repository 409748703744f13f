"""Datasets of the assignment: texts for pretraining, for finetuning, and for prediction."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from receiptbert.flat_texts import FlatTexts, cut
from receiptbert.token_store import TokenStore
from receiptbert.tokenization import WordpieceTokenizer

# Raw texts, or texts tokenized beforehand.
Texts: TypeAlias = Sequence[str] | TokenStore

Item = TypeVar("Item")


class SegmentPairs(NamedTuple):
    """A batch for pretraining: ``[CLS] left [SEP] right``, padded to S, the most tokens of a text + 2."""

    input_ids: Tensor  # (B, S) int64
    # (B, S) int64: 0 for [CLS], the segment that comes first, [SEP] and padding, 1 for the other segment
    token_type_ids: Tensor
    permuted: Tensor  # (B,) bool: were the two segments swapped?


class LabelledTexts(NamedTuple):
    """A batch for finetuning: ``[CLS] text [SEP]``, padded to S, the most tokens of a text + 2."""

    input_ids: Tensor  # (B, S) int64
    targets: Tensor  # (B,) int64, or (B, C) float32: probabilities of the classes


class _Batched(Dataset[Item]):
    """A dataset that makes batches on a device and can tell their shape beforehand."""

    def __init__(self, texts: FlatTexts, maxlen: int | None) -> None:
        super().__init__()
        self._texts = texts
        self._maxlen = maxlen

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each text, shape (n,)."""
        return self._texts.lengths

    @property
    def shown_lengths(self) -> Tensor:
        """Tokens of each text that are shown, shape (n,): what a batch sampler should know."""
        return cut(self.lengths, self._maxlen)

    @property
    def device(self) -> torch.device:
        """Where batches are made."""
        return self._texts.device

    def width(self, indices: Sequence[int]) -> int:
        """Columns of a batch of these texts."""
        return self._texts.width(torch.as_tensor(indices), self._maxlen)


class PretrainDataset(_Batched[tuple[Tensor, Tensor, bool]]):
    """Texts as pairs of segments in true or swapped order (sentence order prediction, ALBERT).

    Args:
        corpus: raw texts, or a ``TokenStore`` of them.
        tokenizer: the tokenizer of the corpus.
        minlen: texts with fewer tokens are left out, and empty ones in any case.
        maxlen: of a longer text, a random window of this many tokens is shown, a new one each time.
        permute_prob: how often the two halves are swapped.
        verbose: report the progress of tokenizing.
        presort: order the texts by length, the shortest first.
        device: where the texts are kept and batches are made.

    Randomness comes from torch's global generator of that device.
    """

    def __init__(
        self,
        corpus: Texts,
        tokenizer: WordpieceTokenizer,
        minlen: int,
        maxlen: int,
        permute_prob: float = 0.5,
        verbose: bool = False,
        presort: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        store = _tokenized(corpus, tokenizer, verbose)
        store = store.take(store.lengths >= max(minlen, 1))
        if presort:
            store = store.sorted_by_length()
        super().__init__(FlatTexts(store, tokenizer, device), maxlen)
        self._tokenizer = tokenizer
        self._permute_prob = permute_prob

    @property
    def tokenizer(self) -> WordpieceTokenizer:
        """The tokenizer of the corpus."""
        return self._tokenizer

    def set_maxlen(self, maxlen: int) -> None:
        """Set how many tokens of a text are shown at most."""
        self._maxlen = maxlen

    def __getitem__(self, idx: int) -> tuple[Tensor, Tensor, bool]:
        """``input_ids`` (S,), ``token_type_ids`` (S,), and whether the segments are swapped."""
        pair = self.__getitems__([range(len(self))[idx]])
        return pair.input_ids[0], pair.token_type_ids[0], bool(pair.permuted[0])

    def __getitems__(self, indices: Sequence[int]) -> SegmentPairs:
        """A whole batch at once, as a ``DataLoader`` asks for it."""
        index = torch.as_tensor(indices)
        index_on_device = self._texts.to_device(index)
        lengths = self._texts.lengths_of(index_on_device)
        shown = cut(lengths, self._maxlen)
        skipped = _random_below(lengths - shown + 1)
        # The halves of a text with an odd number of tokens differ by one. Which is longer is left to chance:
        # otherwise the position of [SEP] would give the order away. Where the cut is within a word, a piece
        # ``##...`` after [CLS] still does: the assignment cuts between tokens (docs/LOG.md has how often).
        left = (shown + _random_below(torch.full_like(shown, 2))) // 2
        permuted = torch.rand(len(index), device=shown.device) < self._permute_prob
        width = self._texts.width(index, self._maxlen)
        pairs = self._texts.pairs(
            index_on_device, width, skipped=skipped, shown=shown, left=left, permuted=permuted
        )
        return SegmentPairs(*pairs, permuted)


class FinetuneDataset(_Batched[tuple[Tensor, int | Tensor]]):
    """Texts with their classes, or with how probable each class is.

    Args:
        texts: raw texts, or a ``TokenStore``.
        targets: class ids 0 to C - 1, one for each text; or probabilities of the classes, shape (n, C).
        tokenizer: the tokenizer of the model to train.
        maxlen: of a longer text, only the first ``maxlen`` tokens are used.
        presort: order the texts by length, the shortest first, each with its own target.
        device: where texts and targets are kept and batches are made.

    Raises:
        ValueError: not as many targets as texts.
    """

    def __init__(
        self,
        texts: Texts,
        targets: Sequence[int] | npt.NDArray[Any],
        tokenizer: WordpieceTokenizer,
        maxlen: int,
        presort: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        store = _tokenized(texts, tokenizer)
        targets = np.asarray(targets, dtype=np.float32 if np.ndim(targets) == 2 else np.int64)
        if len(store) != len(targets):
            raise ValueError(f"{len(store)} texts but {len(targets)} targets")
        if presort:
            order = np.argsort(store.lengths, kind="stable")
            store, targets = store.take(order), targets[order]
        super().__init__(FlatTexts(store, tokenizer, device), maxlen)
        self._targets = torch.from_numpy(targets).to(device)

    def __getitem__(self, idx: int) -> tuple[Tensor, int | Tensor]:
        """``input_ids`` (S,) and the class, or the probabilities (C,)."""
        batch = self.__getitems__([range(len(self))[idx]])
        target = batch.targets[0]
        return batch.input_ids[0], target if target.dim() else int(target)

    def __getitems__(self, indices: Sequence[int]) -> LabelledTexts:
        """A whole batch at once, as a ``DataLoader`` asks for it."""
        index = torch.as_tensor(indices)
        targets = self._targets[self._texts.to_device(index)]
        return LabelledTexts(self._texts.texts(index, self._maxlen), targets)


class InferenceDataset(_Batched[Tensor]):
    """Texts to predict.

    Args:
        texts: raw texts, or a ``TokenStore``.
        maxlen: of a longer text, only the first ``maxlen`` tokens are used; None for all.
        tokenizer: the tokenizer of the model.

    The assignment's version adds no ``[CLS]``, although the head reads position 0; this one builds the
    same inputs that ``FinetuneDataset`` trains on.
    """

    def __init__(self, texts: Texts, maxlen: int | None, tokenizer: WordpieceTokenizer) -> None:
        super().__init__(FlatTexts(_tokenized(texts, tokenizer), tokenizer), maxlen)

    def __getitem__(self, idx: int) -> Tensor:
        """``input_ids`` (S,): ``[CLS] text [SEP]``."""
        return self.__getitems__([range(len(self))[idx]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """A whole batch at once, as a ``DataLoader`` asks for it: padded to the most tokens shown."""
        return list(self._texts.texts(torch.as_tensor(indices), self._maxlen))


def _tokenized(texts: Texts, tokenizer: WordpieceTokenizer, verbose: bool = False) -> TokenStore:
    if isinstance(texts, TokenStore):
        return texts
    return TokenStore.from_texts(texts, tokenizer, progress="tokenizing" if verbose else None)


def _random_below(limits: Tensor) -> Tensor:
    """A random integer from 0 to limit - 1 for each of ``limits``, shape (B,)."""
    # In double precision, so that all numbers are equally likely even where there are many.
    return (torch.rand(limits.shape, dtype=torch.float64, device=limits.device) * limits).long()
