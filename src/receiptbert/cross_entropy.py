"""Cross entropy in the memory of the logits.

T targets by V vocabulary entries make the largest tensor of a small model: 72 MB for 600 targets and 30,000
entries. Torch's cross entropy makes another such tensor forward and two more backward, which take memory and
the time to write and read them.
"""

from typing import Any, cast

import torch
from torch import Tensor


def cross_entropy_in_place(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """The sum of ``-log softmax(logits)[label]`` over the targets, as in torch's ``cross_entropy``.

    Args:
        logits: (T, V). In fp32 they are overwritten by the log-probabilities, then by the gradient; in half
            precision these go into a copy in fp32. The gradient is computed once; a second backward pass is
            an error.
        labels: (T,); where it is ``ignore_index`` there is no target.
    """
    # Half precision would round the probabilities.
    arguments = logits.float(), labels, labels != ignore_index
    return cast(Tensor, _CrossEntropy.apply(*arguments))  # type: ignore[no-untyped-call]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, is_target: Tensor) -> Tensor:
        log_probs = torch.log_softmax(logits, dim=1, out=logits)
        columns = torch.where(is_target, labels, 0)
        ctx.save_for_backward(log_probs, columns, is_target)
        return -(log_probs[torch.arange(len(columns), device=columns.device), columns] * is_target).sum()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of a row is softmax(logits), less 1 at the label."""
        log_probs, columns, is_target = ctx.saved_tensors
        weights = grad_loss * is_target  # (T,)
        gradient = log_probs.exp_().mul_(weights[:, None])
        gradient[torch.arange(len(columns), device=columns.device), columns] -= weights
        return gradient, None, None
