"""Collators: masked language modelling for pretraining, padding for finetuning."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from receiptbert.datasets import LabelledTexts, SegmentPairs
from receiptbert.tokenization import WordpieceTokenizer
from receiptbert.vocabulary import CONTINUATION


class Collator:
    """Pad a batch and corrupt it for masked language modelling (Devlin et al. 2019, section 3.1).

    A target is a token that the model must predict: it is replaced by ``[MASK]`` or by a random token, or
    left as it is, and its true id becomes the label.

    Args:
        tokenizer: its special tokens are never targets, and never the random token that replaces one.
        non_target_idx: the label of a token that is not a target.
        mask_prob: how often a token is chosen as a target.
        random_prob: how often a chosen token is replaced by a random one, which may be itself.
        keep_unchanged_prob: how often a chosen token stays as it is. The rest of them become ``[MASK]``.
        whole_words: choose all pieces of a word or none, so that no piece left out gives the others away
            (what becomes of a chosen piece is drawn for each by itself). A word cut between the segments
            counts as two; of a word cut by the window, the part shown counts as one.
        letters_only: choose no piece without a letter, whatever the rest of its word is: the words around a
            number say little about its value, so there is little to learn from guessing it.

    Not all targets become ``[MASK]``, a token that finetuning never sees: a model trained only at masks need
    not represent the other tokens. Random and unchanged targets make it represent every token.

    Randomness comes from torch's global generator of the batch's device.
    """

    def __init__(
        self,
        tokenizer: WordpieceTokenizer,
        non_target_idx: int = -100,
        mask_prob: float = 0.15,
        random_prob: float = 0.1,
        keep_unchanged_prob: float = 0.1,
        whole_words: bool = False,
        letters_only: bool = False,
    ) -> None:
        self._pad_token_id = tokenizer.pad_token_id
        self._mask_token_id = tokenizer.mask_token_id
        every = torch.arange(tokenizer.vocab_size)
        is_ordinary = ~torch.isin(every, torch.tensor(tokenizer.special_token_ids))
        self._ordinary = every[is_ordinary]  # ids that may be drawn
        has_letter = torch.tensor([any(map(str.isalpha, token)) for token in tokenizer.tokens])
        self._may_be_target = is_ordinary & has_letter if letters_only else is_ordinary  # (V,)
        self._non_target_idx = non_target_idx
        self._mask_prob = mask_prob
        self._random_prob = random_prob
        self._keep_unchanged_prob = keep_unchanged_prob
        self._whole_words = whole_words
        self._begins_word = torch.tensor([not token.startswith(CONTINUATION) for token in tokenizer.tokens])

    def __call__(
        self, batch: SegmentPairs | Sequence[tuple[Tensor, Tensor, bool]]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Collate ``[dataset[i] for i in ...]``, or a whole batch that ``PretrainDataset`` makes.

        Returns:
            input_ids (B, S) with corrupted targets, token_type_ids (B, S), labels (B, S) with the true ids at
            the targets and ``non_target_idx`` elsewhere, permuted (B,) bool.
        """
        pairs = batch if isinstance(batch, SegmentPairs) else self._pad(batch)
        input_ids, labels = self._mask(pairs.input_ids)
        return input_ids, pairs.token_type_ids, labels, pairs.permuted

    def target_share(self, ids: npt.NDArray[np.integer[Any]]) -> float:
        """The share of the tokens ``ids`` that become targets, on average."""
        return self._mask_prob * float(self._may_be_target.numpy(force=True)[ids].mean()) if len(ids) else 0.0

    def _pad(self, batch: Sequence[tuple[Tensor, Tensor, bool]]) -> SegmentPairs:
        input_ids, token_type_ids, permuted = zip(*batch, strict=True)
        return SegmentPairs(
            pad_sequence(list(input_ids), batch_first=True, padding_value=self._pad_token_id),
            pad_sequence(list(token_type_ids), batch_first=True, padding_value=0),
            torch.tensor(permuted),
        )

    def _mask(self, true_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Corrupted ids and labels, both (B, S), on the device of ``true_ids``."""
        device = true_ids.device
        self._may_be_target, self._ordinary = self._may_be_target.to(device), self._ordinary.to(device)
        eligible = self._may_be_target[true_ids]
        draw = torch.rand(true_ids.shape, device=device)
        if self._whole_words:
            # One number per word (a special token is one, too): the k-th of a row takes the k-th number.
            # Where a word is cut, its pieces ``##...`` behind [CLS] or [SEP] share the number of that token,
            # which is never a target: so they are chosen together, whatever becomes of the word's beginning.
            self._begins_word = self._begins_word.to(device)
            draw = draw.gather(1, self._begins_word[true_ids].cumsum(1) - 1)
        is_target = eligible & (draw < self._mask_prob)
        labels = torch.where(is_target, true_ids, self._non_target_idx)

        # One uniform number decides what happens to a target: [0, random) is replaced,
        # [random, random + keep) stays, the rest is masked.
        fate = torch.rand(true_ids.shape, device=device)
        is_random = is_target & (fate < self._random_prob)
        is_masked = is_target & (fate >= self._random_prob + self._keep_unchanged_prob)
        random_ids = self._ordinary[torch.randint(len(self._ordinary), true_ids.shape, device=device)]
        input_ids = torch.where(is_random, random_ids, true_ids)
        return input_ids.masked_fill(is_masked, self._mask_token_id), labels


def collate_fn(
    batch: LabelledTexts | Sequence[tuple[Tensor, int | Tensor]], pad_idx: int
) -> tuple[Tensor, Tensor]:
    """Collate ``[dataset[i] for i in ...]``, or a whole batch that ``FinetuneDataset`` makes.

    Returns:
        input_ids (B, S), padded with ``pad_idx``, and targets (B,), both int64; probabilities as targets are
        (B, C) and stay floats.
    """
    if isinstance(batch, LabelledTexts):
        return batch.input_ids, batch.targets
    input_ids, targets = zip(*batch, strict=True)
    padded = pad_sequence(list(input_ids), batch_first=True, padding_value=pad_idx)
    return padded, torch.stack([torch.as_tensor(target) for target in targets])
