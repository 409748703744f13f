"""What the machine refuses, in one line: a full disk, a folder without write permission, no more memory."""

import errno
import os
import re
import sys
from typing import TYPE_CHECKING

from receiptbert.errors import UserError, printable

if TYPE_CHECKING:  # prediction does without it
    from receiptbert.params import Params

FREE_SPACE = "free some space, or move the project to a larger disk, and run it again"
PERMISSIONS = "change its permissions or owner, or run from a folder of your own"

ADVICE = {
    errno.ENOSPC: FREE_SPACE,
    errno.EDQUOT: FREE_SPACE,
    errno.EFBIG: "raise the limit (`ulimit -f`) or use a file system for larger files, and run it again",
    errno.EROFS: "run from a folder on a disk that can be written to",
    errno.EACCES: PERMISSIONS,
    errno.EPERM: PERMISSIONS,
    errno.ENOTDIR: "a file stands where a folder must be; move it away",
    errno.EEXIST: "a file stands where a folder must be; move it away",
    errno.EISDIR: "a folder stands where a file must be; move it away",
    errno.EIO: "the disk may be failing; check it",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ELOOP: "the link leads back to itself; make it lead to a file",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
}

# From torch's errors that have no class of their own.
UNUSABLE_GPU = ("no kernel image is available", "busy or unavailable")
OUT_OF_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def explain(error: Exception, stage: str = "", params: "Params | None" = None) -> str | None:
    """One line that says what went wrong and how to fix it; None for what can only be a bug of ours.

    Args:
        stage: a stage, whose settings the advice names (``pretrain``, say), or a command.
        params: None if there are none, or they could not even be read.
    """
    if isinstance(error, UserError):
        return str(error)
    if _is_out_of_memory(error):
        return f"out of memory{_amounts(str(error))}; {_smaller_batches(stage, params)}"
    if any(words in str(error) for words in UNUSABLE_GPU):
        return f"the GPU cannot be used ({str(error).splitlines()[0]}); {_without_gpu(params)}"
    # A missing file is a bug: we should have checked.
    if not isinstance(error, OSError) or not error.errno or error.errno in (errno.ENOENT, errno.EPIPE):
        return None
    where = f"{error.filename}: " if error.filename else ""
    advice = f"; {ADVICE[error.errno]}" if error.errno in ADVICE else ""
    return printable(f"{where}{os.strerror(error.errno)}{advice}")


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # half of the stages do without it
    on_gpu = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return on_gpu or isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def _amounts(message: str) -> str:
    """The memory requested and available, from torch's or NumPy's message; empty if it does not say."""
    size = r"[\d.]+ \w+"
    asked = re.search(rf"(?:[Tt]ried to|[Uu]nable to) allocate ({size})", message)
    there = re.search(rf"(GPU \d+ has a total capacity of {size} of which {size} is free)", message)
    found = [f"{asked[1]} were requested"] if asked else []
    found += [there[1]] if there else []
    return f" ({', '.join(found)})" if found else ""


def _without_gpu(params: "Params | None") -> str:
    key = "runtime.device=cpu" if params is not None else "--device cpu"
    return f"end other programs that use it, install a torch that is built for it, or set {key}"


def _smaller_batches(stage: str, params: "Params | None") -> str:
    if stage == "predict":
        return "give a smaller --batch-size, end other programs, or take a machine with more memory"
    if params is None or stage not in ("pretrain", "finetune"):
        return "end other programs that use the memory, or take a machine with more"
    size = params.pretrain.batch_size if stage == "pretrain" else params.finetune.batch_size
    advice = []
    if size > 1:
        factor = 2
        if stage == "pretrain":
            factor = next(number for number in range(2, size + 1) if size % number == 0)
        smaller = f"{stage}.batch_size is {size}: try {stage}.batch_size={size // factor}"
        if stage == "pretrain":
            steps = params.pretrain.num_accum_steps * factor
            smaller += f" and pretrain.num_accum_steps={steps}, which makes steps of as many texts"
        advice.append(smaller)
    if not params.runtime.activation_checkpointing:
        advice.append("runtime.activation_checkpointing=true")
    if stage == "finetune" and params.finetune.teachers:  # the linear one's features may be what is too large
        advice.append("finetune.teachers=0")
    return ", or ".join([*advice, "a smaller model"])
