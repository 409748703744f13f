"""The heads of BERT, and the two models for pretraining and for finetuning.

The tasks are masked language modelling (Devlin et al. 2019) and, instead of their next sentence prediction,
sentence order prediction (Lan et al. 2020). Shapes: B texts in a batch, S tokens in a text, T targets,
d hidden size, V vocabulary, C classes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from receiptbert.cross_entropy import cross_entropy_in_place
from receiptbert.dropout import Dropout
from receiptbert.encoder import Bert, BertShape
from receiptbert.initialization import linear
from receiptbert.layers import ACTIVATIONS


class MlmHead(nn.Module):
    """Masked language modelling: predict the true token at each target.

    Args:
        hidden_size: d.
        vocab_size: V.
        hidden_act: ``gelu`` or ``relu``.
        eps: of the layer norm.
        ignore_index: the label of a token that is not a target.
        input_embeddings: the token embeddings to share (weight tying, Press and Wolf 2017); None for a
            matrix of its own.

    Parameters: d^2 + d + 2d + Vd + V, of which Vd are those of ``input_embeddings``.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        hidden_act: str,
        eps: float = 1e-3,
        ignore_index: int = -100,
        input_embeddings: nn.Embedding | None = None,
    ) -> None:
        super().__init__()
        self._dense = linear(hidden_size, hidden_size)
        self._activation = ACTIVATIONS[hidden_act]
        self._layer_norm = nn.LayerNorm(hidden_size, eps=eps)
        self._decoder = linear(hidden_size, vocab_size)
        if input_embeddings is not None:
            self._decoder.weight = input_embeddings.weight
        self.ignore_index = ignore_index

    def forward(self, hidden_states: Tensor, labels: Tensor) -> Tensor:
        """(B, S, d) and (B, S) true ids -> the mean cross entropy over the targets (nats), 0 if none."""
        is_target = self.is_target(labels)
        return self.loss_at(hidden_states[is_target], labels[is_target])

    def loss_at(self, hidden_states: Tensor, labels: Tensor) -> Tensor:
        """(T, d) and (T,) -> the same over tokens picked beforehand, some of which may not be targets."""
        # Logits at the targets alone: the product with the V x d matrix is the most expensive of a small
        # model, and most tokens are not targets.
        logits = self.logits(hidden_states)  # (T, V)
        loss = cross_entropy_in_place(logits, labels, self.ignore_index)
        return loss / self.is_target(labels).sum().clamp(min=1)

    def is_target(self, labels: Tensor) -> Tensor:
        """Where ``labels`` (any shape) are those of targets; bool."""
        return labels != self.ignore_index

    def logits(self, hidden_states: Tensor) -> Tensor:
        """(..., d) -> (..., V)."""
        transformed = self._layer_norm(self._activation(self._dense(hidden_states)))
        return self._decoder(transformed)


class ClassifierHead(nn.Module):
    """Classify a text by the hidden state of ``[CLS]``: sentence order in pretraining, then categories.

    The first layer with its tanh is BERT's pooler.

    Args:
        hidden_size: d.
        num_classes: C.
        hidden_dropout_prob: dropout before the last layer.

    Parameters: d^2 + d + Cd + C.
    """

    CLS_POSITION = 0  # `BertModel.forward` and `only_cls` of the encoder count on it, too
    CRITERION = nn.BCEWithLogitsLoss()

    def __init__(self, hidden_size: int, num_classes: int = 1, hidden_dropout_prob: float = 0.0) -> None:
        super().__init__()
        self._dense = linear(hidden_size, hidden_size)
        self._activation = nn.Tanh()
        self._dropout = Dropout(hidden_dropout_prob)
        self._output = linear(hidden_size, num_classes)

    def forward(self, hidden_states: Tensor, permuted: Tensor | None = None) -> Tensor:
        """(B, S, d) -> logits (B, C); with ``permuted`` (B,) and C = 1, the binary cross entropy instead."""
        return self.at_cls(hidden_states[:, self.CLS_POSITION], permuted)

    def at_cls(self, hidden_states: Tensor, permuted: Tensor | None = None) -> Tensor:
        """(B, d) hidden states of ``[CLS]`` alone -> as ``forward``."""
        pooled = self._activation(self._dense(hidden_states))
        logits = self._output(self._dropout(pooled))
        if permuted is None:
            return logits
        return self.CRITERION(logits.squeeze(-1), permuted.to(logits.dtype))


class ModelOnBert(nn.Module):
    """What both models share: the encoder."""

    _backbone: Bert

    @property
    def backbone(self) -> Bert:
        """The encoder."""
        return self._backbone

    @property
    def shape(self) -> BertShape:
        """The shape of the encoder."""
        return self._backbone.shape


class BertModel(ModelOnBert):
    """BERT for pretraining: masked language modelling and sentence order prediction.

    The arguments are those of ``Bert``, except for these:

    Args:
        hidden_dropout_prob: ``dropout_prob`` of ``Bert``, and the dropout of the sentence order head.
        ignore_index: the label of a token that is not a target.
        sop_weight: the share of sentence order in the loss; 0.5, as in the assignment, weights both equally.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        max_seqlen: int,
        num_hidden_layers: int,
        intermediate_size: int,
        num_attention_heads: int,
        act_func: str = "relu",
        input_dropout_prob: float = 0.0,
        hidden_dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0,
        eps: float = 1e-3,
        ignore_index: int = -100,
        sop_weight: float = 0.5,
    ) -> None:
        super().__init__()
        self._sop_weight = sop_weight
        self._backbone = Bert(
            vocab_size=vocab_size,
            max_seqlen=max_seqlen,
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            intermediate_size=intermediate_size,
            num_attention_heads=num_attention_heads,
            input_dropout_prob=input_dropout_prob,
            dropout_prob=hidden_dropout_prob,
            attention_probs_dropout_prob=attention_probs_dropout_prob,
            act_func=act_func,
            eps=eps,
        )
        self._mlm_head = MlmHead(
            hidden_size,
            vocab_size,
            act_func,
            eps,
            ignore_index,
            input_embeddings=self._backbone.get_token_embeddings(),
        )
        self._classifier_head = ClassifierHead(
            hidden_size, hidden_dropout_prob=hidden_dropout_prob, num_classes=1
        )

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor,
        permuted: Tensor,
        token_type_ids: Tensor | None = None,
        max_targets: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimize, and its two parts: ``MLM`` and ``SOP``.

        Args:
            x: (B, S) corrupted ids.
            attention_mask: (B, S), 1 for tokens and 0 for padding; None if nothing is padded.
            labels: (B, S) true ids at the targets, ``ignore_index`` elsewhere.
            permuted: (B,), whether the segments are swapped.
            token_type_ids: (B, S), 0 or 1.
            max_targets: compute this many rows for targets: a GPU need not wait for their number, and batches
                have fewer shapes. If there are fewer, the surplus rows are ignored; if more, the last
                targets get no loss.
        """
        # Plainly: hidden_states = self._backbone(x, attention_mask, token_type_ids)  # (B, S, d)
        #          mlm_loss = self._mlm_head(hidden_states, labels)
        #          sop_loss = self._classifier_head(hidden_states, permuted)
        # The same losses for less work: the last layer is finished only for tokens that a head reads,
        # `[CLS]` of each text and then the T targets.
        targets = self._targets(labels, max_targets)  # (T,), indices of B * S tokens
        first = torch.arange(len(x), device=x.device) * x.shape[1]  # (B,), of each `[CLS]`
        hidden_states = self._backbone(
            x, attention_mask, token_type_ids, torch.cat([first, targets])
        )  # (B + T, d)
        at_cls, at_targets = hidden_states.split([len(x), len(targets)])
        mlm_loss = self._mlm_head.loss_at(at_targets, labels.flatten()[targets])
        sop_loss = self._classifier_head.at_cls(at_cls, permuted)
        parts = {"MLM": mlm_loss, "SOP": sop_loss}
        return self.total(parts), parts

    def evaluate(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor,
        permuted: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The mean MLM loss over the targets, and for each text whether its order is told right, (B,) bool.

        The arguments are those of ``forward``.
        """
        hidden_states = self._backbone(x, attention_mask, token_type_ids)  # (B, S, d)
        is_swapped = self._classifier_head(hidden_states).squeeze(-1) > 0  # (B,)
        return self._mlm_head(hidden_states, labels), is_swapped == permuted

    def _targets(self, labels: Tensor, max_targets: int | None) -> Tensor:
        """(B, S) labels -> (T,), the places of the targets: b S + s for token s of text b."""
        is_target = self.is_target(labels).flatten()
        if max_targets is None:
            return is_target.nonzero().squeeze(1)
        # Filled up with the index of the first token, a [CLS], which is never a target.
        return torch.nonzero_static(is_target, size=max_targets, fill_value=0).squeeze(1)

    def is_target(self, labels: Tensor) -> Tensor:
        """Where ``labels`` (any shape) are those of targets; bool."""
        return self._mlm_head.is_target(labels)

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        """The loss to minimize, from its two parts."""
        return (1 - self._sop_weight) * parts["MLM"] + self._sop_weight * parts["SOP"]


class BertFinetuneModel(ModelOnBert):
    """BERT for classification. All of its head but the last layer is pretrained on sentence order.

    The arguments are those of ``Bert``, except for these:

    Args:
        num_classes: C.
        hidden_dropout_prob: ``dropout_prob`` of ``Bert``, and the dropout before the head's last layer.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        max_seqlen: int,
        num_hidden_layers: int,
        intermediate_size: int,
        num_attention_heads: int,
        num_classes: int,
        act_func: str = "relu",
        input_dropout_prob: float = 0.0,
        hidden_dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0,
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        self._backbone = Bert(
            vocab_size=vocab_size,
            max_seqlen=max_seqlen,
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            intermediate_size=intermediate_size,
            num_attention_heads=num_attention_heads,
            input_dropout_prob=input_dropout_prob,
            dropout_prob=hidden_dropout_prob,
            attention_probs_dropout_prob=attention_probs_dropout_prob,
            act_func=act_func,
            eps=eps,
        )
        self._classifier_head = ClassifierHead(hidden_size, num_classes, hidden_dropout_prob)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, S) ids and (B, S) mask -> logits (B, C)."""
        at_cls = self._backbone(x, attention_mask, only_cls=True)  # (B, d)
        return self._classifier_head.at_cls(at_cls)


def dropout_everywhere(prob: float) -> dict[str, Any]:
    """One probability for all dropouts of either model, as keyword arguments."""
    return {
        "input_dropout_prob": prob,
        "hidden_dropout_prob": prob,
        "attention_probs_dropout_prob": prob,
    }
