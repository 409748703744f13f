"""Run a stage in several processes, by torch's launcher, whether we start it or the user (``torchrun``)."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import wraps
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher import LaunchConfig, elastic_launch

from receiptbert import distributed, progress
from receiptbert.devices import choose_device
from receiptbert.errors import DEBUG, Interrupted, UserError
from receiptbert.interrupts import ending_signals
from receiptbert.params import Params, RuntimeParams

KEY = "params.yaml: runtime.processes"
SHUTDOWN_SECONDS = 600
# How gloo (the first four) and NCCL report a broken connection.
LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "ncclRemoteError",
)


def in_processes(stage: Callable[[Params], str | None]) -> Callable[[Params], str | None]:
    """A stage that runs in as many processes as ``runtime.processes`` says, or in those of torchrun."""

    @wraps(stage)
    def run(params: Params) -> str | None:
        if dist.is_torchelastic_launched():
            runtime = own_device(params.runtime)
            distributed.join(on_gpu=runtime.device.startswith("cuda"))
            line = stage(replace(params, runtime=runtime))
            distributed.leave()
            return line
        if (number := choose_processes(params.runtime)) > 1:
            launch(str(sys.modules[stage.__module__].__file__), number)  # there the line is printed
            return None
        return stage(params)

    return run


def choose_processes(runtime: RuntimeParams) -> int:
    """How many processes train: one for each GPU that may be used, one on a CPU, or as many as are set.

    Raises:
        UserError: more than there are GPUs for.
    """
    device = choose_device(runtime.device)
    if device.type == "cpu":
        return runtime.processes or 1
    gpus = torch.cuda.device_count() if device.index is None else 1  # `cuda:1` is that one alone
    if (runtime.processes or 1) > gpus:
        there = f"the GPUs that torch finds are {gpus}"
        if device.index is not None:
            there = f"runtime.device = {device} is one GPU"
        raise UserError(f"{KEY} = {runtime.processes}, but {there}; set auto")
    return runtime.processes or gpus


def launch(script: str, processes: int) -> None:
    """Run ``script`` in ``processes`` processes on this host; return when all have succeeded.

    Raises:
        UserError: a process was killed.
        SystemExit: one has failed and said why, or a signal has ended all of them.
    """
    # Torch kills what has not ended 30 seconds after a signal; a checkpoint may take longer to write.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_SECONDS))
    config = LaunchConfig(
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # by default in a temporary folder that stays
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle=",".join(number.name for number in ending_signals()),
    )
    # Otherwise each would take all cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
    if not os.environ.get(DEBUG):
        logging.disable(logging.ERROR)  # the launcher's account of a failure takes pages
    try:
        elastic_launch(config, sys.executable)(script)
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
    except ChildFailedError as error:
        codes = {number: failure.exitcode for number, failure in error.failures.items()}
        # SIGTERM is how the launcher ends the others. So it only means something
        # where no process has failed and said why.
        killed = codes if set(codes.values()) == {-signal.SIGTERM} else {}
        killed |= {number: code for number, code in codes.items() if code < 0 and code != -signal.SIGTERM}
        if killed:
            number = min(killed)
            raise UserError(
                f"process {number} of {processes} was ended by {signal.Signals(-killed[number]).name}; "
                "run the same command to continue from the last checkpoint"
            ) from None
        sys.exit(max(1, *codes.values()))
    finally:
        logging.disable(logging.NOTSET)


def own_device(runtime: RuntimeParams) -> RuntimeParams:
    """``runtime`` with the GPU of this process, if GPUs are to be used.

    Raises:
        UserError: torchrun has started more processes than this host has GPUs.
    """
    if choose_device(runtime.device).type == "cpu":
        return runtime
    number, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= gpus:
        started = os.environ["LOCAL_WORLD_SIZE"]
        raise UserError(
            f"torchrun has started {started} processes here, but the GPUs that torch finds are {gpus}; "
            f"give it --nproc-per-node={gpus}"
        )
    torch.cuda.set_device(number)
    return replace(runtime, device=f"cuda:{number}")


@contextmanager
def one_voice() -> Iterator[None]:
    """Of several processes that fail, let the first say why. The others fail for the same reason, or because
    the first has failed.

    Only the main process reports progress.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    progress.quiet = os.environ["RANK"] != "0"
    store, _, _ = distributed.rendezvous()
    try:
        yield
    except Interrupted:  # nobody speaks
        raise
    except (Exception, KeyboardInterrupt) as error:
        is_first = True
        with suppress(RuntimeError):  # where the main process keeps the store, it may be gone
            is_first = store.add("failures", 1) == 1
        if not is_first:
            sys.exit(1)
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in LOST):
            raise UserError(
                "another process of the training has died; run the same command to continue from the last "
                "checkpoint"
            ) from error
        raise
