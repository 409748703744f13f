"""Stage 5: finetune the pretrained BERT on the train texts and on what teachers say of unsupervised ones."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from scipy.special import softmax

import pipeline
from receiptbert.calibration import fit_temperature
from receiptbert.checkpoints import Checkpoints, conditions
from receiptbert.corpus import SPLIT, TEXT, TRAIN, UNSUPERVISED, VAL, read_corpus
from receiptbert.corpus_facts import CorpusFacts
from receiptbert.devices import choose_device
from receiptbert.distillation import (
    UNLABELLED,
    LinearTeacher,
    Probabilities,
    distillation_pool,
    draw_unlabelled,
)
from receiptbert.distributed import from_leader, is_leader
from receiptbert.files import whole
from receiptbert.finetuning import Finetuning
from receiptbert.hf_format import save_pretrained
from receiptbert.labelled import Labelled, TrainingSet, load_labelled
from receiptbert.launching import in_processes, one_voice
from receiptbert.metrics import f1
from receiptbert.params import Params
from receiptbert.progress import say
from receiptbert.reports import write_csv, write_json
from receiptbert.token_store import TokenStore


@in_processes
def finetune(params: Params) -> None:
    p = params.finetune
    device = choose_device(params.runtime.device, params.runtime.deterministic)
    facts = CorpusFacts.load(pipeline.TOKENIZED / "corpus.json")
    # From scratch means the same shape and vocabulary without the learned weights.
    source = pipeline.PRETRAINED if p.init in ("pretrained", "scratch") else Path(p.init)
    finetuning = Finetuning(p, source, len(facts.label_names), device, params.runtime)
    texts, targets = load_labelled(pipeline.TOKENIZED, pipeline.CORPUS, TRAIN, finetuning.tokenizer)
    train = TrainingSet(texts, targets, p.epochs, p.batch_size, p.label_smoothing)
    val = load_labelled(pipeline.TOKENIZED, pipeline.CORPUS, VAL, finetuning.tokenizer)
    # Before the teachers have trained for hours: the final model's batches are the largest.
    largest_batch = (1 + UNLABELLED) * p.batch_size if p.teachers else p.batch_size
    finetuning.require_memory(train, largest_batch)
    inputs = [pipeline.CORPUS, pipeline.TOKENIZED, source]
    with ExitStack() as stack:
        # All stay until the stage is done: however late it is cut off, no teacher trains twice.
        final, *teachers = [
            stack.enter_context(
                Checkpoints(pipeline.CHECKPOINTS / name, [p], inputs, params.runtime.checkpoint_seconds)
            )
            for name in ["finetune", *map(teacher_name, range(p.teachers))]
        ]
        teachers_scores: dict[str, float] = {}
        if teachers:
            train, teachers_scores = distil(finetuning, train, val, p.seed, teachers)
        run = pipeline.new_run_folder("finetune")
        model, epochs, best, skipped_steps = finetuning.train(train, val, p.seed, run, final)
        logits = finetuning.logits(model, val[0])
        if not is_leader():
            return
        temperature = fit_temperature(logits, val[1])
        with whole(pipeline.FINETUNED) as folder:
            save_pretrained(model, finetuning.tokenizer, folder, facts.label_names, facts.labels, temperature)
        scores = {
            "val_weighted_f1": best["f1"],
            "val_loss": best["eval_loss"],
            "best_epoch": best["epoch"],
            "temperature": temperature,
        }
        done_on = conditions(device, finetuning.precision, params.runtime.amp_backend)
        write_json(pipeline.METRICS / "finetune.json", scores | teachers_scores | skipped_steps | done_on)
        write_csv(pipeline.PLOTS / "finetune.csv", list(best), (epoch.values() for epoch in epochs))
        for checkpoints in (final, *teachers):
            checkpoints.remove()
    print(f"best epoch: {best['epoch']} of {train.epochs}, weighted F1 on val {best['f1']:.4f}")


def distil(
    finetuning: Finetuning, train: TrainingSet, val: Labelled, seed: int, teachers: Sequence[Checkpoints]
) -> tuple[TrainingSet, dict[str, float]]:
    """What the final model is trained on, with the answers of the teachers, and their scores on val."""
    corpus = read_corpus(pipeline.CORPUS)
    train_texts, val_texts, unsupervised = (
        corpus.loc[corpus[SPLIT] == split, TEXT].tolist() for split in (TRAIN, VAL, UNSUPERVISED)
    )
    chosen = draw_unlabelled(unsupervised, train, seed)
    del corpus, unsupervised  # of millions of lines, gigabytes

    def linear_teacher() -> tuple[Probabilities, float]:
        linear = LinearTeacher(train_texts, train.targets, val_texts, val[1], finetuning.num_classes)
        predicted = linear.probabilities(val_texts).argmax(axis=1)
        return linear.probabilities(chosen), f1(val[1], predicted, "weighted")

    linear_answers, linear_f1 = from_leader(linear_teacher)  # gigabytes in each process else
    say(f"linear teacher: weighted F1 on val {linear_f1:.4f}")

    store = TokenStore.from_texts(chosen, finetuning.tokenizer)
    answers, scores = [], []
    for number, checkpoints in enumerate(teachers):
        say(f"teacher {number + 1} of {len(teachers)}")
        run = pipeline.new_run_folder(teacher_name(number))
        teacher = finetuning.train(train, val, seed + 1 + number, run, checkpoints)
        answers.append(softmax(finetuning.logits(teacher.model, store), axis=1))
        scores.append(teacher.best["f1"])
    say(f"final model: {len(train.texts):,} labelled and {len(chosen):,} unsupervised texts")
    pool = distillation_pool(train, store, (np.mean(answers, axis=0) + linear_answers) / 2)
    return pool, {"teacher_val_weighted_f1": float(np.mean(scores)), "linear_val_weighted_f1": linear_f1}


def teacher_name(number: int) -> str:
    return f"finetune-teacher-{number + 1}"


if __name__ == "__main__":
    pipeline.run_stage(finetune, one_voice)
