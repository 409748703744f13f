"""Finetune classifiers that differ in their seeds and in what they are trained on, and in nothing else."""

import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from receiptbert.amp import check_amp_backend
from receiptbert.checkpoints import Checkpoints
from receiptbert.collation import collate_fn
from receiptbert.cuda_graphs import can_capture
from receiptbert.datasets import FinetuneDataset
from receiptbert.devices import free_memory
from receiptbert.distributed import in_shares, num_processes, num_processes_here
from receiptbert.finetune_trainer import FinetuneTrainer, make_scorer
from receiptbert.flat_texts import SPECIAL_TOKENS_PER_TEXT
from receiptbert.hf_format import load_encoder, load_tokenizer, read_shape
from receiptbert.inference import inference_loader, predict_logits
from receiptbert.labelled import Labelled, TrainingSet
from receiptbert.loading import Batches, make_loader
from receiptbert.modeling import BertFinetuneModel, dropout_everywhere
from receiptbert.optimization import Scheduler, get_optimizer
from receiptbert.params import FinetuneParams, RuntimeParams
from receiptbert.partial_embedding import only_tokens, tokens_in
from receiptbert.plan import Plan, announce, require_memory
from receiptbert.precision import choose_precision
from receiptbert.progress import say
from receiptbert.sampling import LengthGroupedBatchSampler, MixtureBatchSampler, largest_batch_ratio
from receiptbert.token_store import TokenStore


class Run(NamedTuple):
    """Where the training of one classifier leaves its traces."""

    checkpoints: Checkpoints
    logdir: str  # for TensorBoard


class Finetuned(NamedTuple):
    """A classifier with the weights of its best epoch."""

    model: BertFinetuneModel
    epochs: list[dict[str, float]]  # see FinetuneTrainer.epochs
    best: dict[str, float]  # the one of these that the weights come from
    skipped_steps: dict[str, int]  # see FinetuneTrainer.skipped_steps


class Finetuning:
    """What the classifiers share.

    Args:
        p: the settings; each training set brings its own epochs, batch size and label smoothing, each call
            of ``train`` its seed.
        source: the checkpoint folder to start from.
        num_classes: C.
        device: where to train.
        runtime: its AMP backend and activation checkpointing are used.
    """

    def __init__(
        self, p: FinetuneParams, source: Path, num_classes: int, device: torch.device, runtime: RuntimeParams
    ) -> None:
        self._p = p
        self._source = source
        self.num_classes = num_classes
        self._device = device
        self._runtime = runtime
        self._cuda_graphs = can_capture(device, runtime.activation_checkpointing, runtime.amp_backend)
        check_amp_backend(runtime.amp_backend, p.precision, device, "params.yaml: runtime.amp_backend")
        self._shape = read_shape(source)
        self._maxlen = self._shape.maxlen
        self.tokenizer = load_tokenizer(source, self._shape)
        self.precision = choose_precision(p.precision, device, "params.yaml: finetune.precision")

    def train(self, train: TrainingSet, val: Labelled, seed: int, run: Run) -> Finetuned:
        """Train one classifier; ``val`` decides the best epoch."""
        p = self._p
        model = self._make_model(seed)
        train_data = FinetuneDataset(
            train.texts, train.targets, self.tokenizer, self._maxlen, device=self._device
        )
        val_data = FinetuneDataset(*val, self.tokenizer, self._maxlen, device=self._device)
        collate = partial(collate_fn, pad_idx=self.tokenizer.pad_token_id)
        batches = MixtureBatchSampler(
            train_data.shown_lengths, train.num_labelled, train.num_drawn, train.batch_size, seed
        )
        dataloaders: dict[str, Batches] = {
            "train": make_loader(train_data, batches, collate),
            "eval": make_loader(
                val_data,
                LengthGroupedBatchSampler(val_data.shown_lengths, p.batch_size, shuffle=False),
                collate,
            ),
        }
        steps = train.num_steps
        scorer = make_scorer(*val, self.tokenizer, self._maxlen)
        with only_tokens(model, tokens_in(train.texts, self.tokenizer)):
            optimizer = get_optimizer(model, p.weight_decay, p.layer_lr_decay)
            trainer = FinetuneTrainer(
                model,
                optimizer,
                Scheduler(optimizer, 0.0, p.lr, p.final_lr, int(p.warmup * steps), steps),
                self.tokenizer.pad_token_id,
                self._device,
                logdir=run.logdir,
                max_grad_norm=p.max_grad_norm,
                precision=self.precision,
                amp_backend=self._runtime.amp_backend,
                cuda_graphs=self._cuda_graphs,
                label_smoothing=train.label_smoothing,
                checkpoints=run.checkpoints,
            )
            # Few labels take hundreds of short epochs; scoring each would take longer than training.
            trainer.train(dataloaders, train.epochs, scorer, train.epochs // p.epochs)
        (best,) = (record for record in trainer.epochs if record["epoch"] == trainer.best_epoch)
        return Finetuned(model, trainer.epochs, best, trainer.skipped_steps)

    def require_memory(self, train: TrainingSet) -> None:
        """Say what training on ``train`` will take; if there is no memory to record passes, none will be.

        Call it once, for the largest run: memory that earlier runs freed would not count as free later.

        Raises:
            UserError: there is no room for it; names what would fit.
        """
        p, plan, free = self._p, self._plan(train), free_memory(self._device)
        if train.epochs > p.epochs:
            why = f"for finetune.min_steps = {p.min_steps}"
            say(f"few labels: {train.epochs} epochs instead of {p.epochs}, {why}")
        announce(plan, free)
        batch_size = min(train.batch_size, train.num_labelled)  # no batch has more
        smaller_model = "the folder of a smaller model as finetune.init"
        if p.of_our_shape:
            smaller_model = "a smaller model.size"
        self._cuda_graphs = require_memory(plan, free, "finetune", batch_size, smaller_model=smaller_model)

    def _plan(self, train: TrainingSet) -> Plan:
        shown = train.texts.lengths.clip(max=self._maxlen)
        lengths = shown + SPECIAL_TOKENS_PER_TEXT
        texts = math.ceil((train.num_labelled + train.num_drawn) / train.num_batches)
        return Plan(
            shape=self._shape,
            num_classes=self.num_classes,
            trained_tokens=len(tokens_in(train.texts, self.tokenizer)),
            soft_targets=len(train.texts) * self.num_classes if train.num_unlabelled else 0,
            texts=texts,
            processes=num_processes(),
            processes_here=num_processes_here(),
            length=float(lengths.mean()),
            longest=int(lengths.max()),
            largest_batch_ratio=largest_batch_ratio(torch.from_numpy(shown), math.ceil(len(shown) / texts)),
            target_share=0.0,
            dropout=self._p.dropout,
            precision=self.precision,
            on_cpu=self._device.type == "cpu",
            cuda_graphs=self._cuda_graphs,
            activation_checkpointing=self._runtime.activation_checkpointing,
            steps=train.num_steps,
        )

    def logits(self, model: BertFinetuneModel, texts: TokenStore) -> npt.NDArray[np.float32]:
        """The logits of a trained classifier for ``texts``, shape (n, C)."""

        def logits_of(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            loader = inference_loader(texts.take(rows), self.tokenizer, self._maxlen)
            return predict_logits(model, loader, self.tokenizer.pad_token_id, self._device)

        return in_shares(logits_of, len(texts))

    def _make_model(self, seed: int) -> BertFinetuneModel:
        p = self._p
        torch.manual_seed(seed)
        model = BertFinetuneModel(
            **self._shape.kwargs(),
            num_classes=self.num_classes,
            **dropout_everywhere(p.dropout),
        )
        model.backbone.activation_checkpointing = self._runtime.activation_checkpointing
        if p.init != "scratch":
            load_encoder(model, self._source)
        return model.to(self._device)
