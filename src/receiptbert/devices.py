"""Choose where to compute."""

import ctypes
import os
import sys
from pathlib import Path

import torch

from receiptbert.errors import UserError
from receiptbert.onednn import keep_shapes

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")  # the root of control groups; in a container, its own group
OWN_CGROUP = Path("/proc/self/cgroup")

# From glibc's malloc.h: how many blocks may be mapped one by one, how much free memory is kept, in bytes.
M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1


def choose_device(
    name: str, deterministic: bool = False, key: str = "params.yaml: runtime.device"
) -> torch.device:
    """``auto`` is the GPU if there is one, else the CPU; any other name is taken literally.

    With a GPU, this whole process does without cuDNN's attention from here on.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` ...
        deterministic: use only algorithms that give the same bits in every run, in this whole process. On a
            CPU there are no others here.
        key: the setting that ``name`` comes from, for the message.

    Raises:
        UserError: there is no such device, or it is neither a CPU nor a CUDA GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"{key} = {name} names no device; set auto") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"{key} = {name}, which is not supported; set auto, cpu or cuda")
    exists = device.type == "cpu" or (device.index or 0) < torch.cuda.device_count()
    if not exists or str(device) != name:  # torch keeps eight bits of the number: 200 becomes -56
        raise UserError(f"{key} = {name}, but torch {torch.__version__} finds no such device; set auto")
    if device.type == "cuda":
        # cuDNN plans attention anew for each new shape of a batch, which takes tens of milliseconds, and for
        # short texts torch's own kernel is faster.
        torch.backends.cuda.enable_cudnn_sdp(False)
        if deterministic:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS reads it when it is first used
            torch.use_deterministic_algorithms(True)
    return device


def device_name(device: torch.device) -> str:
    """What a GPU calls itself; ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def keep_freed_memory(device: torch.device, precision: str) -> None:
    """Have a training on a CPU keep the memory that a step frees for the next one, in pages of 2 MiB.

    Otherwise Linux takes large blocks back and hands them out anew in each step, filled with zeros, 4 KiB at
    a time. oneDNN, too, is told how much to keep (see ``onednn``). All this affects the whole process; where
    the C library is not glibc, only the page size and oneDNN change.

    Args:
        device: where to train.
        precision: of the training, as in ``choose_precision``.
    """
    if device.type != "cpu" or sys.platform != "linux":
        return
    keep_shapes(precision)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it when it first makes a large tensor
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def free_memory(device: torch.device) -> int | None:
    """Bytes of memory that ``device`` has left for this process; None if unknown.

    For a CPU, what Linux calls available, or less where a control group (version 2) limits a container, a job
    of Slurm or a service.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = dict(line.split(":") for line in MEMINFO.read_text(encoding="utf-8").splitlines())
        available = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):  # not Linux
        return None
    left = [_left_in(group) for group in _cgroups()]
    return min([available, *(number for number in left if number is not None)])


def _cgroups() -> list[Path]:
    """The folders of this process's control group and of those that contain it."""
    try:
        lines = OWN_CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    folder = CGROUP / own
    return [group for group in (folder, *folder.parents) if group.is_relative_to(CGROUP)]


def _left_in(group: Path) -> int | None:
    """Bytes of memory that are left of the limit of a control group; None if it has none."""
    try:
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used -= int(counts["file"]) - int(counts["shmem"])  # the cache, not files in memory
    except (OSError, KeyError, ValueError):  # no limit: `max`
        return None
    return max(limit - used, 0)
