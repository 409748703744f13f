"""Mixed precision by either engine: casts in the forward pass, and in fp16 a scaled loss.

Small gradients vanish in fp16. So the loss is scaled up before the backward pass, and the gradients down
again before the step (Micikevicius et al. 2018). If the scale was too large, gradients overflow: that step is
skipped and the scale halved. After 2,000 steps without overflow it is doubled.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from receiptbert.apex_amp import ApexAmp, import_apex
from receiptbert.choices import AMP_BACKENDS
from receiptbert.errors import UserError
from receiptbert.precision import autocast


class Amp(Protocol):
    """What a training needs from an engine; in each step in this order: autocast, backward, unscale, step."""

    scale: float
    """The scale of the loss, from the next step on; 1 where nothing is scaled."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass; outside it everything is computed as usual."""

    @property
    def scaled(self) -> Callable[[Tensor], Tensor] | None:
        """Scales a loss: ``backward(loss)`` is ``scaled(loss).backward()``. None if ``backward`` does more,
        as apex's does; then passes cannot be recorded."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss`` to those accumulated so far."""

    def unscale(self) -> None:
        """Undo the scaling of the gradients, so that they can be clipped."""

    def step(self) -> bool:
        """Step, unless a gradient overflowed; return whether the step was taken."""

    def state_dict(self) -> dict[str, Any]:
        """What changes during training. Either engine can load it: the backend can be switched midway."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""


def make_amp(
    backend: str, model: nn.Module, optimizer: Optimizer, device: torch.device, precision: str
) -> Amp:
    """The engine of a training.

    Args:
        backend: ``torch`` or ``apex``.
        model: on ``device``.
        optimizer: of its parameters.
        device: where it is trained.
        precision: fp32, bf16 or fp16.

    Raises:
        UserError: see ``check_amp_backend``.
    """
    check_amp_backend(backend, precision, device)
    if backend == "apex":
        return ApexAmp(model, optimizer)
    return _TorchAmp(optimizer, device, precision)


def check_amp_backend(name: str, precision: str, device: torch.device, key: str = "amp_backend") -> None:
    """Refuse before any work is done what ``make_amp`` would refuse.

    Args:
        name: the backend.
        precision: the setting; ``auto`` too, which never means fp16.
        device: where to compute.
        key: the setting that ``name`` comes from, for the message.

    Raises:
        UserError: no such backend, or apex cannot be used on this device, in this precision or in this
            environment.
    """
    if name not in AMP_BACKENDS:
        raise UserError(f"{key} = {name} is neither {' nor '.join(AMP_BACKENDS)}")
    if name == "torch":
        return
    if device.type != "cuda":
        raise UserError(f"{key} = {name}, which needs a CUDA GPU, but the device is {device}; set torch")
    if precision != "fp16":
        raise UserError(
            f"{key} = {name}, which supports only fp16, but precision is {precision}; set torch, or fp16"
        )
    try:
        import_apex()
    except ImportError as error:
        raise UserError(
            f"{key} = {name}, but {error}; build NVIDIA's at a tag up to 25.04, or set torch"
        ) from None


class _TorchAmp:
    """``torch.autocast`` and ``torch.amp.GradScaler``."""

    def __init__(self, optimizer: Optimizer, device: torch.device, precision: str) -> None:
        self._optimizer = optimizer
        self._device = device
        self._precision = precision
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.scale = self._scaler.get_scale()

    def autocast(self) -> AbstractContextManager[Any]:
        return autocast(self._precision, self._device)

    def scaled(self, loss: Tensor) -> Tensor:
        """The scaled loss, whose gradients ``step`` expects."""
        return self._scaler.scale(loss)

    def backward(self, loss: Tensor) -> None:
        self.scaled(loss).backward()  # type: ignore[no-untyped-call]

    def unscale(self) -> None:
        self._scaler.unscale_(self._optimizer)

    def step(self) -> bool:
        self._scaler.step(self._optimizer)
        self._scaler.update()
        before = self.scale
        # In fp16 this waits for the GPU in every step: the schedule, on the CPU, must know of skipped steps.
        self.scale = self._scaler.get_scale()
        return self.scale >= before

    def state_dict(self) -> dict[str, Any]:
        state = self._scaler.state_dict()
        return {"scale": state["scale"], "good_steps": state["_growth_tracker"]} if state else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            moved = {"scale": state["scale"], "_growth_tracker": state["good_steps"]}
            self._scaler.load_state_dict(self._scaler.state_dict() | moved)
            self.scale = state["scale"]
