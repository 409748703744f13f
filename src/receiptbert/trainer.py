"""The training loop of pretraining."""

import math
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from receiptbert.checkpoints import Checkpoints
from receiptbert.distributed import averaging, num_processes, share_of, weight_of
from receiptbert.flat_texts import padding_mask
from receiptbert.history import RECENT_STEPS
from receiptbert.loading import Batches
from receiptbert.modeling import BertModel
from receiptbert.optimization import Scheduler, num_optimizer_steps
from receiptbert.progress import readable, say, track
from receiptbert.resumption import ResumableTrainer

# The number of targets in batches of one shape has a standard deviation of one or two square roots of its
# mean (whole words are chosen, not tokens). One batch's number plus this many roots has room for the others.
SPREAD = 10

# In bf16 on a CPU, oneDNN compiles a product anew for each number of rows. So the number of targets is filled
# up to a multiple of this.
ROWS_MULTIPLE = 16


class Trainer(ResumableTrainer[BertModel]):
    """Pretraining: minimizes the loss of a ``BertModel``.

    Args:
        model: a ``BertModel``.
        optimizer: see ``get_optimizer``.
        scheduler: stepped after each optimizer step.
        pad_token_id: the id that marks padding.
        device: where to train.
        num_accum_steps: gradient accumulation: batches whose gradients are averaged for one step. Those left
            over at the end of an epoch make a step of their own.
        logdir: folder for TensorBoard: both losses, the number of tokens, the gradient norm and the learning
            rate at each step.
        max_grad_norm: gradients of a larger norm are clipped to this norm.
        precision: fp32, bf16 or fp16, of the matrix products in training; see ``choose_precision``.
        amp_backend: what trains in fp16: ``torch``, or NVIDIA's ``apex``; see ``check_amp_backend``.
        cuda_graphs: whether passes may be recorded as CUDA graphs, where that can be done.
        checkpoints: where to save the state and resume from it; the batches must then come from a
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
        cuda_graphs: bool = True,
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
        self._num_accum_steps = num_accum_steps

    @property
    def tokens_seen(self) -> int:
        """Tokens trained on so far, counting special tokens but not padding."""
        return int(sum(record["tokens"] for record in self.history))

    def train(self, dataloader: Batches, n_epochs: int, max_steps: int | None = None) -> None:
        """Train for ``n_epochs`` passes over ``dataloader``, which yields what ``Collator`` makes.

        Args:
            max_steps: end after this many steps of this trainer, if they come first.

        Raises:
            UserError: a loss or gradient is not finite, or gradients overflow fp16 at any scale.
            Interrupted: with ``checkpoints``, SIGINT, SIGTERM or SIGHUP came; the state is saved.
            ValueError: there are epochs to train, but no batches.
        """
        if n_epochs and not len(dataloader):
            raise ValueError("the dataloader has no batches")
        per_epoch = num_optimizer_steps(len(dataloader), 1, self._num_accum_steps)
        with closing(self._history), self._resumable():
            done = math.ceil(self._batch / self._num_accum_steps)  # of the epoch that is resumed
            end = self._step + (n_epochs - self._epoch) * per_epoch - done
            if max_steps is not None:
                end = min(end, max_steps)
            while self._epoch < n_epochs and self._step < end:
                name = f"epoch {self._epoch + 1}"
                steps = islice(_grouped(self._batches(dataloader), self._num_accum_steps), end - self._step)
                self._train_step(track(steps, f"{name} of {n_epochs}", end, "steps", before=self._step))
                recent = self.history[-RECENT_STEPS:]
                means = {part: sum(step[part] for step in recent) / len(recent) for part in ("MLM", "SOP")}
                say(f"{name}: {readable(means)} over the last {len(recent)} steps")
                self._end_epoch()

    def _train_step(self, steps: Iterable[list[Any]]) -> None:
        """Train an epoch, or what is left of it.

        Args:
            steps: for each step its batches, ``num_accum_steps`` of them, or fewer at the end of an epoch.
        """
        self._model.train()
        for group in steps:
            noted: dict[str, Tensor] = {}
            for number, batch in enumerate(group, start=1):
                inputs = tuple(tensor.to(self._device) for tensor in batch)
                with averaging(self._parallel, number == len(group)):
                    of_batch = self._pass(inputs, len(group), self._epoch, self._batch, number)
                for name, value in of_batch.items():  # tokens add up, losses become a mean over batches
                    noted[name] = noted.get(name, 0) + (value if name == "tokens" else value / len(group))
            self._optimize(noted)
        self._fetch_history()

    def _compute(self, *inputs: Tensor, max_targets: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """This process's share of the loss and of its parts, and the whole batch's number of tokens."""
        input_ids, token_type_ids, labels, permuted = inputs  # (B, S) three times, (B,)
        share = share_of(len(input_ids))
        own_ids, own_labels = input_ids[share.rows], labels[share.rows]
        if self._device.type == "cpu" and self._precision == "bf16":  # see ROWS_MULTIPLE
            max_targets = math.ceil(self._num_targets(own_labels) / ROWS_MULTIPLE) * ROWS_MULTIPLE
        loss, parts = self._parallel(
            own_ids,
            padding_mask(own_ids, self._pad_token_id),
            own_labels,
            permuted[share.rows],
            token_type_ids[share.rows],
            max_targets,
        )
        if num_processes() > 1:
            of_targets = weight_of(share, self._model.is_target(labels))
            parts = {"MLM": parts["MLM"] * of_targets, "SOP": parts["SOP"] * share.weight}
            loss = self._model.total(parts)
        return loss, parts | {"tokens": (input_ids != self._pad_token_id).sum().float()}

    def _static_arguments(self, *inputs: Tensor) -> dict[str, Any]:
        """Room for more targets than other batches of the same shape will have."""
        _, _, labels, _ = inputs
        number = self._num_targets(labels)
        return {"max_targets": min(number + math.ceil(SPREAD * math.sqrt(number + 1)), labels.numel())}

    def _num_targets(self, labels: Tensor) -> int:
        return int(self._model.is_target(labels).sum())

    def evaluate(self, dataloader: Batches) -> dict[str, float]:
        """MLM loss per target (nats; no such key if there is no target) and SOP accuracy, over all of
        ``dataloader``, without dropout."""
        self._model.eval()
        mlm_loss = targets = correct = texts = 0.0
        with torch.inference_mode():
            for batch in dataloader:
                input_ids, token_type_ids, labels, permuted = (tensor.to(self._device) for tensor in batch)
                mask = padding_mask(input_ids, self._pad_token_id)
                loss, is_right = self._model.evaluate(input_ids, mask, labels, permuted, token_type_ids)
                batch_targets = self._num_targets(labels)
                mlm_loss += loss.item() * batch_targets
                targets += batch_targets
                correct += int(is_right.sum())
                texts += len(permuted)
        mean_loss = {"mlm_loss": mlm_loss / targets} if targets else {}
        return mean_loss | {"sop_accuracy": correct / max(texts, 1)}


def _grouped(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of ``size`` items; the last may be shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
