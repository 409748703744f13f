"""One training in several processes, each of which computes a share of every batch.

All processes hold the whole model and draw the same batches with the same random numbers. Each computes the
gradients of its own rows, the gradients are averaged, and all take the same step. So weights, optimizer
and schedule are equal everywhere, and so are the random numbers that batches are drawn with: the first
process, the main one, speaks and writes for all, and a checkpoint of its state is one of the whole training,
for any number of processes.

With a single process nothing here does anything. How several are started: ``launching``.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

# When a process dies, its connections break and the others know at once. Only where a whole machine or its
# network is gone is a timeout needed; within a step processes wait for each other only for moments.
STEP_TIMEOUT = timedelta(seconds=50)
# The others wait while one writes a checkpoint to a slow disk, or fits a linear teacher of many classes.
LONG_TIMEOUT = timedelta(hours=12)

_patient: dist.ProcessGroup | None = None  # all processes, for long waits; on the CPU


def join(on_gpu: bool) -> None:
    """Meet the other processes, as torchrun describes them in the environment."""
    global _patient
    store, number, processes = rendezvous()
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", store=store, rank=number, world_size=processes, timeout=STEP_TIMEOUT
    )
    _patient = dist.new_group(backend="gloo", timeout=LONG_TIMEOUT)


def rendezvous() -> tuple[dist.Store, int, int]:
    """The store that the processes share, this one's number, and how many there are."""
    store, number, processes = next(dist.rendezvous("env://"))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # torchrun keeps the store when it restarts all processes, with the addresses of the dead ones.
        store = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    return store, number, processes


def leave() -> None:
    """Wait until all are done, and disconnect. Only after success: on an error a process just ends."""
    barrier()
    dist.destroy_process_group()


def num_processes() -> int:
    """How many processes train together, on all hosts."""
    return dist.get_world_size() if dist.is_initialized() else 1


def num_processes_here() -> int:
    """How many of them are on this host."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main_process() -> bool:
    """Whether this process writes and speaks for all."""
    return rank() == 0


def barrier() -> None:
    """Wait until all processes are here."""
    if num_processes() > 1:
        dist.barrier(group=_patient)


def from_main_process(make: Callable[[], T]) -> T:
    """What ``make`` returns in the main process. The others do not call it; they wait for a copy."""
    if num_processes() == 1:
        return make()
    box: list[Any] = [make() if is_main_process() else None]
    dist.broadcast_object_list(box, src=0, group=_patient)
    return box[0]


def in_shares(
    compute: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]], number: int
) -> npt.NDArray[np.float32]:
    """What ``compute`` returns for 0 to ``number`` - 1, (number, ...), in any number of processes.

    Args:
        compute: takes some of these numbers, (n,), and returns a row for each, (n, ...).
    """
    if num_processes() == 1:
        return compute(np.arange(number))
    shares: list[Any] = [None] * num_processes()
    dist.all_gather_object(shares, compute(np.arange(rank(), number, num_processes())), group=_patient)
    rows = np.empty((number, *shares[0].shape[1:]), dtype=np.float32)  # the first share is the largest
    for first, share in enumerate(shares[:number]):
        rows[first :: num_processes()] = share
    return rows


# --- A step ---


class Share(NamedTuple):
    """What a process computes of a batch, and the weight of the mean over it.

    The mean of all processes' means, each times its weight, is the mean over the batch.
    """

    rows: slice
    weight: float


def share_of(num_rows: int) -> Share:
    """This process's share of a batch: every n-th row for n processes, as neighbours are similar in length.

    Where there are fewer rows than processes, some compute a row of weight 0: averaging the gradients takes
    all processes.
    """
    own = len(range(rank(), num_rows, num_processes()))
    if not own:
        return Share(slice(1), 0.0)
    return Share(slice(rank(), None, num_processes()), own * num_processes() / num_rows)


def weight_of(share: Share, mask: Tensor) -> Tensor:
    """As ``Share.weight``, for a mean over the elements of a batch for which ``mask`` (B, ...) is true."""
    return mask[share.rows].sum() * num_processes() * (share.weight > 0) / mask.sum().clamp(min=1)


def parallel(model: nn.Module) -> nn.Module:
    """``model``, wrapped so that its backward pass averages the gradients of all processes."""
    if num_processes() == 1:
        return model
    barrier()  # some may have had more to prepare
    # Gradients live in the buffers that are sent: no second copy of them.
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def averaging(model: nn.Module, active: bool) -> AbstractContextManager[None]:
    """Within it, passes through what ``parallel`` made average the gradients only if ``active``.

    Of several batches accumulated into one step, the last one's backward pass averages the sums of all.
    """
    if active or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


@contextmanager
def own_random_numbers(device: torch.device, *position: int) -> Iterator[None]:
    """Within it, random numbers that no other process and no other batch has, for dropout.

    Afterwards the previous sequence continues, from which all processes draw the next batch. The numbers
    differ between processes and leave no trace in a checkpoint.

    Args:
        device: where they are drawn.
        position: what identifies it in the training: epoch, batch and so on.
    """
    if num_processes() == 1:
        yield
        return
    seed = hash((torch.initial_seed(), rank(), *position))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def average(values: Tensor) -> Tensor:
    """The mean of all processes' ``values``, which have the same shape."""
    if num_processes() > 1:
        dist.all_reduce(values)
        values /= num_processes()
    return values


class Agreement:
    """What all processes do after a step: what any of them wants, and all at the same step.

    Nobody waits for it: a wish is sent after one step and agreed upon after the next, when the answer has
    long arrived.
    """

    def __init__(self) -> None:
        self._wishes = torch.zeros(2, dtype=torch.int64)
        self._sent: dist.Work | None = None

    def on(self, save: bool, stop: int) -> tuple[bool, int]:
        """Call it after each step.

        Args:
            save: whether this process wants a checkpoint written.
            stop: the signal that asked this process to end, or 0.

        Returns:
            the same two, agreed upon.
        """
        if num_processes() == 1:
            return save, stop
        agreed = (False, 0)
        if self._sent is not None:
            self._sent.wait()
            agreed = (bool(self._wishes[0]), int(self._wishes[1]))
        # What is agreed upon now is not done yet, so it is still wished for.
        self._wishes = torch.tensor([int(save and not agreed[0]), stop])
        self._sent = dist.all_reduce(self._wishes, dist.ReduceOp.MAX, group=_patient, async_op=True)
        return agreed
