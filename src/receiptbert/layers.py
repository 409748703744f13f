"""The parts of BERT's encoder, as in the assignment (Devlin et al. 2019, section 3).

Shapes: B texts in a batch, S tokens in a text, Q of them with a query (S or 1), N tokens whose output is
wanted, d hidden size, h heads, V vocabulary, P positions.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from receiptbert.choices import ACT_FUNCS
from receiptbert.dropout import Dropout
from receiptbert.initialization import embedding, linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {name: getattr(F, name) for name in ACT_FUNCS}


class BertEmbeddings(nn.Module):
    """Token, position and segment embeddings, summed; then layer norm and dropout.

    Args:
        vocab_size: V.
        hidden_size: d.
        max_seqlen: P, the number of position embeddings.
        dropout_prob: dropout at the end.
        type_vocab_size: the number of segments.
        eps: of the layer norm.

    Parameters: (V + P + type_vocab_size) d + 2d.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        max_seqlen: int,
        dropout_prob: float = 0.0,
        type_vocab_size: int = 2,
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        self._token_embeddings = embedding(vocab_size, hidden_size)
        self._position_embeddings = embedding(max_seqlen, hidden_size)
        self._segment_embeddings = embedding(type_vocab_size, hidden_size)
        self._layer_norm = nn.LayerNorm(hidden_size, eps=eps)
        self._dropout = Dropout(dropout_prob)

    def get_token_embeddings(self) -> nn.Embedding:
        """The token embeddings, which the MLM head shares (weight tying)."""
        return self._token_embeddings

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """(B, S) ids and (B, S) segments, all 0 if None -> (B, S, d)."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        # A single row of segments is broadcast over the batch.
        segments = torch.zeros_like(input_ids[:1]) if token_type_ids is None else token_type_ids
        embeddings = (
            self._token_embeddings(input_ids)
            + self._position_embeddings(positions)
            + self._segment_embeddings(segments)
        )
        return self._dropout(self._layer_norm(embeddings))


class MultiHeadSelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2), residual connection and layer norm.

    Args:
        hidden_size: d.
        num_attention_heads: h; usually d / 64, i.e. 64 dimensions a head.
        attention_probs_dropout_prob: dropout of attention weights, which hides whole tokens.
        dropout_prob: dropout before the residual sum.
        eps: of the layer norm.

    Raises:
        ValueError: d is not a multiple of h.

    Parameters: 4d^2 + 6d.
    """

    def __init__(
        self,
        hidden_size: int,
        num_attention_heads: int,
        attention_probs_dropout_prob: float = 0.0,
        dropout_prob: float = 0.0,
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        if hidden_size % num_attention_heads:
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of {num_attention_heads} heads")
        self._num_heads = num_attention_heads
        self._size_per_head = hidden_size // num_attention_heads
        self._attention_dropout_prob = attention_probs_dropout_prob  # for a kernel that drops by itself
        self._attention_dropout = Dropout(attention_probs_dropout_prob)
        # One wide projection: three products in one call over the same input.
        self._qkv = linear(hidden_size, 3 * hidden_size)
        self._output = linear(hidden_size, hidden_size)
        self._dropout = Dropout(dropout_prob)
        self._layer_norm = nn.LayerNorm(hidden_size, eps=eps)

    @property
    def size_per_head(self) -> int:
        """d / h."""
        return self._size_per_head

    def forward(
        self,
        embeddings: Tensor,
        attention_mask: Tensor | None = None,
        rows: Tensor | None = None,
        only_cls: bool = False,
    ) -> Tensor:
        """(B, S, d) -> (B, S, d), or (N, d) if ``rows`` are given, or (B, d) if ``only_cls``.

        The last two arguments are for the last layer, of which a head reads only some tokens. With ``rows``,
        all that follows attention is computed for these alone; with ``only_cls``, queries and their
        attention are, too. Every token has a key and a value.

        Args:
            attention_mask: (B, S, S), 1 where the query (second axis) attends to the key (third axis), else
                0; None if every token attends to every token.
            rows: (N,), the tokens whose output is wanted, as indices from 0 to BS - 1; None for all.
            only_cls: whether only the output of each text's first token is wanted.
        """
        query, key, value = self._project(embeddings, only_cls)
        mask = None if attention_mask is None else attention_mask[:, None, : query.shape[2]].bool()
        # Torch's kernels for a CPU are slower for texts as short as receipt lines, in bf16 many times.
        attend = self._attend if embeddings.device.type == "cpu" else self._attend_in_one_kernel
        context = attend(query, key, value, mask)  # (B, h, Q, d/h)
        context = context.transpose(1, 2).flatten(2)  # (B, Q, d)
        if only_cls:
            context, embeddings = context[:, 0], embeddings[:, 0]
        elif rows is not None:
            context, embeddings = (x.flatten(0, 1).index_select(0, rows) for x in (context, embeddings))
        output = self._output(context)
        return self._layer_norm(embeddings + self._dropout(output))

    def _project(self, embeddings: Tensor, only_cls: bool) -> tuple[Tensor, ...]:
        """(B, S, d) -> queries (B, h, Q, d/h), keys and values (B, h, S, d/h); Q is 1 if ``only_cls``."""
        if not only_cls:
            return self._split_heads(self._qkv(embeddings))
        # The wide matrix in two parts: all tokens have keys and values, the first alone needs a query.
        sizes = [self._qkv.in_features, 2 * self._qkv.in_features]
        weights, biases = torch.split(self._qkv.weight, sizes), torch.split(self._qkv.bias, sizes)
        query = self._split_heads(F.linear(embeddings[:, :1], weights[0], biases[0]))
        return query + self._split_heads(F.linear(embeddings, weights[1], biases[1]))

    def _split_heads(self, projected: Tensor) -> tuple[Tensor, ...]:
        """(B, S, kd) -> k tensors of (B, h, S, d/h)."""
        heads = projected.view(*projected.shape[:2], -1, self._num_heads, self._size_per_head)
        parts = heads.permute(2, 0, 3, 1, 4)  # (k, B, h, S, d/h)
        if parts.device.type == "cpu":
            parts = parts.contiguous()  # one copy, where each product would make its own
        return parts.unbind()

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """softmax(q k^T / sqrt(d / h)) v, for each head by itself.

        query (B, h, Q, d/h), key and value (B, h, S, d/h), mask (B, 1, Q, S) or None -> (B, h, Q, d/h).
        """
        scores = query @ key.transpose(-1, -2) / math.sqrt(self._size_per_head)  # (B, h, Q, S)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = self._attention_dropout(scores.softmax(dim=-1))
        return weights @ value

    def _attend_in_one_kernel(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """The same, without ever holding the weights of a whole batch in memory."""
        dropout_prob = self._attention_dropout_prob if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, mask, dropout_prob)


class FeedForward(nn.Module):
    """Two linear layers with an activation in between (Vaswani et al. 2017, section 3.3), residual connection
    and layer norm.

    Args:
        hidden_size: d.
        intermediate_size: width between the two layers; usually 4d.
        dropout_prob: dropout before the residual sum.
        act_func: ``gelu`` or ``relu``.
        eps: of the layer norm.

    Parameters: 8d^2 + 7d where the intermediate size is 4d.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        dropout_prob: float = 0.0,
        act_func: str = "relu",
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        self._expand = linear(hidden_size, intermediate_size)
        self._activation = ACTIVATIONS[act_func]
        self._contract = linear(intermediate_size, hidden_size)
        self._dropout = Dropout(dropout_prob)
        self._layer_norm = nn.LayerNorm(hidden_size, eps=eps)

    def forward(self, embeddings: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        output = self._contract(self._activation(self._expand(embeddings)))
        return self._layer_norm(embeddings + self._dropout(output))


class BertLayer(nn.Module):
    """Self-attention, then feed-forward; the arguments are theirs.

    Parameters: 12d^2 + 13d where the intermediate size is 4d.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_attention_heads: int,
        dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0,
        act_func: str = "relu",
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        self._multihead_attention = MultiHeadSelfAttention(
            hidden_size=hidden_size,
            num_attention_heads=num_attention_heads,
            attention_probs_dropout_prob=attention_probs_dropout_prob,
            dropout_prob=dropout_prob,
            eps=eps,
        )
        self._feedforward = FeedForward(
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            act_func=act_func,
            eps=eps,
            dropout_prob=dropout_prob,
        )

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        rows: Tensor | None = None,
        only_cls: bool = False,
    ) -> Tensor:
        """(B, S, d) -> (B, S, d), (N, d) or (B, d); the arguments are those of ``MultiHeadSelfAttention``."""
        return self._feedforward(self._multihead_attention(x, attention_mask, rows, only_cls))
