"""Choose where to compute."""

import os

import torch

from receiptbert.errors import UserError


def choose_device(
    name: str, deterministic: bool = False, key: str = "params.yaml: runtime.device"
) -> torch.device:
    """``auto`` is the GPU if there is one, else the CPU; any other name is taken literally.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` ...
        deterministic: use only algorithms that give the same bits in every run, in this whole process. On a
            CPU there are no others here.
        key: the setting that ``name`` comes from, for the message.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"{key} = {name} names no device; set auto") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"{key} = {name}, but torch {torch.__version__} finds no such GPU; set auto")
    if deterministic and device.type == "cuda":
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS reads it when it is first used
        torch.use_deterministic_algorithms(True)
    return device
