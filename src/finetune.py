"""Stage 5: finetune the pretrained BERT on the train texts; the best epoch and the temperature are val's."""

from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import pipeline
from receiptbert.calibration import fit_temperature
from receiptbert.collation import collate_fn
from receiptbert.corpus import TRAIN, VAL
from receiptbert.corpus_facts import CorpusFacts
from receiptbert.datasets import NUM_MARKS, FinetuneDataset
from receiptbert.devices import choose_device
from receiptbert.hf_format import load_encoder, load_tokenizer, read_shape, save_pretrained
from receiptbert.inference import inference_loader, predict_logits
from receiptbert.labelled import load_labelled
from receiptbert.metrics import make_scorer
from receiptbert.modeling import BertFinetuneModel
from receiptbert.optimization import Scheduler, get_optimizer
from receiptbert.params import Params
from receiptbert.precision import choose_precision
from receiptbert.reports import write_csv, write_json
from receiptbert.sampling import LengthGroupedBatchSampler
from receiptbert.training import Batches, FinetuneTrainer, num_optimizer_steps


def finetune(params: Params) -> None:
    p = params.finetune
    device = choose_device(params.runtime.device)
    facts = CorpusFacts.load(pipeline.TOKENIZED / "corpus.json")
    # From scratch means the same shape and vocabulary without the learned weights.
    source = pipeline.PRETRAINED if p.init in ("pretrained", "scratch") else Path(p.init)
    shape = read_shape(source)
    tokenizer = load_tokenizer(source)
    maxlen = shape.max_seqlen - NUM_MARKS
    train, train_targets = load_labelled(pipeline.TOKENIZED, pipeline.CORPUS, TRAIN, tokenizer)
    val, val_targets = load_labelled(pipeline.TOKENIZED, pipeline.CORPUS, VAL, tokenizer)

    torch.manual_seed(p.seed)
    model = BertFinetuneModel(
        **shape.kwargs(),
        num_classes=len(facts.label_names),
        input_dropout_prob=p.dropout,
        hidden_dropout_prob=p.dropout,
        attention_probs_dropout_prob=p.dropout,
    )
    if p.init != "scratch":
        load_encoder(model, source)

    train_data = FinetuneDataset(train, train_targets, tokenizer, maxlen)
    val_data = FinetuneDataset(val, val_targets, tokenizer, maxlen, presort=True)
    collate = partial(collate_fn, pad_idx=tokenizer.pad_token_id)
    batches = LengthGroupedBatchSampler(train_data.lengths.clamp(max=maxlen), p.batch_size, p.seed)
    dataloaders: dict[str, Batches] = {
        "train": DataLoader(train_data, batch_sampler=batches, collate_fn=collate),
        "eval": DataLoader(val_data, batch_size=p.batch_size, shuffle=False, collate_fn=collate),
    }
    optimizer = get_optimizer(model, weight_decay=p.weight_decay)
    steps = num_optimizer_steps(len(batches), p.epochs)
    scheduler = Scheduler(optimizer, 0.0, p.lr, p.final_lr, int(p.warmup * steps), steps)
    trainer = FinetuneTrainer(
        model,
        optimizer,
        scheduler,
        tokenizer.pad_token_id,
        device,
        logdir=pipeline.new_run_folder("finetune"),
        max_grad_norm=p.max_grad_norm,
        precision=choose_precision(p.precision, device, "params.yaml: finetune.precision"),
        label_smoothing=p.label_smoothing,
    )
    trainer.train(dataloaders, p.epochs, make_scorer(val, val_targets, tokenizer, maxlen))

    loader = inference_loader(val, tokenizer, maxlen)
    temperature = fit_temperature(predict_logits(model, loader, tokenizer.pad_token_id, device), val_targets)
    save_pretrained(model, tokenizer, pipeline.FINETUNED, facts.label_names, facts.labels, temperature)
    best = trainer.epochs[trainer.best_epoch - 1]
    write_json(
        pipeline.METRICS / "finetune.json",
        {
            "val_weighted_f1": best["f1"],
            "val_loss": best["eval_loss"],
            "best_epoch": best["epoch"],
            "temperature": temperature,
        },
    )
    write_csv(pipeline.PLOTS / "finetune.csv", list(best), (epoch.values() for epoch in trainer.epochs))
    print(f"best epoch: {best['epoch']} of {p.epochs}, weighted F1 on val {best['f1']:.4f}")


if __name__ == "__main__":
    pipeline.run_stage(finetune)
