"""Our trainings as contestants: what the stages do, without checkpoints, at a rate that never changes."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch.optim import Optimizer

from receiptbert.collation import Collator, collate_fn
from receiptbert.datasets import FinetuneDataset, PretrainDataset
from receiptbert.finetune_trainer import FinetuneTrainer
from receiptbert.loading import Batches, make_loader
from receiptbert.modeling import BertFinetuneModel, BertModel, dropout_everywhere
from receiptbert.optimization import Scheduler, get_optimizer
from receiptbert.partial_embedding import only_tokens, tokens_in
from receiptbert.sampling import LengthGroupedBatchSampler
from receiptbert.trainer import Trainer
from setting import Setting, Stopwatch, Task, Timed, new_seed

SLOW = 1e-5  # the learning rate; the speed does not depend on it


def pretrain(setting: Setting, task: Task) -> float:
    """Pretraining for a while; tokens per second.

    ``Pretraining`` would run to its end. Here no text is held out, the masking is that of Hugging Face's
    collator (token by token, 80/10/10), and each batch is a step.
    """
    p = setting.params.pretrain
    dataset = PretrainDataset(
        setting.unlabelled, setting.tokenizer, 1, setting.shape.maxlen, p.permute_prob, device=setting.device
    )
    loader = make_loader(
        dataset,
        LengthGroupedBatchSampler(dataset.shown_lengths, task.batch_size, new_seed()),
        Collator(setting.tokenizer, mask_prob=p.mask_prob),
    )
    model = BertModel(**setting.shape.kwargs(), **dropout_everywhere(p.dropout), sop_weight=p.sop_weight)
    optimizer = get_optimizer(model)
    trainer = Trainer(
        model,
        optimizer,
        _constant(optimizer, SLOW),
        setting.tokenizer.pad_token_id,
        setting.device,
        max_grad_norm=p.max_grad_norm,
        precision=setting.precision,
    )
    watch = Stopwatch(setting, task)
    trainer.train(Timed(loader, watch), n_epochs=1)
    return watch.rate()


def finetune(setting: Setting, task: Task) -> float:
    """Finetuning for a while; tokens per second."""
    with finetuning(setting, task.batch_size, new_seed()) as (_, trainer, batches):
        watch = Stopwatch(setting, task)
        trainer.train({"train": Timed(batches, watch), "eval": []}, n_epochs=1)
        return watch.rate()


@contextmanager
def finetuning(
    setting: Setting, batch_size: int, seed: int, rate: float = SLOW
) -> Iterator[tuple[BertFinetuneModel, FinetuneTrainer, Batches]]:
    """A classifier with random weights, its trainer and the batches of an epoch, in the order of ``seed``.

    Within it, the embeddings of no tokens are trained but those in train: as a teacher is finetuned.
    """
    p = setting.params.finetune
    dataset = FinetuneDataset(
        setting.train, setting.targets, setting.tokenizer, setting.shape.maxlen, device=setting.device
    )
    loader = make_loader(
        dataset,
        LengthGroupedBatchSampler(dataset.shown_lengths, batch_size, seed),
        partial(collate_fn, pad_idx=setting.tokenizer.pad_token_id),
    )
    model = BertFinetuneModel(
        **setting.shape.kwargs(), **dropout_everywhere(p.dropout), num_classes=setting.num_classes
    )
    with only_tokens(model.to(setting.device), tokens_in(setting.train, setting.tokenizer)):
        optimizer = get_optimizer(model)
        trainer = FinetuneTrainer(
            model,
            optimizer,
            _constant(optimizer, rate),
            setting.tokenizer.pad_token_id,
            setting.device,
            max_grad_norm=p.max_grad_norm,
            precision=setting.precision,
        )
        yield model, trainer, loader


def _constant(optimizer: Optimizer, rate: float) -> Scheduler:
    return Scheduler(optimizer, rate, rate, rate, 0, 1)
