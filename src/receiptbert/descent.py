"""One step of gradient descent and its log, which both trainers share."""

import math
from abc import abstractmethod
from collections import deque
from itertools import count
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter

from receiptbert.amp import make_amp
from receiptbert.cuda_graphs import Compute, GraphedPasses, can_record
from receiptbert.distributed import average, is_leader, own_random_numbers, parallel
from receiptbert.errors import UserError
from receiptbert.optimization import Scheduler
from receiptbert.progress import say

# Losses of single batches jump; so many are shown as their mean, and fetched from the device at once.
RECENT_STEPS = 100

Model = TypeVar("Model", bound=nn.Module)


class _Sent(NamedTuple):
    """What some steps noted, on its way from the device."""

    known: list[dict[str, float]]  # of each step, without the device
    names: list[str]
    values: Tensor  # (steps, names), in the memory of the CPU
    arrived: torch.cuda.Event | None


class Descent(Generic[Model]):
    """A model with its optimizer, schedule, precision and log; the arguments are the trainers'."""

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        scheduler: Scheduler,
        device: torch.device | str,
        logdir: str | None,
        max_grad_norm: float | None,
        precision: str,
        amp_backend: str,
    ) -> None:
        self._device = torch.device(device)
        self._model = model.to(self._device)
        self._parameters = list(model.parameters())  # to walk through all modules takes a millisecond
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._logdir = logdir
        self._purge_step: int | None = None  # what TensorBoard has from here on is of a run that was cut off
        self._writer: SummaryWriter | None = None
        self._max_grad_norm = math.inf if max_grad_norm is None else max_grad_norm
        self._precision = precision
        self._amp_backend = amp_backend
        self._amp = make_amp(amp_backend, self._model, optimizer, self._device, precision)
        self._parallel = parallel(self._model)  # for training; all else takes the model itself
        self._graphs = self._make_graphs()
        self._step = 0
        self._pending: list[tuple[dict[str, float], dict[str, Tensor]]] = []
        self._sent: deque[_Sent] = deque()
        # So many of those are left on their way: a GPU has to compute the newest first, and would wait for
        # its next work while we waited for them.
        self._left_on_way = 1 if self._device.type == "cuda" else 0
        self.history: list[dict[str, float]] = []
        """One record a step: ``step`` from 1, what ``_compute`` notes (the losses; in pretraining also the
        number of ``tokens``), ``grad_norm`` before clipping, and ``lr``, of the fastest group; in fp16 also
        ``skipped``, 1 for a step that was not taken since its gradients overflowed, else 0."""

    @property
    def skipped_steps(self) -> dict[str, int]:
        """For the metrics: how many steps fp16 skipped. Empty in another precision, which skips none."""
        if self._precision != "fp16":
            return {}
        return {"skipped_steps": int(sum(record["skipped"] for record in self.history))}

    @abstractmethod
    def _compute(self, *inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, which is to be minimized, and what to note of it."""

    def _fixed(self, *_inputs: Tensor) -> dict[str, Any]:
        """Keyword arguments that spare ``_compute`` a look at the values of a batch like this."""
        return {}

    def _pass(self, inputs: tuple[Tensor, ...], num_batches: int, *position: int) -> dict[str, Tensor]:
        """Add the gradients of one of the ``num_batches`` of a step; what ``_compute`` notes of it.

        Args:
            inputs: the batch, on the device.
            num_batches: whose mean loss is minimized.
            position: see ``own_random_numbers``.
        """
        kind = (num_batches, *(tensor.shape for tensor in inputs))
        if self._graphs is not None:
            self._graphs.begin()
            if self._graphs.take(kind):
                return self._graphs(kind, inputs, lambda: self._recordable(num_batches, inputs))
        with own_random_numbers(self._device, *position), self._amp.casts():
            loss, noted = self._compute(*inputs)
        self._backward(loss / num_batches)
        return {name: value.detach() for name, value in noted.items()}

    def _backward(self, loss: Tensor) -> None:
        self._amp.backward(loss)

    def _make_graphs(self) -> GraphedPasses | None:
        """None where passes cannot be recorded."""
        modules = self._model.modules()
        checkpointing = any(getattr(module, "activation_checkpointing", False) for module in modules)
        if not can_record(self._device, checkpointing) or self._amp.scaled is None:
            return None
        for group in self._optimizer.param_groups:  # a recorded step finds the rate where it was
            group["lr"] = torch.tensor(group["lr"], device=self._device)
            group["capturable"] = True
        return GraphedPasses(self._parameters)

    def _recordable(self, num_batches: int, batch: tuple[Tensor, ...]) -> Compute:
        """A pass of batches of the shape of ``batch``."""
        fixed = self._fixed(*batch)

        def compute(*inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            with self._amp.casts():
                loss, noted = self._compute(*inputs, **fixed)
            assert self._amp.scaled is not None
            return self._amp.scaled(loss / num_batches), noted

        return compute

    def _descend(self, losses: dict[str, Tensor]) -> None:
        """Step with the gradients at hand, and note the ``losses``, of which the processes' mean is told."""
        norm, taken = self._update()
        self._step += 1
        known = {"lr": max(self._scheduler.get_last_lr())}
        if self._precision == "fp16":
            known["skipped"] = float(not taken)
        noted = {name: loss.detach() for name, loss in losses.items()} | {"grad_norm": norm}
        self._pending.append((known, noted))
        if taken:
            self._scheduler.step()
        else:
            self._tell_overflow()
        if len(self._pending) == RECENT_STEPS:
            self._send_pending()
            self._receive(self._left_on_way)

    def _update(self) -> tuple[Tensor, bool]:
        """Clip and take the gradients; the norm that they had, and whether the step was taken."""
        if self._graphs is not None and self._precision != "fp16":
            return self._graphs.update(self._recordable_update), True
        self._amp.unscale()
        norm = self._clip()
        taken = self._amp.step()
        self._optimizer.zero_grad()
        return norm, taken

    def _recordable_update(self) -> Tensor:
        # A recorded pass adds to the gradients, so that they stay, as zeros.
        norm = self._clip()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=False)
        return norm

    def _tell_overflow(self) -> None:
        scale = self._amp.scale
        if scale < 1:  # no scale helps gradients that overflow without one
            raise UserError(
                f"the gradients of step {self._step} overflow fp16 at any scale; set precision to bf16 or "
                "fp32, or lower lr"
            )
        say(f"step {self._step} is skipped: its gradients overflow fp16; the scale is {scale:g} from now on")

    def _clip(self) -> Tensor:
        """Cut the gradients to ``max_grad_norm``; the norm that they had."""
        parameters = [parameter for parameter in self._parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm([cast(Tensor, parameter.grad) for parameter in parameters])
        # Looking at the norm is free on a CPU and saves a pass over all gradients; a GPU would have to wait.
        if self._device.type != "cpu" or norm > self._max_grad_norm:
            nn.utils.clip_grads_with_norm_(parameters, self._max_grad_norm, norm)
        return norm

    def _write_history(self) -> None:
        """Have the history of all steps, for which a GPU has to finish its work."""
        self._send_pending()
        self._receive()

    def _send_pending(self) -> None:
        """Have the device send what the last steps noted, when it has come so far."""
        if not self._pending:
            return
        noted_values = torch.stack([torch.stack(list(noted.values())) for _, noted in self._pending])
        values = average(noted_values).to("cpu", non_blocking=True)
        arrived = torch.cuda.current_stream(self._device).record_event() if noted_values.is_cuda else None
        known = [known for known, _ in self._pending]
        self._sent.append(_Sent(known, list(self._pending[0][1]), values, arrived))
        self._pending.clear()

    def _receive(self, left: int = 0) -> None:
        """Put what was sent into the history and the log, the oldest first, all but the newest ``left``."""
        while len(self._sent) > left:
            sent = self._sent.popleft()
            if sent.arrived is not None:
                sent.arrived.synchronize()
            steps = count(len(self.history) + 1)
            for step, known, row in zip(steps, sent.known, sent.values.tolist(), strict=False):
                record = dict(zip(sent.names, row, strict=True)) | known
                self._check(record, step)
                self._log(record, step)
                self.history.append({"step": step} | record)

    def _check(self, record: dict[str, float], step: int) -> None:
        """Refuse to go on without a finite loss, or gradient where the step was taken."""
        for name, value in record.items():
            if not math.isfinite(value) and not (name == "grad_norm" and record.get("skipped")):
                what = {"grad_norm": "gradient", "loss": "loss"}.get(name, f"{name} loss")
                raise UserError(
                    f"the {what} became {value} at step {step}; lower lr or max_grad_norm, or raise warmup "
                    f"(the learning rate was {record['lr']:.2g})"
                )

    def _log(self, record: dict[str, float], step: int) -> None:
        if self._logdir is None or not is_leader():
            return
        if self._writer is None:
            self._writer = SummaryWriter(self._logdir, purge_step=self._purge_step)
        for name, value in record.items():
            self._writer.add_scalar(name, value, global_step=step)

    def _flush_log(self) -> None:
        self._write_history()
        if self._writer is not None:
            self._writer.flush()

    def _close_log(self) -> None:
        self._flush_log()
        if self._writer is not None:
            self._writer.close()  # and end the thread that writes
            self._writer = self._purge_step = None
