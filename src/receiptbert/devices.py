"""Choose where to compute."""

import torch

from receiptbert.errors import UserError


def choose_device(name: str) -> torch.device:
    """``auto`` is the GPU if there is one, else the CPU; any other name is taken literally."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"params.yaml: runtime.device = {name}, but torch {torch.__version__} finds no GPU; set auto"
        )
    return device
