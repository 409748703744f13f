"""Choose where to compute."""

import torch

from receiptbert.errors import UserError


def choose_device(name: str, key: str = "params.yaml: runtime.device") -> torch.device:
    """``auto`` is the GPU if there is one, else the CPU; any other name is taken literally.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` ...
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
    return device
