"""The two training loops of the assignment."""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from receiptbert.checkpoints import Checkpoints, State
from receiptbert.descent import RECENT_STEPS
from receiptbert.distributed import (
    averaging,
    from_leader,
    num_processes,
    share_of,
    weight_of,
)
from receiptbert.inference import padding_mask, predict
from receiptbert.modeling import BertFinetuneModel, BertModel
from receiptbert.optimization import Scheduler
from receiptbert.progress import say
from receiptbert.resumption import Batches, ResumableDescent

# How many targets a batch has varies by one or two roots of their mean (whole words are chosen, not tokens):
# so many roots more than one batch has will do for all batches of its shape.
SPREAD = 10


def num_optimizer_steps(num_batches: int, n_epochs: int, num_accum_steps: int = 1) -> int:
    """Steps of the optimizer in a whole training: the schedule's length."""
    return math.ceil(num_batches / num_accum_steps) * n_epochs


class Trainer(ResumableDescent[BertModel]):
    """Pretraining.

    Args:
        model: a ``BertModel``.
        optimizer: see ``get_optimizer``.
        scheduler: stepped after each step of the optimizer.
        pad_token_id: tells padding from tokens.
        device: where to train.
        num_accum_steps: batches whose gradients are averaged for one step. The batches left over at the
            end of an epoch make a step of their own.
        logdir: folder for TensorBoard: both losses, the gradient norm and the learning rate at each step.
        max_grad_norm: longer gradients are cut to this norm.
        precision: fp32, bf16 or fp16, of the matrix products of the training; see ``choose_precision``.
        amp_backend: what trains in fp16: ``torch``, or NVIDIA's ``apex``; see ``check_amp_backend``.
        checkpoints: where to leave the state and take it up again; the batches must then come from a
            ``LengthGroupedBatchSampler``.
    """

    def __init__(
        self,
        model: BertModel,
        optimizer: Optimizer,
        scheduler: Scheduler,
        pad_token_id: int,
        device: torch.device | str,
        num_accum_steps: int = 1,
        logdir: str | None = None,
        max_grad_norm: float | None = None,
        precision: str = "fp32",
        amp_backend: str = "torch",
        checkpoints: Checkpoints | None = None,
    ) -> None:
        super().__init__(
            model, optimizer, scheduler, device, logdir, max_grad_norm, precision, amp_backend, checkpoints
        )
        self._pad_token_id = pad_token_id
        self._num_accum_steps = num_accum_steps

    @property
    def tokens_seen(self) -> int:
        """Tokens trained on so far, special tokens counted, padding not."""
        return int(sum(record["tokens"] for record in self.history))

    def train(self, dataloader: Batches, n_epochs: int, max_steps: int | None = None) -> None:
        """Train for ``n_epochs`` passes over ``dataloader``, which gives what ``Collator`` makes.

        Args:
            max_steps: end after so many steps of this trainer, should they come first.
        """
        with self._resumable():
            while self._epoch < n_epochs:
                limit = None if max_steps is None else (max_steps - self._step) * self._num_accum_steps
                if limit == 0:
                    break
                left = (n_epochs - self._epoch) * len(dataloader) - self._batch
                left = left if limit is None else min(left, limit)
                name = f"epoch {self._epoch + 1}"
                self._train_step(islice(self._batches(dataloader, f"{name} of {n_epochs}", left), limit))
                recent = self.history[-RECENT_STEPS:]
                means = {part: sum(step[part] for step in recent) / len(recent) for part in ("MLM", "SOP")}
                say(f"{name}: {_readable(means)} over the last {len(recent)} steps")
                self._end_epoch()
        self._flush_log()

    def _train_step(self, batches: Iterable[Any]) -> None:
        """One epoch."""
        self._model.train()
        for group in _grouped(batches, self._num_accum_steps):
            noted: dict[str, Tensor] = {}
            for number, batch in enumerate(group, start=1):
                inputs = tuple(tensor.to(self._device) for tensor in batch)
                with averaging(self._parallel, number == len(group)):
                    of_batch = self._pass(inputs, len(group), self._epoch, self._batch)
                for name, value in of_batch.items():
                    noted[name] = noted.get(name, 0) + (value if name == "tokens" else value / len(group))
            self._descend(noted)
        self._write_history()

    def _compute(self, *inputs: Tensor, max_targets: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, its parts by name, and the number of tokens, of all processes."""
        input_ids, token_type_ids, labels, permuted = inputs
        share = share_of(len(input_ids))
        own_ids, own_labels = input_ids[share.rows], labels[share.rows]
        loss, parts = self._parallel(
            own_ids,
            padding_mask(own_ids, self._pad_token_id),
            own_labels,
            permuted[share.rows],
            token_type_ids[share.rows],
            max_targets,
        )
        if num_processes() > 1:
            of_targets = weight_of(self._is_target(own_labels), share, self._is_target(labels))
            parts = {"MLM": parts["MLM"] * of_targets, "SOP": parts["SOP"] * share.weight}
            loss = self._model.total(parts)
        return loss, parts | {"tokens": (input_ids != self._pad_token_id).sum().float()}

    def _fixed(self, *inputs: Tensor) -> dict[str, Any]:
        """Room for more targets than other batches of the same shape will have."""
        labels = inputs[2]
        number = int(self._is_target(labels).sum())
        return {"max_targets": min(number + math.ceil(SPREAD * math.sqrt(number + 1)), labels.numel())}

    def _is_target(self, labels: Tensor) -> Tensor:
        return labels != self._model._mlm_head.ignore_index

    def evaluate(self, dataloader: Batches) -> dict[str, float]:
        """MLM loss per target (nats), and SOP accuracy, over all of ``dataloader``, without dropout."""
        self._model.eval()
        backbone, mlm_head, sop_head = (
            self._model._backbone,
            self._model._mlm_head,
            self._model._classifier_head,
        )
        mlm_loss = targets = correct = texts = 0.0
        with torch.inference_mode():
            for batch in dataloader:
                input_ids, token_type_ids, labels, permuted = (tensor.to(self._device) for tensor in batch)
                hidden_states = backbone(
                    input_ids, padding_mask(input_ids, self._pad_token_id), token_type_ids
                )
                batch_targets = int(self._is_target(labels).sum())
                mlm_loss += mlm_head(hidden_states, labels).item() * batch_targets
                targets += batch_targets
                correct += int(((sop_head(hidden_states).squeeze(-1) > 0) == permuted).sum())
                texts += len(permuted)
        return {"mlm_loss": mlm_loss / max(targets, 1), "sop_accuracy": correct / max(texts, 1)}


class FinetuneTrainer(ResumableDescent[BertFinetuneModel]):
    """Finetuning of a classifier.

    Args:
        model: a ``BertFinetuneModel``.
        optimizer: see ``get_optimizer``.
        scheduler: stepped after each step of the optimizer.
        pad_token_id: tells padding from tokens.
        device: where to train.
        logdir: folder for TensorBoard: loss, gradient norm and learning rate at each step, the eval loss and
            the score after each epoch.
        max_grad_norm: longer gradients are cut to this norm.
        precision: fp32, bf16 or fp16, of the matrix products of the training; see ``choose_precision``.
        amp_backend: what trains in fp16: ``torch``, or NVIDIA's ``apex``; see ``check_amp_backend``.
        label_smoothing: so much of a target's probability is spread over all classes while training (Szegedy
            et al. 2016); the eval loss is the plain cross entropy.
        checkpoints: as in ``Trainer``.
    """

    def __init__(
        self,
        model: BertFinetuneModel,
        optimizer: Optimizer,
        scheduler: Scheduler,
        pad_token_id: int,
        device: torch.device | str,
        logdir: str | None = None,
        max_grad_norm: float | None = None,
        precision: str = "fp32",
        amp_backend: str = "torch",
        label_smoothing: float = 0.0,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        super().__init__(
            model, optimizer, scheduler, device, logdir, max_grad_norm, precision, amp_backend, checkpoints
        )
        self._pad_token_id = pad_token_id
        self._criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self._eval_criterion = nn.CrossEntropyLoss()

    def train(
        self,
        dataloaders: dict[str, Batches],
        n_epochs: int,
        scorer: Callable[["FinetuneTrainer"], tuple[str, float]] | None = None,
    ) -> None:
        """Train for ``n_epochs`` and keep the weights of the epoch with the best score.

        Args:
            dataloaders: ``train`` and ``eval``, of batches that ``collate_fn`` makes, with class ids or
                probabilities as targets.
            scorer: takes the trainer, gives a metric's name and value, the higher the better; see
                ``make_scorer``. Without it the last epoch's weights stay.
        """
        with self._resumable():
            while self._epoch < n_epochs:
                epoch = self._epoch + 1
                left = (n_epochs - self._epoch) * len(dataloaders["train"]) - self._batch
                batches = self._batches(dataloaders["train"], f"epoch {epoch} of {n_epochs}", left)
                record = {"train_loss": self._train_step(batches)}
                judged, score = from_leader(partial(self._judge, dataloaders["eval"], scorer))
                record |= judged
                with self._interrupts.held():
                    self._finish_epoch({"epoch": epoch} | record, score)
                self._log(record, self._step)
                say(f"epoch {epoch}: {_readable(record)}")
        self._model.load_state_dict(self._best_weights)
        self._flush_log()

    def _begin(self) -> None:
        super()._begin()
        self.epochs: list[dict[str, float]] = []
        """One record an epoch: ``epoch`` from 1, ``train_loss``, ``eval_loss``, and the score by its name."""
        self.best_epoch = 0
        """The epoch whose weights the model has after ``train``."""
        self._best_score = -math.inf
        self._best_weights: dict[str, Tensor] = {}

    def _judge(
        self, dataloader: Batches, scorer: Callable[["FinetuneTrainer"], tuple[str, float]] | None
    ) -> tuple[dict[str, float], float]:
        """What the running epoch's record has of the evaluation, and the score."""
        eval_loss = {"eval_loss": self._eval_step(dataloader)}
        if scorer is None:
            return eval_loss, self._epoch + 1.0  # the last is the best
        name, score = scorer(self)
        return eval_loss | {name: score}, score

    def _finish_epoch(self, record: dict[str, float], score: float) -> None:
        self.epochs.append(record)
        if score > self._best_score:
            self._best_score, self.best_epoch = score, len(self.epochs)
            self._best_weights = {name: value.clone() for name, value in self._model.state_dict().items()}
        self._end_epoch()

    def _place(self) -> dict[str, Any]:
        best = {"best_epoch": self.best_epoch, "best_score": self._best_score}
        return super()._place() | best | {"epochs": list(self.epochs)}

    def _weights(self) -> dict[str, Tensor]:
        best = {f"best.{name}": value for name, value in self._best_weights.items()}
        return super()._weights() | best

    def _load(self, state: State) -> None:
        super()._load(state)
        self.epochs, self.best_epoch = state.values["epochs"], state.values["best_epoch"]
        self._best_score = state.values["best_score"]
        self._best_weights = {
            name.removeprefix("best."): value.to(self._device)
            for name, value in state.tensors.items()
            if name.startswith("best.")
        }

    def _train_step(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """One epoch; the mean loss of its batches."""
        self._model.train()
        first = len(self.history) - self._batch  # a resumed epoch has some steps behind it
        for batch in batches:
            inputs = tuple(tensor.to(self._device) for tensor in batch)
            self._descend(self._pass(inputs, 1, self._epoch, self._batch))
        self._write_history()
        return float(np.mean([record["loss"] for record in self.history[first:]]))

    def _compute(self, *inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this process's share."""
        input_ids, targets = inputs
        rows, weight = share_of(len(targets))
        loss = weight * self._criterion(*self._classify(self._parallel, input_ids[rows], targets[rows]))
        return loss, {"loss": loss}

    def _eval_step(self, dataloader: Batches) -> float:
        """The mean loss per text, without dropout."""
        self._model.eval()
        total = texts = 0.0
        with torch.inference_mode():
            for input_ids, targets in dataloader:
                total += self._eval_criterion(*self._classify(self._model, input_ids, targets)).item() * len(
                    targets
                )
                texts += len(targets)
        return total / max(texts, 1)

    def _classify(self, model: nn.Module, input_ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and targets (B,) or (B, C), both on the trainer's device."""
        input_ids = input_ids.to(self._device)
        logits = model(input_ids, padding_mask(input_ids, self._pad_token_id))
        return logits, targets.to(self._device)

    def predict(self, dataloader: DataLoader[Tensor]) -> npt.NDArray[np.int64]:
        """The predicted class of each text of ``dataloader``, which has no targets; shape (n,)."""
        return predict(self._model, dataloader, self._pad_token_id, self._device)


def _readable(record: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in record.items())


def _grouped(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of ``size`` items; the last may be shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
