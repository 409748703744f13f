"""Models of a few dimensions with random weights, and a batch for them."""

from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

V, P, D, H = 50, 12, 8, 2  # entries of the vocabulary, positions, hidden size, heads

Module = TypeVar("Module", bound=nn.Module)


def shaken(model: Module, by: float = 0.1) -> Module:
    """Biases and layer norms that are not 0 and 1, so that none can be mixed up unnoticed."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * by)
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
