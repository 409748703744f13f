"""The two training loops of the assignment."""

import math
from collections.abc import Callable, Iterable, Iterator, Sized
from itertools import islice
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from receiptbert.descent import RECENT_STEPS, Descent
from receiptbert.inference import padding_mask, predict
from receiptbert.modeling import BertFinetuneModel, BertModel
from receiptbert.optimization import Scheduler
from receiptbert.progress import say, track


class Batches(Sized, Iterable[Any], Protocol):
    """What a trainer needs of a ``DataLoader``."""


def num_optimizer_steps(num_batches: int, n_epochs: int, num_accum_steps: int = 1) -> int:
    """Steps of the optimizer in a whole training: the schedule's length."""
    return math.ceil(num_batches / num_accum_steps) * n_epochs


class Trainer(Descent[BertModel]):
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
    ) -> None:
        super().__init__(model, optimizer, scheduler, device, logdir, max_grad_norm, precision)
        self._pad_token_id = pad_token_id
        self._num_accum_steps = num_accum_steps
        self._tokens_seen = torch.zeros((), dtype=torch.int64, device=self._device)

    @property
    def tokens_seen(self) -> int:
        """Tokens trained on so far, special tokens counted, padding not."""
        return int(self._tokens_seen)

    def train(self, dataloader: Batches, n_epochs: int, max_steps: int | None = None) -> None:
        """Train for ``n_epochs`` passes over ``dataloader``, which gives what ``Collator`` makes.

        Args:
            max_steps: end after so many steps of this trainer, should they come first.
        """
        for epoch in range(n_epochs):
            left = None if max_steps is None else (max_steps - self._step) * self._num_accum_steps
            if left == 0:
                break
            batches = track(dataloader, f"epoch {epoch + 1} of {n_epochs}", len(dataloader))
            self._train_step(islice(batches, left))
            recent = self.history[-RECENT_STEPS:]
            means = {name: sum(record[name] for record in recent) / len(recent) for name in ("MLM", "SOP")}
            say(f"epoch {epoch + 1}: {_readable(means)} over the last {len(recent)} steps")
        self._flush_log()

    def _train_step(self, batches: Iterable[Any]) -> None:
        """One epoch."""
        self._model.train()
        for group in _grouped(batches, self._num_accum_steps):
            means: dict[str, Tensor] = {}
            for batch in group:
                loss, parts = self._forward(batch)
                self._backward(loss / len(group))
                for name, part in parts.items():
                    means[name] = means.get(name, 0) + part.detach() / len(group)
            self._descend(means)
        self._write_history()

    def _forward(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        input_ids, token_type_ids, labels, permuted = (tensor.to(self._device) for tensor in batch)
        self._tokens_seen += (input_ids != self._pad_token_id).sum()
        with self._autocast():
            loss, parts = self._model(
                input_ids, padding_mask(input_ids, self._pad_token_id), labels, permuted, token_type_ids
            )
        return loss, parts

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
                batch_targets = int((labels != mlm_head.ignore_index).sum())
                mlm_loss += mlm_head(hidden_states, labels).item() * batch_targets
                targets += batch_targets
                correct += int(((sop_head(hidden_states).squeeze(-1) > 0) == permuted).sum())
                texts += len(permuted)
        return {"mlm_loss": mlm_loss / max(targets, 1), "sop_accuracy": correct / max(texts, 1)}


class FinetuneTrainer(Descent[BertFinetuneModel]):
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
        label_smoothing: so much of a target's probability is spread over all classes while training (Szegedy
            et al. 2016); the eval loss is the plain cross entropy.
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
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(model, optimizer, scheduler, device, logdir, max_grad_norm, precision)
        self._pad_token_id = pad_token_id
        self._criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self._eval_criterion = nn.CrossEntropyLoss()
        self.epochs: list[dict[str, float]] = []
        """One record an epoch: ``epoch`` from 1, ``train_loss``, ``eval_loss``, and the score by its name."""
        self.best_epoch = 0
        """The epoch whose weights the model has after ``train``."""

    def train(
        self,
        dataloaders: dict[str, Batches],
        n_epochs: int,
        scorer: Callable[["FinetuneTrainer"], tuple[str, float]] | None = None,
    ) -> None:
        """Train for ``n_epochs`` and keep the weights of the epoch with the best score.

        Args:
            dataloaders: ``train`` and ``eval``, of batches that ``collate_fn`` makes.
            scorer: takes the trainer, gives a metric's name and value, the higher the better; see
                ``make_scorer``. Without it the last epoch's weights stay.
        """
        best_score, best_weights = -math.inf, None
        for epoch in range(1, n_epochs + 1):
            batches = track(dataloaders["train"], f"epoch {epoch} of {n_epochs}", len(dataloaders["train"]))
            record = {
                "train_loss": self._train_step(batches),
                "eval_loss": self._eval_step(dataloaders["eval"]),
            }
            if scorer is None:
                self.best_epoch = epoch
            else:
                name, score = scorer(self)
                record[name] = score
                if score > best_score:
                    best_score, self.best_epoch = score, epoch
                    best_weights = {key: value.clone() for key, value in self._model.state_dict().items()}
            self._log(record, self._step)
            self.epochs.append({"epoch": epoch} | record)
            say(f"epoch {epoch}: {_readable(record)}")
        if best_weights is not None:
            self._model.load_state_dict(best_weights)
        self._flush_log()

    def _train_step(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """One epoch; the mean loss of its batches."""
        self._model.train()
        first = len(self.history)
        for input_ids, targets in batches:
            with self._autocast():
                loss = self._criterion(*self._classify(input_ids, targets))
            self._backward(loss)
            self._descend({"loss": loss})
        self._write_history()
        return float(np.mean([record["loss"] for record in self.history[first:]]))

    def _eval_step(self, dataloader: Batches) -> float:
        """The mean loss per text, without dropout."""
        self._model.eval()
        total = texts = 0.0
        with torch.inference_mode():
            for input_ids, targets in dataloader:
                total += self._eval_criterion(*self._classify(input_ids, targets)).item() * len(targets)
                texts += len(targets)
        return total / max(texts, 1)

    def _classify(self, input_ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and targets (B,), both on the trainer's device."""
        input_ids = input_ids.to(self._device)
        logits = self._model(input_ids, padding_mask(input_ids, self._pad_token_id))
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
