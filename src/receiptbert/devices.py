"""Choose where to compute."""

import os

import torch

from receiptbert.errors import UserError


def choose_device(name: str, deterministic: bool = False) -> torch.device:
    """``auto`` is the GPU if there is one, else the CPU; any other name is taken literally.

    Args:
        deterministic: use only algorithms that give the same bits in every run, in this whole process. On a
            CPU there are no others here.
    """
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
    if deterministic and device.type == "cuda":
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS reads it when it is first used
        torch.use_deterministic_algorithms(True)
    return device
