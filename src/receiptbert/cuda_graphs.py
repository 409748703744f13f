"""Steps of a training on a GPU, recorded once and replayed from then on.

A GPU multiplies the matrices of a small model faster than Python can launch the work: hundreds of kernels a
step, one by one. A CUDA graph holds a whole forward and backward pass, for one shape of a batch, or all that
the optimizer does, and is launched as one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from receiptbert.distributed import num_processes

# Computes from the inputs the loss whose gradients are wanted, and what to log of the batch, by name.
Compute = Callable[..., tuple[Tensor, dict[str, Tensor]]]

# Batches of texts of similar length have a few dozen shapes. Each graph takes some memory, hence the limit.
MAX_GRAPHS = 256


def can_capture(device: torch.device, activation_checkpointing: bool, amp_backend: str) -> bool:
    """Whether passes may be recorded: by one process on a GPU, without activation checkpointing and apex,
    which does more in a backward pass than a graph can hold.

    Not where a GPU is to give the same bits in every run: a recorded pass has more rows (``max_targets``), so
    it draws other random numbers, and a resumed training records other passes than an uninterrupted one.
    """
    if device.type != "cuda" or torch.are_deterministic_algorithms_enabled():
        return False
    return num_processes() == 1 and not activation_checkpointing and amp_backend != "apex"


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]  # where the graph reads
    names: list[str]
    values: Tensor  # (names,), where it writes


class GraphedPasses:
    """Forward and backward passes whose gradients are added to those that the parameters have, and steps with
    these gradients.

    Args:
        parameters: of the model. The gradients have buffers of their own, the same in every step.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._gradients = [torch.zeros_like(parameter) for parameter in parameters]
        self._pool = torch.cuda.graph_pool_handle()  # activations of one graph reuse another's memory
        # What is recorded must not mix with what runs.
        self._stream = torch.cuda.Stream(parameters[0].device)  # type: ignore[no-untyped-call]
        self._recorded: dict[Any, _Recorded] = {}
        self._seen: set[Any] = set()
        self._has_stepped = False
        self._recorded_update: tuple[torch.cuda.CUDAGraph, Tensor] | None = None

    def run(
        self, key: Any, inputs: tuple[Tensor, ...], make_compute: Callable[[], Compute]
    ) -> dict[str, Tensor] | None:
        """Run a pass over ``inputs``; return what to log of them. None if it must be run as usual.

        That is a pass that comes for the first time: it may be the last of its kind, and what libraries set
        up on first use cannot be recorded. It is also one of a new kind once there are ``MAX_GRAPHS``. Call
        it before each pass all the same.

        Args:
            key: what distinguishes passes that cannot share a graph, the shapes of the inputs included.
            make_compute: returns the pass to record, which must not read values of tensors in Python.
        """
        self._prepare_gradients()
        if key not in self._recorded:
            if key not in self._seen or len(self._recorded) == MAX_GRAPHS:
                self._seen.add(key)
                return None
            self._recorded[key] = self._record(inputs, make_compute())
        recorded = self._recorded[key]
        for place, tensor in zip(recorded.inputs, inputs, strict=True):
            place.copy_(tensor)
        recorded.graph.replay()
        # A copy, since the next replay overwrites the values.
        return dict(zip(recorded.names, recorded.values.clone().unbind(), strict=True))

    def _prepare_gradients(self) -> None:
        """In a new step, set all gradients to zero."""
        if self._parameters[0].grad is None:
            torch._foreach_zero_(self._gradients)
            for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
                parameter.grad = gradient

    def _record(self, inputs: tuple[Tensor, ...], compute: Compute) -> _Recorded:
        places = tuple(tensor.clone() for tensor in inputs)
        with self._capture() as graph:
            loss, noted = compute(*places)
            gradients = torch.autograd.grad(loss, self._parameters)
            torch._foreach_add_(self._gradients, gradients)
            values = torch.stack([value.detach().float() for value in noted.values()])
        return _Recorded(graph, places, list(noted), values)

    def update(self, step: Callable[[], Tensor]) -> Tensor:
        """Take an optimizer step, recorded the second time; return what it returns, in a new tensor.

        Args:
            step: the same each time. It zeroes the gradients in place and must not read values of tensors
                in Python.
        """
        if not self._has_stepped:  # the first step creates the optimizer's moments
            self._has_stepped = True
            return step()
        if self._recorded_update is None:
            self._recorded_update = self._record_update(step)
        graph, norm = self._recorded_update
        graph.replay()
        return norm.clone()

    def forget_update(self) -> None:
        """Have the step recorded anew: the optimizer's tensors are others now."""
        self._recorded_update = None

    def _record_update(self, step: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        with self._capture() as graph:
            norm = step()
        return graph, norm

    @contextmanager
    def _capture(self) -> Iterator[torch.cuda.CUDAGraph]:
        """Record what is launched within."""
        graph = torch.cuda.CUDAGraph()
        # Not `torch.cuda.graph`: each time it releases all free memory, which takes long to allocate anew.
        # The stream's GPU, which `stream` makes the current one, need not be the first.
        with torch.cuda.stream(self._stream):
            graph.capture_begin(self._pool)
            yield graph
            graph.capture_end()
