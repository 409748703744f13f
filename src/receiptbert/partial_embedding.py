"""Train the embeddings of only those tokens that the texts contain.

A few thousand labelled texts hold a fraction of a large vocabulary. The other tokens' rows get no gradient,
and yet an optimizer would read and write all of them and their moments in every step.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from receiptbert.modeling import BertFinetuneModel
from receiptbert.token_store import TokenStore
from receiptbert.tokenization import WordpieceTokenizer


class PartialEmbedding(nn.Module):
    """An embedding of V tokens whose parameter holds the rows of R of them; the others stay as they are.

    In training mode it refuses the other tokens (on a CPU with an ``IndexError``); in eval mode all work.

    Args:
        embedding: stays unchanged; it is already on the training device.
        ids: the tokens to train, ascending, shape (R,).
    """

    def __init__(self, embedding: nn.Embedding, ids: Tensor) -> None:
        super().__init__()
        all_rows = embedding.weight.detach()
        self.weight = nn.Parameter(all_rows[ids])  # (R, d), a copy
        # The tensors below never change. As buffers, they would be sent between processes in each step.
        self._all_rows = all_rows  # (V, d), as they were before training
        # (V,), the index of a token's row among those trained; -1 for the other tokens
        self._place = torch.full((len(all_rows),), -1, device=all_rows.device)
        self._place[ids] = torch.arange(len(ids), device=all_rows.device)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, S) ids -> (B, S, d)."""
        place = self._place[input_ids]
        if self.training:
            return F.embedding(place, self.weight)
        trained = F.embedding(place.clamp(min=0), self.weight)
        return torch.where((place >= 0)[..., None], trained, F.embedding(input_ids, self._all_rows))

    def to_embedding(self) -> nn.Embedding:
        """An ordinary embedding of all V tokens, including the R trained rows."""
        rows = self._all_rows.clone()
        rows[self._place >= 0] = self.weight.detach()
        return nn.Embedding(len(rows), rows.shape[1], _weight=rows)


def tokens_in(texts: TokenStore, tokenizer: WordpieceTokenizer) -> Tensor:
    """The distinct tokens of the inputs made from ``texts``, ascending, shape (R,)."""
    special = [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id]
    return torch.from_numpy(np.union1d(texts.ids, special).astype(np.int64))


@contextmanager
def only_tokens(model: BertFinetuneModel, ids: Tensor) -> Iterator[None]:
    """Within it only rows ``ids`` (R,) of ``model``'s token embeddings are parameters; afterwards all are.

    The model has to be on the training device already. The other tokens are spared what an optimizer does to
    rows without a gradient: weight decay.
    """
    encoder = model.backbone
    partial = PartialEmbedding(encoder.get_token_embeddings(), ids).train(encoder.training)
    encoder.set_token_embeddings(partial)
    try:
        yield
    finally:
        encoder.set_token_embeddings(partial.to_embedding())
