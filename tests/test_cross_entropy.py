import math

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


def in_half_precision(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss and gradient of ours, and those of torch in fp32."""
    leaf = (3 * torch.randn(50, 300)).to(dtype).requires_grad_()
    targets = torch.arange(50)
    expected = F.cross_entropy(leaf.float(), targets, reduction="sum")
    loss = cross_entropy_in_place(leaf.clone(), targets, IGNORED)
    return loss, gradient_of(loss, leaf), expected, gradient_of(expected, leaf)


def test_fp16_is_computed_in_full() -> None:
    loss, gradient, expected, expected_gradient = in_half_precision(torch.float16)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_small_probabilities_have_gradients_in_fp16() -> None:
    """They would be 0 in fp16, but not after the scaling of the loss."""
    logits = torch.tensor([[19.0, 0.0]], dtype=torch.float16, requires_grad=True)
    loss = 2**16 * cross_entropy_in_place(logits.clone(), torch.tensor([0]), IGNORED)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0, 1].item() == pytest.approx(2**16 * math.exp(-19), rel=1e-3)


def test_bf16_rounds_the_loss_and_the_gradient() -> None:
    loss, gradient, expected, expected_gradient = in_half_precision(torch.bfloat16)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    # Probabilities are rounded twice to eight bits, then the weight, their product and the difference from 1.
    torch.testing.assert_close(gradient, expected_gradient, rtol=6 * 2**-9, atol=0)


def test_a_target_that_is_next_to_impossible_has_a_finite_loss() -> None:
    """Its probability is 0 in any precision, and its logarithm -1000."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        logits = torch.tensor([[1000.0, 0.0]], dtype=dtype, requires_grad=True)
        loss = cross_entropy_in_place(logits.clone(), torch.tensor([1]), IGNORED)
        assert loss.item() == 1000
        assert gradient_of(loss, logits).tolist() == [
            [pytest.approx(0.3, rel=0.01), pytest.approx(-0.3, rel=0.01)]
        ]
