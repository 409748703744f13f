"""What both trainers share: one step, that is forward, backward, clip, update."""

import math
from abc import abstractmethod
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from receiptbert.amp import make_amp
from receiptbert.cuda_graphs import Compute, GraphedPasses, can_capture
from receiptbert.distributed import own_random_numbers, parallel
from receiptbert.errors import UserError
from receiptbert.history import History
from receiptbert.modeling import ModelOnBert
from receiptbert.optimization import Scheduler
from receiptbert.progress import say

Model = TypeVar("Model", bound=ModelOnBert)


class BaseTrainer(Generic[Model]):
    """A model with its optimizer, schedule, precision and history; the arguments are the trainers'.

    On a GPU, forward and backward passes and updates may be recorded as CUDA graphs and replayed (see
    ``cuda_graphs``).
    """

    def __init__(
        self,
        model: Model,
        optimizer: Optimizer,
        scheduler: Scheduler,
        device: torch.device | str,
        *,
        logdir: str | None,
        max_grad_norm: float | None,
        precision: str,
        amp_backend: str,
        cuda_graphs: bool,
    ) -> None:
        self._device = torch.device(device)
        self._model = model.to(self._device)
        self._parameters = list(model.parameters())  # walking through all modules takes a millisecond
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._max_grad_norm = math.inf if max_grad_norm is None else max_grad_norm
        self._precision = precision
        self._amp_backend = amp_backend
        self._amp = make_amp(amp_backend, self._model, optimizer, self._device, precision)
        self._parallel = parallel(self._model)  # for training; all else uses the model itself
        self._graphs = self._make_graphs() if cuda_graphs else None
        self._step = 0
        self._history = History(self._device, logdir)

    @property
    def history(self) -> list[dict[str, float]]:
        """One record per step: ``step`` from 1, what ``_compute`` notes (the losses; in pretraining also the
        number of ``tokens``), ``grad_norm`` before clipping, and ``lr``, the highest of any group; in fp16
        also ``skipped``, 1 for a step not taken because its gradients overflowed, else 0."""
        return self._history.records

    @property
    def skipped_steps(self) -> dict[str, int]:
        """For the metrics: how many steps fp16 skipped. Empty in other precisions, which skip none."""
        if self._precision != "fp16":
            return {}
        return {"skipped_steps": int(sum(record["skipped"] for record in self.history))}

    @abstractmethod
    def _compute(self, *inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, which is to be minimized, and what to note about the batch."""

    def _pass(self, inputs: tuple[Tensor, ...], num_batches: int, *position: int) -> dict[str, Tensor]:
        """Add the gradients of one of the ``num_batches`` of a step; return what ``_compute`` notes.

        Args:
            inputs: the batch, on the device.
            num_batches: of the step, which minimizes their mean loss.
            position: see ``own_random_numbers``.
        """
        kind = (num_batches, *(tensor.shape for tensor in inputs))
        if self._graphs is not None:
            noted = self._graphs.run(kind, inputs, lambda: self._capturable(num_batches, inputs))
            if noted is not None:
                return noted
        with own_random_numbers(self._device, *position), self._amp.autocast():
            loss, noted = self._compute(*inputs)
        self._backward(loss / num_batches)
        return {name: value.detach() for name, value in noted.items()}

    def _backward(self, loss: Tensor) -> None:
        self._amp.backward(loss)

    def _optimize(self, noted: dict[str, Tensor]) -> None:
        """Step with the gradients at hand, and put what was ``noted`` of their batches into the history."""
        norm, taken = self._update()
        self._step += 1
        known = {"lr": max(self._scheduler.get_last_lr())}
        if self._precision == "fp16":
            known["skipped"] = float(not taken)
        if taken:
            self._scheduler.step()
        else:
            self._tell_overflow()
        self._history.note(known, noted | {"grad_norm": norm})

    def _update(self) -> tuple[Tensor, bool]:
        """Clip the gradients and step; return the norm they had, and whether the step was taken."""
        if self._graphs is not None and self._precision != "fp16":
            return self._graphs.update(self._capturable_update), True
        self._amp.unscale()
        norm = self._clip()
        taken = self._amp.step()
        self._optimizer.zero_grad()
        return norm, taken

    def _clip(self) -> Tensor:
        """Clip the gradients to ``max_grad_norm``; return the norm they had."""
        parameters = [parameter for parameter in self._parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm([cast(Tensor, parameter.grad) for parameter in parameters])
        # Looking at the norm is free on a CPU and saves a pass over all gradients; on a GPU it would stall.
        if self._device.type != "cpu" or norm > self._max_grad_norm:
            nn.utils.clip_grads_with_norm_(parameters, self._max_grad_norm, norm)
        return norm

    def _tell_overflow(self) -> None:
        scale = self._amp.scale
        if scale < 1:  # no scale helps gradients that overflow even unscaled
            raise UserError(
                f"the gradients of step {self._step} overflow fp16 at any scale; set precision to bf16 or "
                "fp32, or lower lr"
            )
        say(f"step {self._step} is skipped: its gradients overflow fp16; the scale is {scale:g} from now on")

    # --- CUDA graphs: skip this at first ---

    def _make_graphs(self) -> GraphedPasses | None:
        """None where passes cannot be recorded."""
        if not can_capture(self._device, self._model.backbone.activation_checkpointing, self._amp_backend):
            return None
        for group in self._optimizer.param_groups:  # a recorded step reads the rate at a fixed place
            group["lr"] = torch.tensor(group["lr"], device=self._device)
            group["capturable"] = True
        return GraphedPasses(self._parameters)

    def _static_arguments(self, *_inputs: Tensor) -> dict[str, Any]:
        """Keyword arguments of ``_compute`` in a recorded pass, where Python cannot read a tensor's values.

        What depends on them, as room for targets does, is settled here, by a batch of the shape to record.
        """
        return {}

    def _capturable(self, num_batches: int, batch: tuple[Tensor, ...]) -> Compute:
        """The pass for batches of the shape of ``batch``."""
        arguments = self._static_arguments(*batch)

        def compute(*inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            with self._amp.autocast():
                loss, noted = self._compute(*inputs, **arguments)
            assert self._amp.scaled is not None
            return self._amp.scaled(loss / num_batches), noted

        return compute

    def _capturable_update(self) -> Tensor:
        # A recorded pass adds to the gradients in place, so they are zeroed but kept.
        norm = self._clip()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=False)
        return norm
