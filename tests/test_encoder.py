"""The encoder: initial weights, attention and its mask, and tokens that are computed alone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from receiptbert import (
    Bert,
    BertFinetuneModel,
    BertModel,
    MultiHeadSelfAttention,
    init_layer,
)
from tests.small_models import D, H, P, V, shaken


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


def test_wanted_tokens_are_those_of_the_whole(batch: dict[str, Tensor]) -> None:
    bert = shaken(Bert(V, P, D, 2, 4 * D, H))
    wanted = torch.tensor([13, 0, 2, 7])
    whole = bert(batch["ids"], batch["mask"]).flatten(0, 1)
    torch.testing.assert_close(bert(batch["ids"], batch["mask"], flat_positions=wanted), whole[wanted])


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_cls_alone_in_half_precision_is_that_of_the_whole(
    batch: dict[str, Tensor], dtype: torch.dtype
) -> None:
    bert = shaken(Bert(V, P, D, 2, 4 * D, H))
    with torch.autocast("cpu", dtype):
        whole = bert(batch["ids"], batch["mask"])[:, 0]
        alone = bert(batch["ids"], batch["mask"], only_cls=True)
    torch.testing.assert_close(alone, whole, atol=8 * torch.finfo(dtype).eps, rtol=0)
    assert not torch.equal(bert(batch["ids"], batch["mask"])[:, 0], whole)  # so it was half precision


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
    torch.testing.assert_close(attention(x, mask, only_cls=True), expected[:, 0], atol=1e-6, rtol=1e-5)
    assert attention(x, torch.zeros_like(mask)).isfinite().all()  # of a query that attends to nothing


def test_what_dropout_leaves_weighs_values_with_their_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = shaken(MultiHeadSelfAttention(D, H))
    monkeypatch.setattr(
        attention._attention_dropout, "forward", lambda weights: weights * (weights > 0.2) * 2
    )
    x = torch.randn(3, 5, D)
    torch.testing.assert_close(attention(x, only_cls=True), attention(x)[:, 0], atol=1e-6, rtol=1e-5)


def test_one_kernel_computes_what_the_formula_does() -> None:
    attention = MultiHeadSelfAttention(D, H)
    query, key, value = torch.randn(3, 4, H, 5, D // H).unbind()
    mask = ((torch.rand(4, 5, 5) < 0.7) | torch.eye(5, dtype=torch.bool))[:, None]
    for some in (mask, None):
        expected = attention._attend(query, key, value, some)
        torch.testing.assert_close(attention._attend_in_one_kernel(query, key, value, some), expected)


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


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="is not a multiple"):
        MultiHeadSelfAttention(10, 3)
