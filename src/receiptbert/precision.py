"""Mixed precision: what matrix products are computed in; weights and their updates stay in fp32."""

from contextlib import AbstractContextManager
from typing import Any

import torch

from receiptbert.choices import PRECISIONS
from receiptbert.errors import UserError
from receiptbert.onednn import bf16_pays, cpu_has_bf16

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(name: str, device: torch.device, key: str) -> str:
    """``auto`` is bf16 where it is faster than fp32, else fp32; any other name is taken literally.

    Args:
        name: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        device: where to compute.
        key: the setting that ``name`` comes from, for the message.

    Raises:
        UserError: no such precision, or the device would compute it in software, a hundred times slower.
    """
    if name == "auto":
        return "bf16" if (bf16_pays() if device.type == "cpu" else has_bf16(device)) else "fp32"
    if name not in PRECISIONS:
        raise UserError(f"{key} = {name} is not among {', '.join(PRECISIONS)}")
    if (name == "bf16" and not has_bf16(device)) or (name == "fp16" and device.type == "cpu"):
        raise UserError(f"{key} = {name}, which this {device.type} does not support; set auto")
    return name


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """A context that computes matrix products in ``precision``: fp32 (changes nothing), bf16 or fp16."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def has_bf16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_has_bf16()
