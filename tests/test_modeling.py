"""Parameter counts, parity with Hugging Face, and the heads."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForPreTraining, BertForSequenceClassification
from transformers import BertModel as HfBertModel

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
    init_layer,
)
from receiptbert.hf_names import to_hf

V, P, D, H = 50, 12, 8, 2


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


def test_initialization() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(300, 300)
    init_layer(layer, initializer_range=0.05)
    assert layer.weight.abs().max() <= 0.1
    # The deviation of a normal distribution cut at two deviations is 0.88 of its own.
    assert layer.weight.std().item() == pytest.approx(0.88 * 0.05, rel=0.02)
    assert not layer.bias.any()
    embedding = nn.Embedding(300, 300)
    init_layer(embedding, zero_out_bias=False)
    assert embedding.weight.abs().max() <= 0.04


@pytest.mark.parametrize("model", [BertModel(D, V, P, 2, 4 * D, H), BertFinetuneModel(D, V, P, 2, 32, H, 5)])
def test_every_matrix_of_a_model_is_initialized(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "layer_norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            assert 0 < parameter.abs().max() <= 0.04, name


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
            layer_norm_eps=1e-3,
            pad_token_id=None,  # else theirs keeps the gradient of token 0 at zero
            **config,
        )
    ).eval()
    loaded = twin.load_state_dict(to_hf(model.state_dict()), strict=False)
    assert not loaded.unexpected_keys
    assert set(loaded.missing_keys) <= {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    twin.tie_weights()
    return twin


def shaken(model: nn.Module) -> nn.Module:
    """Biases and layer norms that are not 0 and 1, so that none can be mixed up unnoticed."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture
def batch() -> dict[str, Tensor]:
    torch.manual_seed(2)
    mask = torch.ones(4, P, dtype=torch.long)
    mask[1, 7:] = 0
    mask[3, 3:] = 0
    labels = torch.randint(0, V, (4, P)).where((torch.rand(4, P) < 0.3) & mask.bool(), -100)
    return {
        "ids": torch.randint(0, V, (4, P)) * mask,
        "mask": mask,
        "types": torch.randint(0, 2, (4, P)),
        "labels": labels,
        "permuted": torch.tensor([True, False, True, True]),
    }


@pytest.mark.parametrize("act_func", ["gelu", "relu"])
def test_pretraining_losses_and_gradients_equal_hugging_face(batch: dict[str, Tensor], act_func: str) -> None:
    ours = shaken(BertModel(D, V, P, 2, 4 * D, H, act_func=act_func))
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


def test_hidden_states_equal_hugging_face(batch: dict[str, Tensor]) -> None:
    model = shaken(BertModel(D, V, P, 2, 4 * D, H, act_func="gelu"))
    ours = model._backbone(batch["ids"], batch["mask"], batch["types"])
    twin: HfBertModel = hf_twin(model, BertForPreTraining).bert
    theirs = twin(batch["ids"], attention_mask=batch["mask"], token_type_ids=batch["types"]).last_hidden_state
    kept = batch["mask"].bool()
    torch.testing.assert_close(ours[kept], theirs[kept], atol=1e-6, rtol=1e-5)


def test_the_model_read_literally_is_the_same_model(batch: dict[str, Tensor]) -> None:
    """What reading.md sends a student to, and what the benchmark of training is compared with."""
    model = shaken(BertModel(D, V, P, 2, 4 * D, H))
    inputs = batch["ids"], batch["mask"], batch["labels"], batch["permuted"], batch["types"]
    loss, parts = model(*inputs)
    same_loss, same_parts = read_literally(model)(*inputs)
    torch.testing.assert_close((same_loss, same_parts), (loss, parts), atol=1e-6, rtol=1e-5)


def test_wanted_rows_are_rows_of_the_whole(batch: dict[str, Tensor]) -> None:
    bert = shaken(Bert(V, P, D, 2, 4 * D, H))
    rows = torch.tensor([13, 0, 2, 7])
    whole = bert(batch["ids"], batch["mask"]).flatten(0, 1)
    torch.testing.assert_close(bert(batch["ids"], batch["mask"], rows=rows), whole[rows])


@pytest.mark.parametrize("masked", [True, False])
def test_cls_alone_is_that_of_the_whole(batch: dict[str, Tensor], masked: bool) -> None:
    bert = shaken(Bert(V, P, D, 2, 4 * D, H))
    mask = batch["mask"] if masked else None
    whole = bert(batch["ids"], mask)[:, 0]
    alone = bert(batch["ids"], mask, only_cls=True)
    torch.testing.assert_close(alone, whole)
    gradients = [
        torch.autograd.grad(output.sin().sum(), list(bert.parameters())) for output in (alone, whole)
    ]
    torch.testing.assert_close(*gradients)


def test_padding_changes_nothing(batch: dict[str, Tensor]) -> None:
    model = shaken(BertFinetuneModel(D, V, P, 2, 4 * D, H, num_classes=5))
    alone = model(batch["ids"][3:, :3])
    torch.testing.assert_close(model(batch["ids"], batch["mask"])[3:], alone, atol=1e-6, rtol=1e-5)


def test_no_mask_is_a_mask_of_ones(batch: dict[str, Tensor]) -> None:
    bert = shaken(Bert(V, P, D, 2, 4 * D, H))
    torch.testing.assert_close(bert(batch["ids"]), bert(batch["ids"], torch.ones(4, P)), atol=1e-6, rtol=1e-5)


def test_expand_mask_is_the_assignments_formula(batch: dict[str, Tensor]) -> None:
    mask = batch["mask"]
    expected = mask[:, None] * torch.ones_like(mask)[..., None]
    assert torch.equal(Bert.expand_mask(mask), expected)


def test_attention_by_hand() -> None:
    """The assignment's steps 2 to 10 written out, heads and batch kept apart."""
    torch.manual_seed(0)
    attention = shaken(MultiHeadSelfAttention(D, H))
    assert attention.size_per_head == D // H
    x = torch.randn(3, 5, D)
    mask = (torch.rand(3, 5, 5) < 0.7).long() | torch.eye(5, dtype=torch.long)
    query, key, value = attention._qkv(x).chunk(3, dim=-1)
    rows = []
    for b in range(3):
        heads = []
        for h in range(H):
            part = slice(h * D // H, (h + 1) * D // H)
            scores = query[b, :, part] @ key[b, :, part].T / (D / H) ** 0.5
            scores = mask[b] * scores + (1 - mask[b]) * -100000
            heads.append(scores.softmax(dim=1) @ value[b, :, part])
        rows.append(torch.cat(heads, dim=1))
    expected = attention._layer_norm(x + attention._output(torch.stack(rows)))
    torch.testing.assert_close(attention(x, mask), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(attention(x, mask, only_first=True), expected[:, 0], atol=1e-6, rtol=1e-5)


def test_attention_is_one_kernel_elsewhere_than_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Any, ...]] = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *inputs: (given.append(inputs), kernel(*inputs))[1]
    )
    attention = MultiHeadSelfAttention(D, H, attention_probs_dropout_prob=0.25)
    x, mask = torch.randn(3, 5, D), torch.ones(3, 5, 5)
    attention(x, mask)
    assert not given
    attention.to("meta")  # a device that computes shapes alone
    assert attention(x.to("meta"), mask.to("meta")).shape == (3, 5, D)
    attention.eval()(x.to("meta"))
    (*_, masked, dropped), (*_, unmasked, kept) = given
    assert masked.shape == (3, 1, 5, 5)
    assert (unmasked, dropped, kept) == (None, 0.25, 0.0)


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


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="is not a multiple"):
        MultiHeadSelfAttention(10, 3)


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
