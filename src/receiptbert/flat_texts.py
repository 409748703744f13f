"""Tokenized texts as flat tensors on a device, from which batches are cut."""

import numpy as np
import torch
from torch import Tensor

from receiptbert.token_store import TokenStore
from receiptbert.tokenization import WordpieceTokenizer

# [CLS] and [SEP]: how many positions a model needs beyond the longest text.
SPECIAL_TOKENS_PER_TEXT = 2


def cut(lengths: Tensor, maxlen: int | None) -> Tensor:
    """How many tokens of texts of these ``lengths`` (any shape) are shown; all if ``maxlen`` is None."""
    return lengths if maxlen is None else lengths.clamp(max=maxlen)


def padding_mask(input_ids: Tensor, pad_token_id: int) -> Tensor | None:
    """(B, S) ids -> (B, S) mask, 1 for tokens and 0 for padding; None if nothing is padded.

    Attention without a mask is faster, and batches of texts of similar length often need none. Looking at
    values on a GPU would mean waiting for it to finish its work, so there the mask is always given. Where a
    text spells ``[PAD]``, that is masked, too.
    """
    is_token = input_ids != pad_token_id
    return None if input_ids.device.type == "cpu" and bool(is_token.all()) else is_token.long()


class FlatTexts:
    """Texts from which whole batches are made: no Python code runs per text."""

    def __init__(
        self, store: TokenStore, tokenizer: WordpieceTokenizer, device: torch.device | str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        # The extra [PAD] at the end lets padding be looked up like any other token.
        ids = np.empty(len(store.ids) + 1, dtype=np.int32)
        ids[:-1], ids[-1] = store.ids, tokenizer.pad_token_id
        self._ids = torch.from_numpy(ids).to(self.device)  # (tokens + 1,)
        self._starts = torch.from_numpy(store.offsets[:-1]).to(self.device)  # (n,)
        self.lengths = torch.from_numpy(store.lengths)  # (n,), always on the CPU: see width
        self._lengths_on_device = self.lengths.to(self.device)
        self._cls, self._sep = tokenizer.cls_token_id, tokenizer.sep_token_id

    def texts(self, index: Tensor, maxlen: int | None) -> Tensor:
        """``[CLS] text [SEP]`` of the texts ``index`` (B,), each cut to ``maxlen`` tokens; (B, S).

        This is what ``AutoTokenizer`` makes of a text, and to the pretrained model it is a pair of segments
        whose right one is empty.
        """
        rows = self.to_device(index)
        shown = cut(self.lengths_of(rows), maxlen)
        none = torch.zeros_like(shown)
        width = self.width(index, maxlen)
        return self.pairs(rows, width, skipped=none, shown=shown, left=shown, permuted=none.bool())[0]

    def to_device(self, tensor: Tensor) -> Tensor:
        """``tensor`` on the device of the texts: copied if it is elsewhere, without waiting."""
        return tensor.to(self.device, non_blocking=True)

    def lengths_of(self, rows: Tensor) -> Tensor:
        """Tokens of the texts ``rows`` (B,), both on the device."""
        return self._lengths_on_device[rows]

    def width(self, index: Tensor, maxlen: int | None) -> int:
        """Columns of a batch; computed from lengths on the CPU, to avoid waiting for a GPU."""
        return int(cut(self.lengths[index], maxlen).max()) + SPECIAL_TOKENS_PER_TEXT

    def pairs(
        self, rows: Tensor, width: int, *, skipped: Tensor, shown: Tensor, left: Tensor, permuted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``[CLS] left [SEP] right``, or ``[CLS] right [SEP] left`` where permuted.

        For a text ``а б в г д`` with ``left`` 2, what each column takes from the text::

            column    0     1  2  3      4      5  6
                      [CLS] а  б  [SEP]  в      г  д
            permuted  [CLS] в  г  д      [SEP]  а  б

        All tensors are (B,) and on the device.

        Args:
            rows: which texts.
            width: S.
            skipped: tokens left out at the beginning of each text.
            shown: tokens shown of each.
            left: how many of these make the left segment.
            permuted: whether the right segment comes first.

        Returns:
            ``input_ids`` and ``token_type_ids``, both (B, S).
        """
        column = torch.arange(width, device=self.device)  # (S,)
        starts = (self._starts[rows] + skipped)[:, None]  # (B, 1), as the three below
        shown, left, permuted = shown[:, None], left[:, None], permuted[:, None]
        first = torch.where(permuted, shown - left, left)  # length of the segment that comes first
        is_sep = column == first + 1
        is_second = (column > first + 1) & (column <= shown + 1)  # (B, S)
        # Which of the shown tokens comes there: before it stand [CLS] and, in the second segment, [SEP].
        # Their own columns get some token, too, until they are overwritten below.
        place = column - torch.where(column > first + 1, 2, 1)  # (B, S)
        # To swap the two segments is to rotate the text.
        source = starts + (place + torch.where(permuted, left, 0)) % shown.clamp(min=1)
        source = torch.where(column <= shown + 1, source, len(self._ids) - 1)
        input_ids = self._ids[source].long()
        input_ids[:, 0] = self._cls
        input_ids[is_sep] = self._sep
        return input_ids, is_second.long()
