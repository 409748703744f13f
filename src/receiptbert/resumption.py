"""Training that can be interrupted at any step and resumed; deterministic runs end in the same bytes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from receiptbert.base_trainer import BaseTrainer, Model
from receiptbert.checkpoints import Checkpoints, State, conditions
from receiptbert.distributed import Agreement, barrier, from_main_process, is_main_process, num_processes
from receiptbert.errors import Interrupted
from receiptbert.interrupts import Interrupts
from receiptbert.loading import Batches
from receiptbert.optimization import Scheduler
from receiptbert.progress import say
from receiptbert.sampling import LengthGroupedBatchSampler


class ResumableTrainer(BaseTrainer[Model]):
    """A ``BaseTrainer`` over epochs that keeps ``checkpoints``; the other arguments are the trainers'.

    What changes between steps (random numbers, the place in the data) is noted after each step, so that a
    checkpoint can be written at any moment before the next one: weights and optimizer change only in steps.
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
        checkpoints: Checkpoints | None,
    ) -> None:
        super().__init__(
            model,
            optimizer,
            scheduler,
            device,
            logdir=logdir,
            max_grad_norm=max_grad_norm,
            precision=precision,
            amp_backend=amp_backend,
            cuda_graphs=cuda_graphs,
        )
        self._checkpoints = checkpoints
        self._interrupts = Interrupts()
        self._begin()

    def _begin(self) -> None:
        self._epoch = 0  # epochs done
        self._batch = 0  # batches of the current epoch done
        self._sampler_state: Tensor | None = None  # from which the current epoch began
        self._marked = State({}, {})
        self._agreement = Agreement()
        # The gradients of a batch at which an earlier run was cut off.
        self._optimizer.zero_grad(set_to_none=self._graphs is None)

    @contextmanager
    def _resumable(self) -> Iterator[None]:
        """Begin, or resume from the newest checkpoint; save one at the end or when interrupted."""
        self._begin()
        if self._checkpoints is None:
            yield
            return
        self._load_newest(self._checkpoints)
        self._mark()
        # Several processes stop after a step that they have agreed upon, none of them in the middle of one.
        between_steps = self._interrupts.held() if num_processes() > 1 else nullcontext()
        with self._interrupts.raised(), between_steps:
            try:
                yield
                with self._interrupts.held():
                    self._save()
            except Interrupted as interrupted:
                with self._interrupts.held():
                    self._save()
                    say(f"{interrupted}: stopped after step {self._step}; run the same command to continue")
                raise

    def _batches(self, dataloader: Batches) -> Iterator[Any]:
        """The batches left in the current epoch."""
        if self._checkpoints is not None:
            sampler = cast(LengthGroupedBatchSampler, cast(Any, dataloader).batch_sampler)
            if self._sampler_state is None:
                self._sampler_state = sampler.state
                if self._step == 0:  # what the first step is repeated from, if it is cut off
                    self._mark()
            else:
                sampler.resume(self._sampler_state, self._batch)
        random_state = torch.get_rng_state()
        iterator = iter(dataloader)  # draws a random number, which a resumed epoch has already drawn
        if self._batch:
            torch.set_rng_state(random_state)
        for batch in iterator:
            self._batch += 1
            yield batch

    def _end_epoch(self) -> None:
        self._epoch += 1
        self._batch = 0
        self._sampler_state = None

    def _pass(self, inputs: tuple[Tensor, ...], num_batches: int, *position: int) -> dict[str, Tensor]:
        # A recording interrupted midway would leave a GPU from which nothing can be saved.
        with self._interrupts.held():
            return super()._pass(inputs, num_batches, *position)

    def _optimize(self, noted: dict[str, Tensor]) -> None:
        with self._interrupts.held():
            super()._optimize(noted)
            if self._checkpoints is not None:
                self._mark()
                due = is_main_process() and self._checkpoints.due
                save, stop = self._agreement.on(due, self._interrupts.number)
                if stop:
                    raise Interrupted(stop)  # whichever process received the signal
                if save:
                    self._save()

    def _fetch_history(self) -> None:
        """Complete the history of all steps, for which a GPU has to finish its work."""
        with self._interrupts.held():
            self._history.fetch()

    # --- The state: what a subclass adds in `_tensors` or `_values`, it restores in `_load` ---

    def _mark(self) -> None:
        """Keep in mind where the training is, now that a step is done."""
        self._marked = State(self._tensors(), self._values())

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors that change between steps."""
        tensors = {"random": torch.get_rng_state()}
        if self._sampler_state is not None:
            tensors["sampler"] = self._sampler_state
        if self._device.type == "cuda":
            tensors["cuda_random"] = torch.cuda.get_rng_state(self._device)
        return tensors

    def _values(self) -> dict[str, Any]:
        """What else changes between steps; JSON can hold it."""
        return {"epoch": self._epoch, "batch": self._batch, "scaler": self._amp.state_dict()}

    def _weights(self) -> dict[str, Tensor]:
        """The part of the state that has the shape of the model."""
        weights = {f"model.{name}": parameter.detach() for name, parameter in self._model.named_parameters()}
        for number, moments in self._optimizer.state_dict()["state"].items():
            weights |= {f"optimizer.{number}.{name}": moment for name, moment in moments.items()}
        return weights

    def _conditions(self) -> dict[str, Any]:
        return conditions(self._device, self._precision, self._amp_backend)

    def _save(self) -> None:
        self._history.flush()
        if is_main_process():
            self._write_checkpoint()
        barrier()

    def _write_checkpoint(self) -> None:
        columns = list(self.history[0]) if self.history else []
        history = torch.tensor([list(record.values()) for record in self.history], dtype=torch.float64)
        values = {
            "step": self._step,
            "scheduler": self._scheduler.state_dict(),
            "columns": columns,
            "logdir": self._history.logdir,
            "conditions": self._conditions(),
        }
        tensors = {**self._weights(), **self._marked.tensors, "history": history}
        assert self._checkpoints is not None
        self._checkpoints.save(self._step, State(tensors, {**values, **self._marked.values}))

    def _load_newest(self, checkpoints: Checkpoints) -> None:
        """Go on from the newest checkpoint, if there is one. Nothing of it is kept beside the training."""
        state = from_main_process(checkpoints.load)
        if state is not None:
            self._load(state)
            say(f"resumed after step {self._step}")
            self._tell_changes(state.values["conditions"])

    def _load(self, state: State) -> None:
        tensors, values = state.tensors, state.values
        self._load_weights(tensors)
        self._load_history(tensors["history"], values)
        self._scheduler.load_state_dict(values["scheduler"])
        self._amp.load_state_dict(values["scaler"])
        self._step, self._epoch, self._batch = values["step"], values["epoch"], values["batch"]
        self._sampler_state = tensors.get("sampler")
        torch.set_rng_state(tensors["random"])
        if "cuda_random" in tensors and self._device.type == "cuda":
            torch.cuda.set_rng_state(tensors["cuda_random"], self._device)

    def _load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """What ``_weights`` has saved."""
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, number, moment = name.split(".")
                moments.setdefault(int(number), {})[moment] = tensor
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": moments})
        if self._graphs is not None:
            self._graphs.forget_update()

    def _load_history(self, rows: Tensor, values: Mapping[str, Any]) -> None:
        records = [dict(zip(values["columns"], row, strict=True)) for row in rows.tolist()]
        for record in records:
            record["step"] = int(record["step"])  # a float in the tensor
        self._history.resume(records, values["logdir"])

    def _tell_changes(self, saved: Mapping[str, Any]) -> None:
        """Tell which conditions of the run that saved the checkpoint are others now."""
        alone: dict[str, Any] = {"processes": 1}
        before, now = alone | dict(saved), alone | self._conditions()
        both = [key for key in now if key in before]  # a CPU has fewer conditions than a GPU
        if changed := [f"{key} was {before[key]}, is {now[key]}" for key in both if before[key] != now[key]]:
            say(f"{'; '.join(changed)}: the result will not be the same to the bit")
