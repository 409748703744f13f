"""Models of a few dimensions with random weights, a batch for them, and changes to the files of a model."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file, save_file
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


def change_json(path: Path, *removed: str, **changes: Any) -> None:
    """Remove keys of the object in a file, and set others."""
    values = json.loads(path.read_text()) | changes
    for key in removed:
        del values[key]
    path.write_text(json.dumps(values))


@contextmanager
def change_weights(folder: Path) -> Iterator[dict[str, Tensor]]:
    """A checkpoint's weights, which are saved as they are left."""
    weights = load_file(folder / "model.safetensors")
    yield weights
    save_file(weights, folder / "model.safetensors")
