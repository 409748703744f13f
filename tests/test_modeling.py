"""Parameter counts, parity with Hugging Face, and the heads."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForPreTraining, BertForSequenceClassification

from literal import read_literally
from receiptbert import (
    Bert,
    BertEmbeddings,
    BertFinetuneModel,
    BertLayer,
    BertModel,
    ClassifierHead,
    FeedForward,
    MlmHead,
    MultiHeadSelfAttention,
)
from receiptbert.hf_names import to_hf
from tests.small_models import D, H, P, V, shaken


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (BertEmbeddings(V, D, P), (V + P + 2) * D + 2 * D),
        (MultiHeadSelfAttention(D, H), 4 * D**2 + 6 * D),
        (FeedForward(D, 4 * D), 8 * D**2 + 7 * D),
        (BertLayer(D, 4 * D, H), 12 * D**2 + 13 * D),
        (Bert(V, P, D, 3, 4 * D, H), (V + P + 2) * D + 2 * D + 3 * (12 * D**2 + 13 * D)),
        (MlmHead(D, V, "gelu"), D**2 + D + 2 * D + V * D + V),
        (ClassifierHead(D), D**2 + D + D + 1),
        (ClassifierHead(D, num_classes=7), D**2 + D + 7 * D + 7),
        (
            BertModel(D, V, P, 1, 4 * D, H),  # the tied matrix counts once
            (V + P + 2) * D + 2 * D + 12 * D**2 + 13 * D + D**2 + D + 2 * D + V + D**2 + D + D + 1,
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_parameter_counts(module: nn.Module, expected: int) -> None:
    assert num_parameters(module) == expected


def hf_twin(model: nn.Module, hf_class: type, **config: Any) -> Any:
    """A Hugging Face model with the weights of ours, without dropout."""
    twin = hf_class(
        BertConfig(
            vocab_size=V,
            max_position_embeddings=P,
            hidden_size=D,
            num_hidden_layers=2,
            intermediate_size=4 * D,
            num_attention_heads=H,
            layer_norm_eps=model.shape.eps,
            pad_token_id=None,  # else theirs keeps the gradient of token 0 at zero
            **config,
        )
    ).eval()
    loaded = twin.load_state_dict(to_hf(model.state_dict()), strict=False)
    assert not loaded.unexpected_keys
    assert set(loaded.missing_keys) <= {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    twin.tie_weights()
    return twin


@pytest.mark.parametrize("act_func", ["gelu", "relu"])
def test_pretraining_losses_and_gradients_equal_hugging_face(batch: dict[str, Tensor], act_func: str) -> None:
    ours = shaken(BertModel(D, V, P, 2, 4 * D, H, act_func=act_func, eps=1e-2))  # not the default
    theirs = hf_twin(ours, BertForPreTraining, hidden_act=act_func)

    loss, parts = ours(batch["ids"], batch["mask"], batch["labels"], batch["permuted"], batch["types"])
    output = theirs(batch["ids"], attention_mask=batch["mask"], token_type_ids=batch["types"])
    mlm = F.cross_entropy(output.prediction_logits.flatten(0, 1), batch["labels"].flatten())
    sop = F.cross_entropy(output.seq_relationship_logits, batch["permuted"].long())
    torch.testing.assert_close(parts, {"MLM": mlm, "SOP": sop}, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(loss, 0.5 * mlm + 0.5 * sop, atol=1e-6, rtol=1e-5)

    loss.backward()
    (0.5 * mlm + 0.5 * sop).backward()
    named = dict(theirs.named_parameters())
    gradients = to_hf(
        {name: parameter.grad for name, parameter in ours.named_parameters()}
        | {
            "_mlm_head._decoder.weight": torch.zeros(0)  # tied: its gradient is the token embeddings'
        }
    )
    for name, gradient in gradients.items():
        expected = named[name].grad
        if name.startswith("cls.seq_relationship"):
            expected = expected / 2  # ours is the gradient of z, theirs those of -z/2 and z/2
        torch.testing.assert_close(
            gradient, expected, atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_the_tasks_are_weighted(batch: dict[str, Tensor]) -> None:
    arguments = (batch["ids"], batch["mask"], batch["labels"], batch["permuted"], batch["types"])
    for weight in (0.0, 0.1, 1.0):
        loss, parts = BertModel(D, V, P, 1, 4 * D, H, sop_weight=weight)(*arguments)
        torch.testing.assert_close(loss, (1 - weight) * parts["MLM"] + weight * parts["SOP"])


def test_classifier_equals_hugging_face(batch: dict[str, Tensor]) -> None:
    ours = shaken(BertFinetuneModel(D, V, P, 2, 4 * D, H, num_classes=5, act_func="gelu"))
    theirs = hf_twin(ours, BertForSequenceClassification, num_labels=5)
    logits = ours(batch["ids"], batch["mask"])
    expected = theirs(batch["ids"], attention_mask=batch["mask"]).logits
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-5)


def test_the_model_read_literally_is_the_same_model(batch: dict[str, Tensor]) -> None:
    """What reading.md sends a student to, and what the benchmark of training is compared with."""
    model = shaken(BertModel(D, V, P, 2, 4 * D, H))
    inputs = batch["ids"], batch["mask"], batch["labels"], batch["permuted"], batch["types"]
    loss, parts = model(*inputs)
    same_loss, same_parts = read_literally(model)(*inputs)
    torch.testing.assert_close((same_loss, same_parts), (loss, parts), atol=1e-6, rtol=1e-5)


def test_dropout_acts_in_training_alone(batch: dict[str, Tensor]) -> None:
    for name in ("input_dropout_prob", "hidden_dropout_prob", "attention_probs_dropout_prob"):
        model = BertFinetuneModel(D, V, P, 2, 4 * D, H, num_classes=5, **{name: 0.5})
        assert not torch.equal(model(batch["ids"]), model(batch["ids"])), name
        model.eval()
        assert torch.equal(model(batch["ids"]), model(batch["ids"])), name


def test_mlm_head_ties_or_owns_its_matrix() -> None:
    embeddings = nn.Embedding(V, D)
    tied = MlmHead(D, V, "gelu", input_embeddings=embeddings)
    assert tied._decoder.weight is embeddings.weight
    assert MlmHead(D, V, "gelu")._decoder.weight is not embeddings.weight


def test_mlm_loss_of_a_batch_without_targets_is_zero_with_finite_gradients() -> None:
    head = MlmHead(D, V, "gelu")
    loss = head(torch.randn(2, 3, D), torch.full((2, 3), -100))
    loss.backward()
    assert loss == 0
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


def test_classifier_head_reads_cls_alone() -> None:
    head = ClassifierHead(D, num_classes=4)
    hidden = torch.randn(2, 3, D)
    changed = hidden.clone()
    changed[:, 1:] += 1
    assert head(hidden).shape == (2, 4)
    assert torch.equal(head(hidden), head(changed))


@pytest.mark.parametrize(("max_targets", "used"), [(9, 4), (4, 4), (2, 2)])
def test_a_fixed_number_of_targets_gives_the_loss_of_those_that_fit(
    pretrain_model: Any, max_targets: int, used: int
) -> None:
    model = pretrain_model()
    input_ids = torch.randint(5, 20, (3, 6))
    labels = torch.full((3, 6), -100)
    for place in [(0, 2), (0, 5), (1, 1), (2, 4)][:used]:
        labels[place] = 7
    permuted = torch.tensor([True, False, True])
    exact, _ = model(input_ids, None, labels, permuted)
    for place in [(0, 2), (0, 5), (1, 1), (2, 4)][used:]:
        labels[place] = 7  # one too many
    fixed, _ = model(input_ids, None, labels, permuted, max_targets=max_targets)
    assert fixed.item() == pytest.approx(exact.item(), rel=1e-5)
    gradients = torch.autograd.grad(fixed, list(model.parameters()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
