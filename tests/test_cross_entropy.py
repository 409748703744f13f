import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from receiptbert.cross_entropy import cross_entropy_in_place

IGNORED = -100


def gradient_of(loss: Tensor, leaf: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(0.3 * loss, leaf)
    return gradient


@given(
    st.lists(st.sampled_from([IGNORED, 0, 3, 6]), max_size=20), st.sampled_from([1, 30, 1000]), st.integers(0)
)
def test_it_is_that_of_torch(labels: list[int], scale: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed % 2**63)
    leaf = (scale * torch.randn(len(labels), 7, generator=generator)).requires_grad_()
    targets = torch.tensor(labels, dtype=torch.int64)
    expected = F.cross_entropy(leaf, targets, ignore_index=IGNORED, reduction="sum")
    loss = cross_entropy_in_place(leaf.clone(), targets, IGNORED)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient_of(loss, leaf), gradient_of(expected, leaf))


def test_the_gradient_takes_the_place_of_the_logits() -> None:
    leaf = torch.randn(4, 7, requires_grad=True)
    logits = leaf.clone()
    loss = cross_entropy_in_place(logits, torch.tensor([1, 2, IGNORED, 3]), IGNORED)
    assert gradient_of(loss, logits).data_ptr() == logits.data_ptr()


def test_a_second_backward_pass_is_refused() -> None:
    logits = torch.randn(4, 7, requires_grad=True).clone()
    loss = cross_entropy_in_place(logits, torch.tensor([1, 2, 0, 3]), IGNORED)
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_full(dtype: torch.dtype) -> None:
    leaf = torch.randn(50, 300).to(dtype).requires_grad_()
    targets = torch.arange(50)
    expected = F.cross_entropy(leaf.float(), targets, reduction="sum")
    loss = cross_entropy_in_place(leaf.clone(), targets, IGNORED)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient_of(loss, leaf), gradient_of(expected, leaf))
