"""The training loop of finetuning."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from receiptbert.checkpoints import Checkpoints, State
from receiptbert.datasets import Texts
from receiptbert.distributed import from_main_process, share_of
from receiptbert.flat_texts import padding_mask
from receiptbert.inference import inference_loader, predict_logits
from receiptbert.loading import Batches
from receiptbert.metrics import ClassIds, f1
from receiptbert.modeling import BertFinetuneModel
from receiptbert.optimization import Scheduler
from receiptbert.progress import readable, say, track
from receiptbert.resumption import ResumableTrainer
from receiptbert.tokenization import WordpieceTokenizer


class FinetuneTrainer(ResumableTrainer[BertFinetuneModel]):
    """Finetuning of a classifier (Devlin et al. 2019, section 4.1): minimizes the classes' cross entropy.

    Args:
        model: a ``BertFinetuneModel``.
        optimizer: see ``get_optimizer``.
        scheduler: stepped after each optimizer step.
        pad_token_id: the id that marks padding.
        device: where to train.
        logdir: folder for TensorBoard: loss, gradient norm and learning rate at each step; train loss, eval
            loss and score after each epoch that is scored.
        max_grad_norm: gradients of a larger norm are clipped to this norm.
        precision: fp32, bf16 or fp16, of the matrix products in training; see ``choose_precision``.
        amp_backend: what trains in fp16: ``torch``, or NVIDIA's ``apex``; see ``check_amp_backend``.
        cuda_graphs: whether passes may be recorded as CUDA graphs, where that can be done.
        label_smoothing: this much of a target's probability is spread over all classes in training (Szegedy
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
        cuda_graphs: bool = True,
        label_smoothing: float = 0.0,
        checkpoints: Checkpoints | None = None,
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
            checkpoints=checkpoints,
        )
        self._pad_token_id = pad_token_id
        self._criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self._eval_criterion = nn.CrossEntropyLoss()

    def _begin(self) -> None:  # called by the constructor, too
        super()._begin()
        self.epochs: list[dict[str, float]] = []
        """Of each evaluated epoch: ``epoch`` from 1, ``train_loss``, ``eval_loss``, and the score."""
        self.best_epoch = 0
        """The epoch whose weights the model has after ``train``."""
        self._best_score = -math.inf
        self._best_weights: dict[str, Tensor] = {}

    def train(
        self,
        dataloaders: dict[str, Batches],
        n_epochs: int,
        scorer: Callable[["FinetuneTrainer"], tuple[str, float]] | None = None,
        eval_every: int = 1,
    ) -> None:
        """Train for ``n_epochs`` and keep the weights of the epoch, of these, with the best score.

        Args:
            dataloaders: ``train`` and ``eval``, of batches that ``collate_fn`` makes, with class ids or
                probabilities as targets.
            scorer: takes the trainer, returns a metric's name and value, the higher the better; see
                ``make_scorer``. Without it the last epoch's weights are kept.
            eval_every: epochs from one evaluation to the next; the last epoch is always evaluated.

        Raises:
            UserError: a loss or gradient is not finite, or gradients overflow fp16 at any scale.
            Interrupted: with ``checkpoints``, SIGINT, SIGTERM or SIGHUP came; the state is saved.
            ValueError: there are epochs to train, but no batches.
        """
        if n_epochs and not len(dataloaders["train"]):
            raise ValueError("the dataloader has no batches")
        with closing(self._history), self._resumable():
            while self._epoch < n_epochs:
                epoch = self._epoch + 1
                left = (n_epochs - self._epoch) * len(dataloaders["train"]) - self._batch
                batches, name = self._batches(dataloaders["train"]), f"epoch {epoch} of {n_epochs}"
                progress = track(batches, name, self._step + left, "steps", before=self._step)
                record = {"train_loss": self._train_step(progress)}
                if epoch % eval_every == 0 or epoch == n_epochs:
                    evaluated, score = from_main_process(partial(self._evaluate, dataloaders["eval"], scorer))
                    record |= evaluated
                    self._keep_if_best({"epoch": epoch} | record, score)
                    self._history.log(record, self._step)
                    say(f"epoch {epoch}: {readable(record)}")
                self._end_epoch()
        if self._best_weights:  # none if no epoch has a score, or there is no epoch
            self._model.load_state_dict(self._best_weights)

    def _train_step(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """One epoch; return the mean loss of its batches."""
        self._model.train()
        self._fetch_history()  # of an earlier training, too, that was cut off
        first = len(self.history) - self._batch  # a resumed epoch has some steps behind it
        for batch in batches:
            inputs = tuple(tensor.to(self._device) for tensor in batch)
            self._optimize(self._pass(inputs, 1, self._epoch, self._batch))
        self._fetch_history()
        return float(np.mean([record["loss"] for record in self.history[first:]]))

    def _compute(self, *inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this process's share."""
        input_ids, targets = inputs  # (B, S); (B,) class ids or (B, C) probabilities
        rows, weight = share_of(len(targets))
        logits = self._logits(self._parallel, input_ids[rows])  # (its share of B, C)
        loss = weight * self._criterion(logits, targets[rows])
        return loss, {"loss": loss}

    def _logits(self, model: nn.Module, input_ids: Tensor) -> Tensor:
        """(B, S) ids on the trainer's device -> (B, C)."""
        return model(input_ids, padding_mask(input_ids, self._pad_token_id))

    def _evaluate(
        self, dataloader: Batches, scorer: Callable[["FinetuneTrainer"], tuple[str, float]] | None
    ) -> tuple[dict[str, float], float]:
        """The evaluation's part of the current epoch's record, and the score."""
        eval_loss = {"eval_loss": self._eval_step(dataloader)}
        if scorer is None:
            return eval_loss, self._epoch + 1.0  # the last is the best
        name, score = scorer(self)
        return eval_loss | {name: score}, score

    def _eval_step(self, dataloader: Batches) -> float:
        """The mean loss per text, without dropout."""
        self._model.eval()
        total = texts = 0.0
        with torch.inference_mode():
            for batch in dataloader:
                input_ids, targets = (tensor.to(self._device) for tensor in batch)
                loss = self._eval_criterion(self._logits(self._model, input_ids), targets)
                total += loss.item() * len(targets)
                texts += len(targets)
        return total / max(texts, 1)

    def _keep_if_best(self, record: dict[str, float], score: float) -> None:
        self.epochs.append(record)
        if score > self._best_score:
            self._best_score, self.best_epoch = score, self._epoch + 1
            self._best_weights = {name: value.clone() for name, value in self._model.state_dict().items()}

    def predict(self, dataloader: DataLoader[Tensor]) -> npt.NDArray[np.int64]:
        """The predicted class of each text of ``dataloader``, which has no targets; shape (n,).

        The answers are in the order of the dataset, whatever that of the batches.

        Raises:
            ValueError: the dataloader leaves out texts.
        """
        logits = predict_logits(self._model, dataloader, self._pad_token_id, self._device)
        return logits.argmax(axis=1) if logits.size else np.empty(0, dtype=np.int64)

    # --- The state of a checkpoint ---

    def _tensors(self) -> dict[str, Tensor]:
        # No copy: a better epoch replaces these tensors and never writes into them.
        return super()._tensors() | {f"best.{name}": value for name, value in self._best_weights.items()}

    def _values(self) -> dict[str, Any]:
        best = {"best_epoch": self.best_epoch, "best_score": self._best_score}
        return super()._values() | best | {"epochs": list(self.epochs)}

    def _load(self, state: State) -> None:
        super()._load(state)
        self.epochs, self.best_epoch = state.values["epochs"], state.values["best_epoch"]
        self._best_score = state.values["best_score"]
        self._best_weights = {
            name.removeprefix("best."): value.to(self._device)
            for name, value in state.tensors.items()
            if name.startswith("best.")
        }


def make_scorer(
    texts: Texts,
    targets: Sequence[int] | ClassIds,
    tokenizer: WordpieceTokenizer,
    maxlen: int | None,
) -> Callable[[FinetuneTrainer], tuple[str, float]]:
    """A function that returns the name and value of the weighted F1 of a trainer's model on ``texts``."""
    loader = inference_loader(texts, tokenizer, maxlen)

    def get_score(trainer: FinetuneTrainer) -> tuple[str, float]:
        return "f1", f1(targets, trainer.predict(loader), "weighted")

    return get_score
