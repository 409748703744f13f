"""NVIDIA's ``apex.amp``, which the assignment names, as an engine of mixed precision."""

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.machinery import PathFinder
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer


class ApexAmp:
    """``apex.amp`` at level O1; its methods are those of ``amp.Amp``.

    O1 replaces functions of torch, for the whole process, by ones that cast: models that it was not given
    would be computed in fp16 too, and the trained one evaluated with cached fp16 weights from before they
    changed. So the casts are switched off except within ``autocast``, as with torch's.
    """

    scaled = None  # apex unscales the gradients at the end of its backward pass

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._amp = import_apex()
        # O1 is older than this function and would not cast its inputs. The function refuses query, key and
        # value of different dtypes, and is fast only in fp16. Here all three come from one product, in fp16
        # already; this ensures it, as autocast does, whatever comes between. The mask is boolean and stays.
        self._amp.register_half_function(functional, "scaled_dot_product_attention")
        self._amp.register_half_function(torch, "einsum")  # neither does it know this one
        # O1 changes both in place: what it returns are the same objects.
        self._amp.initialize(model, optimizer, opt_level="O1", verbosity=0)
        self._switch_off()
        self._overflow = False
        self.scale = self._loss_scaler()["loss_scale"]

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The casts of O1, for a pass."""
        self._off.__exit__(None, None, None)
        try:
            yield
        finally:
            self._switch_off()

    def _switch_off(self) -> None:
        self._off: AbstractContextManager[None] = self._amp.disable_casts()
        self._off.__enter__()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss``, scaled and unscaled again."""
        # With casts: activation checkpointing computes the layers of the forward pass once more.
        with self._amp.scale_loss(loss, self._optimizer) as scaled, self.autocast():
            scaled.backward()
        # Looked at after each backward pass: between two steps the scale may rise as well as fall.
        before, self.scale = self.scale, self._loss_scaler()["loss_scale"]
        self._overflow |= self.scale < before

    def unscale(self) -> None:
        """Nothing is left to do: ``scale_loss`` has unscaled them at its end."""

    def step(self) -> bool:
        """Step, unless a gradient overflowed; return whether the step was taken."""
        self._optimizer.step()  # after an overflow apex has replaced it by a function that does nothing
        self._switch_off()  # apex's step ends with the casts switched on
        taken, self._overflow = not self._overflow, False
        return taken

    def state_dict(self) -> dict[str, Any]:
        """The scale, and the steps since it last changed."""
        state = self._loss_scaler()
        return {"scale": state["loss_scale"], "good_steps": state["unskipped"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` gave, or that of torch's engine."""
        moved = {"loss_scale": state["scale"], "unskipped": state["good_steps"]}
        self._amp.load_state_dict({"loss_scaler0": moved})
        self.scale = state["scale"]
        self._overflow = False

    def _loss_scaler(self) -> dict[str, Any]:
        return self._amp.state_dict()["loss_scaler0"]


def import_apex() -> Any:
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
