"""The encoder of BERT: embeddings and a stack of layers (Devlin et al. 2019, section 3).

Shapes: B texts in a batch, S tokens in a text, N tokens whose output is wanted, d hidden size, h heads,
V vocabulary, P positions.
"""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from receiptbert.flat_texts import SPECIAL_TOKENS_PER_TEXT
from receiptbert.layers import BertEmbeddings, BertLayer


@dataclass(frozen=True, kw_only=True, slots=True)
class BertShape:
    """What it takes to build a ``Bert`` of the same shape again, e.g. from a checkpoint."""

    vocab_size: int
    max_seqlen: int
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    act_func: str
    eps: float

    @property
    def maxlen(self) -> int:
        """The most tokens of a text, without ``[CLS]`` and ``[SEP]``: the ``maxlen`` of the datasets."""
        return self.max_seqlen - SPECIAL_TOKENS_PER_TEXT

    def kwargs(self) -> dict[str, Any]:
        """As keyword arguments of ``Bert``, ``BertModel`` and ``BertFinetuneModel``."""
        return asdict(self)


class Bert(nn.Module):
    """Embeddings and a stack of layers: the encoder that pretraining and finetuning share.

    Args:
        vocab_size: V.
        max_seqlen: P, the most tokens of an input, special ones included.
        hidden_size: d.
        num_hidden_layers: how many layers.
        intermediate_size: width of the feed-forward parts, usually 4d.
        num_attention_heads: h; usually d / 64.
        input_dropout_prob: dropout of the embeddings, after their layer norm.
        dropout_prob: dropout on what the attention and feed-forward parts add to their input.
        attention_probs_dropout_prob: dropout of attention weights.
        act_func: gelu or relu, within the feed-forward parts.
        eps: of the layer norms.
    """

    def __init__(
        self,
        vocab_size: int,
        max_seqlen: int,
        hidden_size: int,
        num_hidden_layers: int,
        intermediate_size: int,
        num_attention_heads: int,
        input_dropout_prob: float = 0.0,
        dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0,
        act_func: str = "relu",
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        self.shape = BertShape(
            vocab_size=vocab_size,
            max_seqlen=max_seqlen,
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            intermediate_size=intermediate_size,
            num_attention_heads=num_attention_heads,
            act_func=act_func,
            eps=eps,
        )
        self.activation_checkpointing = False
        """Whether training keeps only the input of each layer, and recomputes the rest for gradients."""
        self._embeddings = BertEmbeddings(vocab_size, hidden_size, max_seqlen, input_dropout_prob, eps=eps)
        self._layers = nn.ModuleList(
            BertLayer(
                hidden_size=hidden_size,
                intermediate_size=intermediate_size,
                num_attention_heads=num_attention_heads,
                dropout_prob=dropout_prob,
                attention_probs_dropout_prob=attention_probs_dropout_prob,
                act_func=act_func,
                eps=eps,
            )
            for _ in range(num_hidden_layers)
        )

    def get_token_embeddings(self) -> nn.Embedding:
        """The token embeddings."""
        return self._embeddings.get_token_embeddings()

    def set_token_embeddings(self, embeddings: nn.Module) -> None:
        """Replace the token embeddings by a module that maps (B, S) ids to (B, S, d), too."""
        self._embeddings.set_token_embeddings(embeddings)

    def levels(self) -> list[nn.Module]:
        """The embeddings, then the layers from the bottom up."""
        return [self._embeddings, *self._layers]

    @staticmethod
    def expand_mask(attention_mask: Tensor) -> Tensor:
        """(B, S), 1 for tokens and 0 for padding -> (B, S, S): every token attends to all but padding."""
        # A view: the rows of a text's mask are all alike and stored once.
        return attention_mask[:, None].expand(-1, attention_mask.shape[1], -1)

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        flat_positions: Tensor | None = None,
        only_cls: bool = False,
    ) -> Tensor:
        """(B, S) ids -> (B, S, d) hidden states, or (N, d) at ``flat_positions``, or (B, d) if ``only_cls``.

        Args:
            attention_mask: (B, S), 1 for tokens and 0 for padding; None if nothing is padded.
            token_type_ids: (B, S), 0 or 1; None for all 0.
            flat_positions: (N,), the tokens whose hidden states are wanted, b S + s for token s of text b.
                The last layer still computes attention for all tokens; its output projection and feed-forward
                part only for these.
            only_cls: whether only those of ``[CLS]``, the first of each text, are wanted (without
                ``flat_positions``).
        """
        mask = None if attention_mask is None else self.expand_mask(attention_mask.bool())
        hidden_states = self._embeddings(x, token_type_ids)
        *lower, last = self._layers
        for layer in lower:
            hidden_states = self._run(layer, hidden_states, mask)
        return self._run(last, hidden_states, mask, flat_positions, only_cls)

    def _run(self, layer: nn.Module, *arguments: Tensor | bool | None) -> Tensor:
        if self.activation_checkpointing and self.training:
            # With the random numbers of the first pass, so that dropout drops the same elements.
            return checkpoint(layer, *arguments, use_reentrant=False)
        return layer(*arguments)


def parameter_counts(shape: BertShape, num_classes: int | None) -> dict[str, int]:
    """How many parameters each part has; the heads are those of pretraining if ``num_classes`` is None.

    The matrix that the head of masked language modelling shares with the embeddings counts as theirs.
    """
    d, i, layers = shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers
    of_mlm = d * d + d + 2 * d + shape.vocab_size if num_classes is None else 0
    outputs = num_classes or 1  # sentence order has one
    return {
        "embeddings": (shape.vocab_size + shape.max_seqlen + 2) * d + 2 * d,
        "attention": layers * (4 * d * d + 6 * d),
        "feed-forward": layers * (2 * d * i + i + 3 * d),
        "heads": of_mlm + d * d + d + outputs * d + outputs,
    }
