"""What training steps note: fetched late from the device, checked, and logged to TensorBoard."""

import math
from collections import deque
from collections.abc import Mapping
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from receiptbert.distributed import average, is_main_process
from receiptbert.errors import UserError

# Losses of single batches are noisy; this many are shown as a mean, and fetched from the device at once.
RECENT_STEPS = 100


class _Sent(NamedTuple):
    """What some steps noted, on its way from the device."""

    known: list[dict[str, float]]  # of each step, known without the device
    names: list[str]
    values: Tensor  # (steps, names), in the memory of the CPU
    arrived: torch.cuda.Event | None


class History:
    """A record of each step.

    Args:
        device: where the training computes.
        logdir: folder for TensorBoard; None for no log.
    """

    def __init__(self, device: torch.device, logdir: str | None) -> None:
        self.records: list[dict[str, float]] = []
        """Of the steps that were fetched: ``step`` from 1, and what was noted."""
        self.logdir = logdir
        self._device = device
        self._purge_step: int | None = None  # from here on, TensorBoard has events of an interrupted run
        self._writer: SummaryWriter | None = None
        self._pending: list[tuple[dict[str, float], dict[str, Tensor]]] = []
        self._sent: deque[_Sent] = deque()
        # This many of those are left on their way: a GPU has yet to compute the newest, and would idle while
        # we waited for them.
        self._left_on_way = 1 if device.type == "cuda" else 0

    def note(self, known: dict[str, float], noted: dict[str, Tensor]) -> None:
        """Note a step: what is ``known``, and scalars that the device has yet to compute; they are
        averaged over all processes."""
        self._pending.append((known, noted))
        if len(self._pending) == RECENT_STEPS:
            self._send()
            self._receive(self._left_on_way)

    def fetch(self) -> None:
        """Complete the records of all steps, for which a GPU has to finish its work.

        Raises:
            UserError: a loss or gradient is not finite.
        """
        self._send()
        self._receive()

    def resume(self, records: list[dict[str, float]], logdir: str | None) -> None:
        """Continue after ``records``, in the log of the run that was interrupted after them."""
        self.records, self.logdir = records, logdir
        self._pending.clear()  # steps of a run in this process that failed; they are done again
        self._sent.clear()
        # From the last of them on: an epoch that it ended is scored again, and logged under the same step.
        self._purge_step = len(records)
        for last in records[-1:]:
            self.log({name: value for name, value in last.items() if name != "step"}, len(records))

    def log(self, record: Mapping[str, float], step: int) -> None:
        """Write values to TensorBoard."""
        if self.logdir is None or not is_main_process():
            return
        if self._writer is None:
            self._writer = SummaryWriter(self.logdir, purge_step=self._purge_step)
        for name, value in record.items():
            self._writer.add_scalar(name, value, global_step=step)

    def flush(self) -> None:
        """Complete all records, and write all of the log to disk."""
        self.fetch()
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Write the log to disk, and end the thread that does so; what has not been fetched is left out."""
        if self._writer is not None:
            self._writer.close()
            self._writer = self._purge_step = None

    def _send(self) -> None:
        """Have the device send what the last steps noted, once it has computed that."""
        if not self._pending:
            return
        noted_values = torch.stack([torch.stack(list(noted.values())) for _, noted in self._pending])
        values = average(noted_values).to("cpu", non_blocking=True)
        arrived = torch.cuda.current_stream(self._device).record_event() if noted_values.is_cuda else None
        known = [known for known, _ in self._pending]
        self._sent.append(_Sent(known, list(self._pending[0][1]), values, arrived))
        self._pending.clear()

    def _receive(self, left: int = 0) -> None:
        """Put what was sent into the records and the log, the oldest first, all but the newest ``left``."""
        while len(self._sent) > left:
            sent = self._sent.popleft()
            if sent.arrived is not None:
                sent.arrived.synchronize()
            steps = count(len(self.records) + 1)
            for step, known, row in zip(steps, sent.known, sent.values.tolist(), strict=False):
                record = dict(zip(sent.names, row, strict=True)) | known
                _require_finite(record, step)
                self.log(record, step)
                self.records.append({"step": step} | record)


def _require_finite(record: Mapping[str, float], step: int) -> None:
    """Refuse to go on unless the loss is finite, and the gradient too if the step was taken."""
    for name, value in record.items():
        if not math.isfinite(value) and not (name == "grad_norm" and record.get("skipped")):
            what = {"grad_norm": "gradient", "loss": "loss"}.get(name, f"{name} loss")
            raise UserError(
                f"the {what} became {value} at step {step}; lower lr or max_grad_norm, or raise warmup "
                f"(the learning rate was {record['lr']:.2g})"
            )
