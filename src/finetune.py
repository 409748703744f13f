"""Stage 5: finetune the pretrained BERT on train texts and teachers' predictions for unsupervised ones."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np

import pipeline
from receiptbert.calibration import fit_temperature
from receiptbert.checkpoints import Checkpoints, conditions, training_fingerprint
from receiptbert.corpus_facts import Classes
from receiptbert.devices import choose_device, keep_freed_memory
from receiptbert.distillation import distil, read_teaching_texts
from receiptbert.distributed import from_main_process, is_main_process
from receiptbert.files import atomic
from receiptbert.finetuning import Finetuned, Finetuning, Run
from receiptbert.hf_format import save_pretrained
from receiptbert.labelled import load_labelled, training_set
from receiptbert.launching import in_processes, one_voice
from receiptbert.params import Params
from receiptbert.reports import write_csv, write_json
from receiptbert.split_texts import texts_path
from receiptbert.splits import TRAIN, UNSUPERVISED, VAL
from receiptbert.token_store import store_path

# Read from the tokenized corpus: nothing of test, so that correcting a test label retrains nothing
# unless a class comes or goes.
READ = [
    pipeline.CLASSES,
    *(store_path(pipeline.TOKENIZED, split) for split in (TRAIN, VAL)),
    *(texts_path(pipeline.TOKENIZED, split) for split in (TRAIN, VAL, UNSUPERVISED)),
]


@in_processes
def finetune(params: Params) -> str | None:
    p, runtime = params.finetune, params.runtime
    device = choose_device(runtime.device, runtime.deterministic)
    keep_freed_memory(device, p.precision)
    classes = Classes.load(pipeline.CLASSES)
    source = pipeline.start_of_finetuning(p)
    finetuning = Finetuning(p, source, len(classes.names), device, runtime)
    train = training_set(*load_labelled(pipeline.TOKENIZED, TRAIN, finetuning.tokenizer), p)
    val = load_labelled(pipeline.TOKENIZED, VAL, finetuning.tokenizer)
    # A class without train rows is one that no model knows; its rows say nothing of the others' confidence.
    learned = np.isin(val.targets, train.targets)
    # The first thing that processes do together, so that one with other settings or inputs is named.
    fingerprint = training_fingerprint([p], [*READ, source])
    texts = None
    if p.teachers:  # the main process alone reads all of the texts
        read = partial(read_teaching_texts, pipeline.TOKENIZED, train, val, finetuning.tokenizer, p.seed)
        texts = from_main_process(read)
    # Checked before the teachers train for hours: the final model's batches are the largest.
    finetuning.require_memory(
        train._replace(texts=train.texts.followed_by(texts.unlabelled_ids)) if texts else train
    )
    with begin_runs(p.teachers, fingerprint, runtime.checkpoint_seconds) as (final, *teachers):
        scores: dict[str, float] = {}
        if texts:
            train, scores = distil(finetuning, train, val, texts, p.seed, teachers)
        result = finetuning.train(train, val, p.seed, final)
        logits = finetuning.logits(result.model, val.texts)
        if not is_main_process():
            return None
        temperature = fit_temperature(logits[learned], val.targets[learned])
        with atomic(pipeline.FINETUNED) as folder:
            save_pretrained(
                result.model, finetuning.tokenizer, folder, classes.names, classes.labels, temperature
            )
        done_on = conditions(device, finetuning.precision, runtime.amp_backend)
        line = report(result, {"temperature": temperature} | scores, done_on)
        # Not before: if the final model is cut off, no BERT teacher trains again. They label again, and the
        # linear teacher is fitted again.
        for run in (final, *teachers):
            run.checkpoints.remove()
    return line


@contextmanager
def begin_runs(teachers: int, fingerprint: str, seconds: float) -> Iterator[list[Run]]:
    """The runs of the final model and of each teacher; ``seconds`` as in ``Checkpoints``."""
    names = ["finetune", *(f"finetune-teacher-{number}" for number in range(1, teachers + 1))]
    with ExitStack() as stack:
        yield [
            Run(
                stack.enter_context(Checkpoints(pipeline.CHECKPOINTS / name, fingerprint, seconds)),
                pipeline.new_run_folder(name),
            )
            for name in names
        ]


def report(result: Finetuned, scores: dict[str, float], done_on: dict[str, Any]) -> str:
    """Write ``metrics/finetune.json`` and the curve of the epochs; return what to tell."""
    best = result.best
    of_best = {"val_weighted_f1": best["f1"], "val_loss": best["eval_loss"], "best_epoch": best["epoch"]}
    write_json(pipeline.METRICS / "finetune.json", of_best | scores | result.skipped_steps | done_on)
    write_csv(pipeline.PLOTS / "finetune.csv", list(best), (epoch.values() for epoch in result.epochs))
    last = result.epochs[-1]["epoch"]
    return f"best epoch: {best['epoch']} of {last}, weighted F1 on val {best['f1']:.4f}"


if __name__ == "__main__":
    pipeline.run_stage(finetune, one_voice)
