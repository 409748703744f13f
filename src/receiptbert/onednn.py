"""oneDNN, the library that computes some of torch's operations on a CPU: its memory, and where bf16 pays."""

import os
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

# The variable that tells it for how many shapes of its operands to keep the code that it compiled: the last
# 1,024 if it is not set.
KEPT_SHAPES = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


def keep_shapes(precision: str) -> None:
    """Have oneDNN keep the compiled code of as many shapes as pay, in this whole process, unless the
    environment sets ``KEPT_SHAPES`` already. It must be called before oneDNN is first used.

    The code lies scattered among the activations, so that the heap grows with every new shape of a batch.
    In fp32 the shapes of one batch are enough, 16, and no slower. In bf16 all products are oneDNN's, each
    shape takes a quarter of a millisecond to compile, and those of all batches, some 2,000, pay
    (docs/LOG.md, Speed).

    Args:
        precision: as in ``choose_precision``.
    """
    in_bf16 = precision == "bf16" or (precision == "auto" and bf16_pays())
    os.environ.setdefault(KEPT_SHAPES, "2048" if in_bf16 else "16")


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 matrices in hardware."""
    return re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", _cpuinfo()) is not None


def bf16_pays() -> bool:
    """Whether the processor multiplies bf16 matrices faster than fp32 ones.

    Intel's are faster in tiles (AMX). Where a virtual machine hides these, products of vectors are left,
    which take longer than in fp32; on AMD they take less (docs/LOG.md, bf16 on a CPU).
    """
    intel_without_tiles = "GenuineIntel" in _cpuinfo() and "amx_bf16" not in _cpuinfo()
    return cpu_has_bf16() and not intel_without_tiles


def _cpuinfo() -> str:
    """What Linux tells of the processor."""
    try:
        return CPUINFO.read_text(encoding="utf-8")
    except OSError:  # not Linux; fp32 is always right
        return ""
