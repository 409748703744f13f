"""The parts of BERT's encoder, as in the assignment (Devlin et al. 2019, section 3).

Shapes: B texts in a batch, S tokens in a text, N tokens whose output is wanted, d hidden size, h heads,
V vocabulary, P positions.
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

    def set_token_embeddings(self, embeddings: nn.Module) -> None:
        """Replace the token embeddings by a module that maps (B, S) ids to (B, S, d), too."""
        self.add_module("_token_embeddings", embeddings)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """(B, S) ids and (B, S) segments, all 0 if None -> (B, S, d)."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        # A single row of segments is broadcast over the batch.
        segments = torch.zeros_like(input_ids[:1]) if token_type_ids is None else token_type_ids
        embeddings = (
            self._token_embeddings(input_ids)  # (B, S, d)
            + self._position_embeddings(positions)  # (S, d)
            + self._segment_embeddings(segments)  # (B, S, d) or (1, S, d)
        )
        return self._dropout(self._layer_norm(embeddings))


class MultiHeadSelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2), residual connection and layer norm.

    Args:
        hidden_size: d.
        num_attention_heads: h; usually d / 64, i.e. 64 dimensions a head.
        attention_probs_dropout_prob: dropout of attention weights, which hides a token from a query.
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
        flat_positions: Tensor | None = None,
        only_cls: bool = False,
    ) -> Tensor:
        """(B, S, d) -> (B, S, d), or (N, d) at ``flat_positions``, or (B, d) if ``only_cls``.

        The last two arguments are for the last layer, of which a head reads only some tokens. With
        ``flat_positions``, what follows attention is computed for these alone; with ``only_cls``, attention
        itself is, too.

        Args:
            attention_mask: (B, S, S), 1 where the query (second axis) attends to the key (third axis), else
                0; None if every token attends to every token.
            flat_positions: (N,), the tokens whose output is wanted, b S + s for token s of text b; None for
                all.
            only_cls: whether only the output of each text's first token is wanted (without
                ``flat_positions``).
        """
        mask = None if attention_mask is None else attention_mask.bool()
        if only_cls:
            context = self._context_of_cls(embeddings, mask)  # (B, d)
            embeddings = embeddings[:, 0]
        else:
            context = self._context(embeddings, mask)  # (B, S, d)
            if flat_positions is not None:  # (N, d) both
                context = context.flatten(0, 1).index_select(0, flat_positions)
                embeddings = embeddings.flatten(0, 1).index_select(0, flat_positions)
        output = self._output(context)
        return self._layer_norm(embeddings + self._dropout(output))

    def _context(self, embeddings: Tensor, mask: Tensor | None) -> Tensor:
        """What each token gathers from all. (B, S, d) and a mask (B, S, S) or None -> (B, S, d)."""
        query, key, value = self._split_heads(self._qkv(embeddings))  # (B, h, S, d/h) each
        mask = None if mask is None else mask[:, None]  # (B, 1, S, S): the same for all heads
        # On a GPU torch has one kernel for the whole formula. Its kernels for a CPU are slower than plain
        # products for texts as short as receipt lines, in bf16 many times slower.
        attend = self._attend if embeddings.device.type == "cpu" else self._attend_in_one_kernel
        return attend(query, key, value, mask).transpose(1, 2).flatten(2)  # heads side by side: (B, S, d)

    def _split_heads(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, S, 3d) -> queries, keys and values, each (B, h, S, d/h)."""
        heads = projected.view(*projected.shape[:2], 3, self._num_heads, self._size_per_head)
        heads = heads.permute(2, 0, 3, 1, 4)  # (3, B, h, S, d/h)
        if projected.device.type == "cpu":
            heads = heads.contiguous()  # one copy, where each product would make its own
        query, key, value = heads.unbind()
        return query, key, value

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """softmax(q k^T / sqrt(d / h)) v, for each head by itself.

        query, key and value (B, h, S, d/h), mask (B, 1, S, S) or None -> (B, h, S, d/h).
        """
        scores = query @ key.transpose(-1, -2)  # (B, h, S, S)
        return self._attention_weights(scores, mask) @ value

    def _attention_weights(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        """Scores (..., S) of queries and keys -> how much of each token is taken, (..., S)."""
        scores = scores / math.sqrt(self._size_per_head)
        if mask is not None:
            # Not -inf: a query that may attend to nothing would have NaN.
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return self._attention_dropout(scores.softmax(dim=-1))

    def _attend_in_one_kernel(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """As ``_attend``, without ever holding the weights of a whole batch in memory.

        (A query that may attend to nothing gets zeros here, the mean of all values there.)
        """
        dropout_prob = self._attention_dropout_prob if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, mask, dropout_prob)

    def _context_of_cls(self, embeddings: Tensor, mask: Tensor | None) -> Tensor:
        """What the first token gathers from all. (B, S, d) and a mask (B, S, S) or None -> (B, d).

        As ``_context``, but keys and values are never made. For a single query q of a text that is less work:

            the score of a token x:           q (W_key x) = (q W_key) x
            what is gathered, by weights a:   sum of a (W_value x) = W_value (sum of a x)

        The keys' bias adds the same to all scores, which softmax ignores.
        """
        # In the letters of einsum, e are the d/h numbers of a head; the others are those of the shapes.
        parts = 3, self._num_heads, self._size_per_head
        w_query, w_key, w_value = self._qkv.weight.view(*parts, -1)  # (h, e, d)
        b_query, _, b_value = self._qkv.bias.view(parts)  # (h, e)
        query = torch.einsum("bd, hed -> bhe", embeddings[:, 0], w_query) + b_query
        query = torch.einsum("bhe, hed -> bhd", query, w_key)  # q W_key, to be compared with embeddings
        scores = torch.einsum("bhd, bsd -> bhs", query, embeddings)
        mask = None if mask is None else mask[:, :1]  # (B, 1, S): the first query's, the same for all heads
        weights = self._attention_weights(scores, mask)
        gathered = torch.einsum("bhs, bsd -> bhd", weights, embeddings)
        context = torch.einsum("bhd, hed -> bhe", gathered, w_value)
        # Each value contains the bias, so their sum contains it as often as the weights add up to: once, were
        # it not for dropout.
        context = context + weights.sum(dim=-1, keepdim=True) * b_value
        return context.flatten(1)


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
        flat_positions: Tensor | None = None,
        only_cls: bool = False,
    ) -> Tensor:
        """(B, S, d) -> (B, S, d), (N, d) or (B, d); the arguments are those of ``MultiHeadSelfAttention``."""
        return self._feedforward(self._multihead_attention(x, attention_mask, flat_positions, only_cls))
