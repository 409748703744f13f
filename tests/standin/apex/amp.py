"""The calls of NVIDIA's ``apex.amp`` that we make, with their effects on gradients, steps and the state.

It casts nothing, and its scales are powers of two, so that the losses must be those of fp32. Whether it would
have cast says ``casting``: as with apex, from ``initialize`` on, and anew at the end of each step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

calls: list[Any] = []
casting = False
_scaler: dict[str, float] = {}


def register_half_function(module: Any, name: str) -> None:
    assert hasattr(module, name)
    calls.append(f"half {name}")


def initialize(model: Any, optimizer: Any, opt_level: str, verbosity: int) -> Any:
    global casting
    assert verbosity == 0
    assert next(model.parameters()) is optimizer.param_groups[0]["params"][0]
    calls.append(f"initialize {opt_level}")
    _scaler.update(loss_scale=2.0**16, unskipped=0)
    casting = True
    step = optimizer.step

    def step_without_casts() -> None:
        with disable_casts():
            step()

    optimizer.step = step_without_casts
    return model, optimizer


@contextmanager
def disable_casts() -> Iterator[None]:
    global casting
    casting = False
    yield
    casting = True


@contextmanager
def scale_loss(loss: torch.Tensor, optimizer: Any) -> Iterator[torch.Tensor]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    earlier = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    calls.append("scale_loss")
    yield loss.float() * _scaler["loss_scale"]
    assert any(parameter.grad is not None for parameter in parameters)
    finite = True
    for parameter, grad in zip(parameters, earlier, strict=True):
        if parameter.grad is not None:
            finite &= bool(parameter.grad.isfinite().all())
            parameter.grad /= _scaler["loss_scale"]
        if grad is not None:
            parameter.grad = grad if parameter.grad is None else grad + parameter.grad
    if finite:
        _scaler["unskipped"] += 1
    else:
        _scaler.update(loss_scale=_scaler["loss_scale"] / 2, unskipped=0)
        _skip_one(optimizer)


def _skip_one(optimizer: Any) -> None:
    step = optimizer.step

    def skip() -> None:
        optimizer.step = step

    optimizer.step = skip


def state_dict() -> dict[str, Any]:
    return {"loss_scaler0": dict(_scaler)}


def load_state_dict(state: dict[str, Any]) -> None:
    calls.append(state)
    _scaler.update(state["loss_scaler0"])
