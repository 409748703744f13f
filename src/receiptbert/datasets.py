"""Datasets of the assignment: texts for pretraining, for finetuning, and for prediction."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from receiptbert.token_store import TokenStore
from receiptbert.tokenization import WordpieceTokenizer

# Texts as a user has them, or tokenized beforehand.
Texts: TypeAlias = Sequence[str] | TokenStore

# [CLS] and [SEP]: how many positions a model needs beyond the longest text.
NUM_MARKS = 2


class SegmentPairs(NamedTuple):
    """A batch for pretraining: ``[CLS] left [SEP] right``, padded to W = the longest text's tokens + 2."""

    input_ids: Tensor  # (B, W) int64
    token_type_ids: Tensor  # (B, W) int64: 0 for [CLS], the first segment and [SEP], 1 for the second
    permuted: Tensor  # (B,) bool: were the two segments swapped?


class LabelledTexts(NamedTuple):
    """A batch for finetuning: ``[CLS] text [SEP]``, padded to W = the longest text's tokens + 2."""

    input_ids: Tensor  # (B, W) int64
    targets: Tensor  # (B,) int64, or (B, C) float32: probabilities of the classes


class _FlatTexts:
    """Texts as flat tensors on a device, out of which whole batches are cut: no Python code runs per text."""

    def __init__(
        self, store: TokenStore, tokenizer: WordpieceTokenizer, device: torch.device | str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        # The extra [PAD] at the end lets padding be looked up like any other token.
        ids = np.append(store.ids, tokenizer.pad_token_id)
        self._ids = torch.tensor(ids, dtype=torch.int32, device=self.device)  # (tokens + 1,)
        self._starts = torch.from_numpy(store.offsets[:-1]).to(self.device)  # (n,)
        self.lengths = torch.from_numpy(store.lengths)  # (n,), always on the CPU: see width
        self._lengths = self.lengths.to(self.device)
        self._cls, self._sep = tokenizer.cls_token_id, tokenizer.sep_token_id

    def texts(self, index: Tensor, maxlen: int | None) -> Tensor:
        """``[CLS] text [SEP]`` of the texts ``index`` (B,), each cut to ``maxlen`` tokens; (B, W).

        It is what ``AutoTokenizer`` makes of a text, and to the pretrained model it is a pair of segments of
        which the right one is empty.
        """
        rows = self.to_device(index)
        shown = self.lengths_of(rows).clamp(max=maxlen)
        none = torch.zeros_like(shown)
        return self.pairs(rows, self.width(index, maxlen), none, shown, shown, none.bool())[0]

    def to_device(self, tensor: Tensor) -> Tensor:
        """A copy on the device of the texts, if it is elsewhere; nobody waits for it."""
        return tensor.to(self.device, non_blocking=True)

    def lengths_of(self, rows: Tensor) -> Tensor:
        """Tokens of the texts ``rows`` (B,), both on the device."""
        return self._lengths[rows]

    def width(self, index: Tensor, maxlen: int | None) -> int:
        """Columns of a batch; told from lengths on the CPU, so that no one waits for a GPU to tell."""
        return int(self.lengths[index].clamp(max=maxlen).max()) + NUM_MARKS

    def pairs(
        self, rows: Tensor, width: int, skipped: Tensor, shown: Tensor, left: Tensor, permuted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``[CLS] left [SEP] right``, or ``[CLS] right [SEP] left`` where permuted.

        All tensors are (B,) and on the device.

        Args:
            rows: which texts.
            width: W.
            skipped: tokens left out at the beginning of each text.
            shown: tokens shown of each.
            left: how many of these make the left segment.
            permuted: whether the right segment stands first.

        Returns:
            ``input_ids`` and ``token_type_ids``, both (B, W).
        """
        column = torch.arange(width, device=self.device)  # (W,)
        starts = (self._starts[rows] + skipped)[:, None]  # (B, 1), as the three below
        shown, left, permuted = shown[:, None], left[:, None], permuted[:, None]
        first = torch.where(permuted, shown - left, left)  # length of the segment that stands first
        is_sep = column == first + 1
        is_second = (column > first + 1) & (column <= shown + 1)  # (B, W)
        # Place among the text's tokens as they are shown; swapping two halves is rotating the text.
        place = column - torch.where(column > first + 1, 2, 1)
        source = starts + (place + torch.where(permuted, left, 0)) % shown.clamp(min=1)
        source = torch.where(column <= shown + 1, source, len(self._ids) - 1)
        input_ids = self._ids[source].long()
        input_ids[:, 0] = self._cls
        input_ids[is_sep] = self._sep
        return input_ids, is_second.long()


class PretrainDataset(Dataset[tuple[Tensor, Tensor, bool]]):
    """Texts as pairs of segments in true or swapped order (sentence order prediction, ALBERT).

    Args:
        corpus: raw texts, or a ``TokenStore`` of them.
        tokenizer: the tokenizer of the corpus.
        minlen: texts of fewer tokens are left out.
        maxlen: of a longer text, a random window of so many tokens is shown, another one each time.
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
        super().__init__()
        store = _tokenized(corpus, tokenizer, verbose)
        store = store.take(store.lengths >= max(minlen, 1))
        if presort:
            store = store.sorted_by_length()
        self._corpus = store
        self._tokenizer = tokenizer
        self._permute_prob = permute_prob
        self._maxlen = maxlen
        self._texts = _FlatTexts(store, tokenizer, device)

    def __len__(self) -> int:
        return len(self._corpus)

    @property
    def tokenizer(self) -> WordpieceTokenizer:
        """The tokenizer of the corpus."""
        return self._tokenizer

    @property
    def lengths(self) -> Tensor:
        """Tokens of each text, shape (n,)."""
        return self._texts.lengths

    @property
    def device(self) -> torch.device:
        """Where batches are made."""
        return self._texts.device

    def width(self, indices: Sequence[int]) -> int:
        """Columns of a batch of these texts."""
        return self._texts.width(torch.as_tensor(indices), self._maxlen)

    def set_maxlen(self, maxlen: int) -> None:
        """Set the most tokens that are shown of a text."""
        self._maxlen = maxlen

    def __getitem__(self, idx: int) -> tuple[Tensor, Tensor, bool]:
        """``input_ids`` (W,), ``token_type_ids`` (W,), and whether the segments are swapped."""
        pair = self.__getitems__([idx])
        return pair.input_ids[0], pair.token_type_ids[0], bool(pair.permuted[0])

    def __getitems__(self, indices: Sequence[int]) -> SegmentPairs:
        """A whole batch at once, as a ``DataLoader`` asks for it."""
        index = torch.as_tensor(indices)
        rows = self._texts.to_device(index)
        lengths = self._texts.lengths_of(rows)
        shown = lengths.clamp(max=self._maxlen)
        skipped = _random_below(lengths - shown + 1)
        # The halves of an odd text differ by a token. Which of them is longer is left to chance:
        # otherwise the place of [SEP] would give the order away.
        left = (shown + _random_below(torch.full_like(shown, 2))) // 2
        permuted = torch.rand(len(index), device=shown.device) < self._permute_prob
        width = self._texts.width(index, self._maxlen)
        return SegmentPairs(*self._texts.pairs(rows, width, skipped, shown, left, permuted), permuted)


class FinetuneDataset(Dataset[tuple[Tensor, int | Tensor]]):
    """Texts with their classes, or with how probable each class is.

    Args:
        texts: raw texts, or a ``TokenStore``.
        targets: class ids 0 to C - 1, one for each text; or probabilities of the classes, shape (n, C).
        tokenizer: the tokenizer of the model to train.
        maxlen: of a longer text, the first so many tokens are used.
        presort: order the texts by length, the shortest first, each with its own target.
        device: where texts and targets are kept and batches are made.
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
        super().__init__()
        store = _tokenized(texts, tokenizer)
        targets = np.asarray(targets, dtype=np.float32 if np.ndim(targets) == 2 else np.int64)
        if len(store) != len(targets):
            raise ValueError(f"{len(store)} texts but {len(targets)} targets")
        if presort:
            order = np.argsort(store.lengths, kind="stable")
            store, targets = store.take(order), targets[order]
        self._texts = _FlatTexts(store, tokenizer, device)
        self._targets = torch.from_numpy(targets).to(device)
        self._maxlen = maxlen

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each text, shape (n,)."""
        return self._texts.lengths

    @property
    def device(self) -> torch.device:
        """Where batches are made."""
        return self._texts.device

    def width(self, indices: Sequence[int]) -> int:
        """Columns of a batch of these texts."""
        return self._texts.width(torch.as_tensor(indices), self._maxlen)

    def __getitem__(self, idx: int) -> tuple[Tensor, int | Tensor]:
        """``input_ids`` (tokens + 2,) and the class, or the probabilities (C,)."""
        batch = self.__getitems__([range(len(self))[idx]])
        target = batch.targets[0]
        return batch.input_ids[0], target if target.dim() else int(target)

    def __getitems__(self, indices: Sequence[int]) -> LabelledTexts:
        """A whole batch at once, as a ``DataLoader`` asks for it."""
        index = torch.as_tensor(indices)
        targets = self._targets[self._texts.to_device(index)]
        return LabelledTexts(self._texts.texts(index, self._maxlen), targets)


class InferenceDataset(Dataset[Tensor]):
    """Texts to predict.

    Args:
        texts: raw texts, or a ``TokenStore``.
        maxlen: of a longer text, the first so many tokens are used; None for all.
        tokenizer: the tokenizer of the model; None if ``texts`` are whole inputs, as lists of ids.

    The assignment's version adds no ``[CLS]``, although the head reads position 0; this one builds the
    very inputs that ``FinetuneDataset`` trains on.
    """

    def __init__(
        self, texts: Texts | Sequence[list[int]], maxlen: int | None, tokenizer: WordpieceTokenizer | None
    ) -> None:
        super().__init__()
        self._inputs = cast(Sequence[list[int]], texts) if tokenizer is None else []
        self._texts = (
            None if tokenizer is None else _FlatTexts(_tokenized(cast(Texts, texts), tokenizer), tokenizer)
        )
        self._num_texts = len(texts)
        self._maxlen = maxlen

    def __len__(self) -> int:
        return self._num_texts

    @property
    def lengths(self) -> Tensor:
        """Tokens of each text, shape (n,)."""
        if self._texts is None:
            return torch.tensor([len(ids) for ids in self._inputs])
        return self._texts.lengths

    def __getitem__(self, idx: int) -> Tensor:
        """``input_ids`` (tokens + 2,)."""
        return self.__getitems__([range(len(self))[idx]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """A whole batch at once, as a ``DataLoader`` asks for it; padded but where inputs came whole."""
        if self._texts is None:
            return [torch.tensor(self._inputs[i][: self._maxlen]) for i in indices]
        return list(self._texts.texts(torch.as_tensor(indices), self._maxlen))


def _tokenized(texts: Texts, tokenizer: WordpieceTokenizer, verbose: bool = False) -> TokenStore:
    if isinstance(texts, TokenStore):
        return texts
    return TokenStore.from_texts(texts, tokenizer, progress="tokenizing" if verbose else None)


def _random_below(limits: Tensor) -> Tensor:
    """A random whole number from 0 to limit - 1 for each of ``limits``, shape (B,)."""
    # Double precision: a float's 24 bits could round up to the limit itself.
    return (torch.rand(limits.shape, dtype=torch.float64, device=limits.device) * limits).long()
