"""Mixed precision by either engine: casts in the forward pass, and in fp16 a scaled loss.

Small gradients vanish in fp16. So the loss is scaled up before the backward pass, and the gradients down
again before the step (Micikevicius et al. 2018). If the scale was too large, gradients overflow: that step is
skipped and the scale halved. After 2,000 steps without overflow it is doubled.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.machinery import PathFinder
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from receiptbert.choices import AMP_BACKENDS
from receiptbert.errors import UserError
from receiptbert.precision import products_in


class Amp(Protocol):
    """What a training needs from an engine. In each step, in this order: casts, backward, unscale, step."""

    scale: float
    """The scale of the loss, from the next step on; 1 where nothing is scaled."""

    def casts(self) -> AbstractContextManager[Any]:
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
        return _ApexAmp(model, optimizer)
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
        _import_apex()
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

    def casts(self) -> AbstractContextManager[Any]:
        return products_in(self._precision, self._device)

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


class _ApexAmp:
    """NVIDIA's ``apex.amp`` at level O1, which the assignment names.

    O1 replaces functions of torch, for the whole process, by ones that cast: models that it was not given
    would be computed in fp16 too, and the trained one evaluated with cached fp16 weights from before they
    changed. So the casts are switched off except within ``casts``, as with autocast.
    """

    scaled = None  # apex unscales the gradients at the end of its backward pass

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._amp = _import_apex()
        # O1 is older than this function and would not cast its inputs. The function refuses query, key and
        # value of different dtypes, and is fast only in fp16. Here all three come from one product, in fp16
        # already; this ensures it, as autocast does, whatever comes between. The mask is boolean and stays.
        self._amp.register_half_function(functional, "scaled_dot_product_attention")
        # O1 changes both in place: what it returns are the same objects.
        self._amp.initialize(model, optimizer, opt_level="O1", verbosity=0)
        self._switch_off()
        self._overflow = False
        self.scale = self._loss_scaler()["loss_scale"]

    @contextmanager
    def casts(self) -> Iterator[None]:
        self._off.__exit__(None, None, None)
        try:
            yield
        finally:
            self._switch_off()

    def _switch_off(self) -> None:
        self._off: AbstractContextManager[None] = self._amp.disable_casts()
        self._off.__enter__()

    def backward(self, loss: Tensor) -> None:
        with self._amp.scale_loss(loss, self._optimizer) as scaled:
            scaled.backward()
        # Looked at after each backward pass: between two steps the scale may rise as well as fall.
        before, self.scale = self.scale, self._loss_scaler()["loss_scale"]
        self._overflow |= self.scale < before

    def unscale(self) -> None:
        """Nothing is left to do: ``scale_loss`` has unscaled them at its end."""

    def step(self) -> bool:
        self._optimizer.step()  # after an overflow apex has replaced it by a function that does nothing
        self._switch_off()  # apex's step ends with the casts switched on
        taken, self._overflow = not self._overflow, False
        return taken

    def state_dict(self) -> dict[str, Any]:
        state = self._loss_scaler()
        return {"scale": state["loss_scale"], "good_steps": state["unskipped"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        moved = {"loss_scale": state["scale"], "unskipped": state["good_steps"]}
        self._amp.load_state_dict({"loss_scaler0": moved})
        self.scale = state["scale"]

    def _loss_scaler(self) -> dict[str, Any]:
        state: dict[str, Any] = self._amp.state_dict()["loss_scaler0"]
        return state


def _import_apex() -> Any:
    """NVIDIA's ``apex.amp``; else an ImportError says which apex there is instead."""
    spec = importlib.util.find_spec("apex")  # imports nothing: another apex may do anything when imported
    if spec is None:
        raise ImportError("apex is not installed")
    places = list(spec.submodule_search_locations or [])
    amp, normalization = (PathFinder.find_spec(f"apex.{part}", places) for part in ("amp", "normalization"))
    where = places[0] if places else spec.origin
    if amp is None and normalization is None:
        raise ImportError(
            f"the apex in {where} is not NVIDIA's, as is PyPI's, which has nothing to do with it"
        )
    if amp is None:
        raise ImportError(f"NVIDIA's apex in {where} is too new: amp has left it")
    try:
        return importlib.import_module("apex.amp")
    except ImportError as error:
        raise ImportError(f"the apex in {where} cannot be imported ({error})") from None
