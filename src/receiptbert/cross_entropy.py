"""Cross entropy in the memory of the logits.

T targets by V vocabulary entries make the largest tensor of a small model: 72 MB in fp32 for 600 targets and
30,000 entries. Torch's cross entropy makes another such tensor forward and two more backward, which take
memory and the time to write and read them.
"""

from typing import Any

import torch
from torch import Tensor


def cross_entropy_in_place(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """The sum of ``-log softmax(logits)[label]`` over the targets: torch's ``cross_entropy`` with
    ``reduction="sum"``.

    Args:
        logits: (T, V). They are overwritten by the probabilities, then by the gradient; in fp16 these go into
            a copy in fp32. In bf16 probabilities are rounded to eight bits: the loss of a target is off by
            up to 0.002 or so, and the derivative with respect to the logit of its label, too. The gradient
            is computed once; a second backward pass is an error.
        labels: (T,); where it is ``ignore_index`` there is no target.

    Returns:
        The sum, in fp32.
    """
    if logits.dtype == torch.float16:  # small probabilities would vanish before the gradient is scaled up
        logits = logits.float()
    arguments = logits, labels, labels != ignore_index
    return _CrossEntropy.apply(*arguments)  # type: ignore[no-untyped-call]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, is_target: Tensor) -> Tensor:
        columns = torch.where(is_target, labels, 0)  # (T,)
        rows = torch.arange(len(columns), device=columns.device)
        below_highest = logits.amax(dim=1).float() - logits[rows, columns].float()  # (T,)
        # Behind autograd's back: told by ``mark_dirty``, it would want the probabilities returned. Nothing
        # else needs the logits, the layer that made them neither.
        probs = torch.softmax(logits, dim=1, out=logits)
        ctx.save_for_backward(probs, columns, is_target)
        # log p = log p_max - (highest logit - logit): a probability that vanishes still has its logarithm.
        losses = below_highest - probs.amax(dim=1).float().log()
        return (losses * is_target).sum()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of a row is softmax(logits), less 1 at the label."""
        probs, columns, is_target = ctx.saved_tensors
        weights = (grad_loss * is_target).to(probs.dtype)  # (T,)
        gradient = probs.mul_(weights[:, None])
        gradient[torch.arange(len(columns), device=columns.device), columns] -= weights
        return gradient, None, None
