"""Resume after a kill: the state of a training in files that are complete or absent."""

import hashlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from receiptbert.devices import device_name
from receiptbert.distributed import from_main_process, is_main_process, num_processes, rank
from receiptbert.errors import UserError
from receiptbert.files import atomic
from receiptbert.progress import say

# After a checkpoint that took a second to write comes a minute without one, whatever the interval: even for
# a large model on a slow disk they take less than 2% of the time.
REST = 60
KEPT = 2  # the newest, and the one before it in case the newest is damaged


@dataclass(frozen=True)
class State:
    """All that a training needs to go on: tensors by name, and what JSON can hold."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one training.

    They lie in ``folder/<fingerprint>``: a training with another fingerprint finds none. Use it as a context
    manager: within it no other training can use ``folder``. Of several processes that train together, only
    the main process writes and reads.

    Args:
        folder: of the stage, or of one of its trainings; its name is the training's.
        fingerprint: what ``training_fingerprint`` gives, or any other name.
        seconds: the least time from one checkpoint to the next, and from the start to the first.

    Raises:
        UserError: another process trains in ``folder`` (when the context is entered).
    """

    def __init__(self, folder: Path, fingerprint: str, seconds: float) -> None:
        self._training = folder.name
        self._parent = folder
        self._folder = folder / fingerprint
        self._seconds = seconds
        self._rest = 0.0
        self._last = 0.0  # when the last one was written, or the training began
        self._lock = FileLock(folder.with_suffix(".lock"))

    def __enter__(self) -> "Checkpoints":
        if not is_main_process():
            return self
        self._parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"another {self._training} is training in this project ({self._lock.lock_file} is locked); "
                "wait for it or stop it"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @property
    def due(self) -> bool:
        """Whether it is time for the next checkpoint."""
        return time.monotonic() - self._last >= max(self._seconds, REST * self._rest)

    def save(self, step: int, state: State) -> None:
        """Write the checkpoint of ``step``; once it is safe on disk, remove all but the ``KEPT`` newest."""
        start = time.monotonic()
        content = save(dict(state.tensors), metadata={"values": json.dumps(state.values)})
        # The digest in the name reveals a damaged file, whatever damaged it.
        path = self._folder / f"step-{step:09d}-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
        with atomic(path) as partial:
            partial.write_bytes(content)
        for old in [*self._paths()[KEPT:], *self._folder.glob("*.part")]:
            old.unlink()
        self._last = time.monotonic()
        self._rest = self._last - start

    def load(self) -> State | None:
        """The newest undamaged state; None to begin anew. Damaged ones are removed, and reported.

        Call it when the training begins: the time to the first checkpoint counts from here.
        """
        self._last = time.monotonic()
        for path in self._paths():
            if _is_whole(path):
                with safe_open(path, framework="pt") as file:
                    # Copies: what is mapped keeps the file, and on NFS the folder, from being removed.
                    tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                    return State(tensors, json.loads(file.metadata()["values"]))
            path.unlink()  # else a training that begins anew would remove its own, which have fewer steps
            say(f"{path} was damaged and has been removed; falling back to the one before, if there is one")
        if others := sum(1 for other in self._parent.glob("*") if other != self._folder):
            say(
                f"starting over: {self._parent} has checkpoints of {others} other combinations of "
                "parameters, inputs and code; remove it if you do not need them"
            )
        return None

    def remove(self) -> None:
        """Remove these checkpoints: the training's outputs are written."""
        if self._folder.exists():
            shutil.rmtree(self._folder)

    def _paths(self) -> list[Path]:
        """The checkpoints, the newest first."""
        return sorted(self._folder.glob("step-*.safetensors"), reverse=True)


def training_fingerprint(parameters: Sequence[object], inputs: Iterable[Path]) -> str:
    """16 hexadecimal digits that change with the parameters and any name or byte of the inputs or the code.

    Args:
        parameters: objects whose ``repr`` tells all their values.
        inputs: files, and folders of files, that the training reads.

    Raises:
        UserError: this process, one of several that are to train together, has other parameters, inputs or
            code than the main process.
    """
    digest = hashlib.sha256(repr(parameters).encode())
    for top in [*inputs, *_code()]:
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file():
                with path.open("rb") as file:
                    digest.update(os.fsencode(path.name) + hashlib.file_digest(file, "sha256").digest())
    own = digest.hexdigest()[:16]
    if own != from_main_process(lambda: own):
        raise UserError(
            f"process {rank()}, on {socket.gethostname()}, has other parameters, inputs or code than "
            "process 0; give all hosts the same files"
        )
    return own


def conditions(device: torch.device, precision: str, amp_backend: str) -> dict[str, Any]:
    """What decides the bits of a training's result, besides parameters, inputs and code."""
    on_gpu = {}
    if device.type == "cuda":
        on_gpu = {"deterministic": torch.are_deterministic_algorithms_enabled()}
    backend = {"amp_backend": amp_backend} if precision == "fp16" else {}  # else it is always torch
    several = {"processes": num_processes()} if num_processes() > 1 else {}
    always = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    return {"device": device_name(device), "precision": precision} | on_gpu | backend | several | always


def _code() -> list[Path]:
    """The files of this project that the running program has imported, itself included."""
    source = f"{Path(__file__).parents[1]}{os.sep}"  # Python makes the paths of modules absolute
    files = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    return sorted(Path(file) for file in files if file.startswith(source))


def _is_whole(path: Path) -> bool:
    with path.open("rb") as file:
        return path.stem.endswith(hashlib.file_digest(file, "sha256").hexdigest()[:16])
