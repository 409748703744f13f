"""Choose where to compute."""

import torch

from receiptbert.errors import UserError


def choose_device(name: str) -> torch.device:
    """``auto`` is the GPU if there is one, else the CPU; any other name is taken literally."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"params.yaml: runtime.device = {name} names no device; set auto") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"params.yaml: runtime.device = {name}, but torch {torch.__version__} finds no such GPU; set auto"
        )
    return device
