"""Weighted F1 of this pipeline against what a practitioner would try first, over several seeds.

    python benchmarks/quality.py [--corpus ZIP] [--seeds N] [--only NAME,...] [-S KEY=VALUE] [--work DIR]
                                [--jobs N] [--json OUT]

``scratch`` is the shipped shape without pretraining and without teachers, ``assignment`` the assignment's
settings, ``undistilled`` the shipped settings without teachers, ``best`` the best that the sweeps found, at
any cost (docs/LOG.md). Every choice is made on val; test is scored once at the end of a run. Runs that
differ in finetuning alone share a pretraining.

A long table can be filled part by part: rows of the same corpus in OUT stay, and their seeds with the same
settings are not run again. With ``--work DIR`` all folders stay in DIR, and a table that was cut off
goes on from there (its seconds then count from there; with several jobs they mean little). What is in DIR is
not made again, unless settings or the code have changed. After a change of the checkpoint that
``finetune.init`` names, begin a new file and a new folder.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from threading import Event, Lock
from typing import Any

import pandas as pd

from common import (
    AS_READ,
    add_overrides,
    argument_parser,
    deviation,
    positive,
    provenance,
    read_archive,
    read_record,
    run_main,
    shipped_params,
    shown,
    some_of,
    write_result,
)
from linear import FEATURES, STRENGTHS, fit_svm, megabytes
from receiptbert.metrics import f1
from receiptbert.progress import say
from receiptbert.reports import read_json
from receiptbert.splits import LABEL, SPLIT, TEST, TEXT, TRAIN
from runs import FINETUNING, PRETRAINING, digest, link, make, refuse_overrides, run_all, seeds, sha256

# What `dvc exp run -S` would get; README.md has the assignment's line.
OVERRIDES = {
    # The shape of the model is read from a checkpoint, so one is made, in one step.
    "scratch": ["finetune.init=scratch", "finetune.teachers=0", "pretrain.max_steps=1", "finetune.lr=4e-4"],
    "assignment": [
        "tokenizer.min_frequency=2",
        "pretrain.mask_prob=0.15",
        "pretrain.whole_words=false",
        "pretrain.letters_only=false",
        "pretrain.sop_weight=0.5",
        "pretrain.batch_size=256",
        "pretrain.epochs=5",
        "pretrain.max_steps=1000000",  # no limit: the epochs decide
        "finetune.epochs=6",
        "finetune.min_steps=0",
        "finetune.lr=4e-4",
        "finetune.layer_lr_decay=1",
        "finetune.label_smoothing=0",
        "finetune.teachers=0",
    ],
    "undistilled": ["finetune.teachers=0"],
    "default": [],
    "best": ["pretrain.max_steps=32000", "pretrain.epochs=80"],
}
NAMES = ["majority", *FEATURES, *OVERRIDES]
Run = dict[str, float]  # scores, seconds and megabytes of one run
Row = dict[str, Any]  # of a contestant: see `summary`; `settings` and `processor` tell its origin


@dataclasses.dataclass(frozen=True)
class Contest:
    """The corpus that all compete on, and the contestants."""

    archive: Path
    corpus: pd.DataFrame
    overrides: Sequence[str] = ()  # of the shipped settings, in every run of the pipeline
    jobs: int = 1  # runs that share the cores

    def run(self, name: str, seed: int, work: Path) -> Run:
        """One run of the contestant ``name``; the pipeline's are in folders in ``work``."""
        if name == "majority":
            return self.majority()
        return self.svm(name, seed) if name in FEATURES else self.pipeline(OVERRIDES[name], seed, work)

    def majority(self) -> Run:
        """Always answering the most frequent class of train."""
        answer = self._rows(TRAIN)[LABEL].mode().iloc[0]
        return self._test_scores([answer] * len(self._rows(TEST))) | {"seconds": 0.0, "megabytes": 0.0}

    def svm(self, features: str, seed: int) -> Run:
        """A linear model on words, characters or both of the labelled lines."""
        start = time.perf_counter()
        model, val_f1 = fit_svm(self.corpus, features, seed)
        seconds = time.perf_counter() - start
        rest = {"C": model[-1].C, "val_weighted_f1": val_f1}
        rest |= {"seconds": seconds, "megabytes": megabytes(model)}
        return self._test_scores(model.predict(self._rows(TEST)[TEXT])) | rest

    def pipeline(self, overrides: Sequence[str], seed: int, work: Path) -> Run:
        """All six stages, with the shipped parameters and ``overrides``."""
        overrides = [*AS_READ, *overrides, *self.overrides, *seeds(seed)]
        known = settings_of(overrides) | {"corpus": sha256(self.archive)}
        finetuned = work / f"finetuned-{digest(known)}"
        del known["finetune"]
        pretrained = work / f"pretrained-{digest(known)}"
        corpus = partial(link, self.archive)
        seconds = make(pretrained, PRETRAINING, overrides, corpus=corpus, jobs=self.jobs)
        links = {name: pretrained / name for name in ("data", "metrics/data.json", "models/pretrained")}
        seconds += make(finetuned, FINETUNING, overrides, links=links, jobs=self.jobs)
        return read_scores(finetuned) | {"seconds": seconds}

    def _rows(self, split: str) -> pd.DataFrame:
        return self.corpus[self.corpus[SPLIT] == split]

    def _test_scores(self, answers: Sequence[str]) -> Run:
        true = self._rows(TEST)[LABEL]
        return {f"{average}_f1": f1(true, answers, average) for average in ("weighted", "macro")}


def read_scores(folder: Path) -> Run:
    """What the stages found, and the size of the model."""
    test, finetune = (read_json(folder / f"metrics/{name}.json") for name in ("test", "finetune"))
    return {
        "weighted_f1": test["weighted_f1"],
        "macro_f1": test["macro_f1"],
        "calibration_error": test["ece"],
        "val_weighted_f1": finetune["val_weighted_f1"],
        "megabytes": (folder / "models/finetuned/model.safetensors").stat().st_size / 1e6,
    }


def summary(runs: Sequence[Run]) -> Row:
    """Mean and deviation of the weighted F1 on test, as ``mean`` and ``std``, means of the rest, the runs."""
    means = {name: statistics.fmean(run[name] for run in runs) for name in runs[0] if name != "C"}
    weighted = [run["weighted_f1"] for run in runs]
    return {
        "mean": means.pop("weighted_f1"),
        "std": deviation(weighted),
        "seeds": len(runs),
        "macro_std": deviation([run["macro_f1"] for run in runs]),
        **means,
        "runs": list(runs),
    }


def _both(old: str, new: str) -> str:
    """The value that the runs of a row share, or all their values if they differ."""
    return "; ".join(dict.fromkeys([*old.split("; "), new]))


def settings_digest(name: str, overrides: Sequence[str] = ()) -> str:
    """A digest of what a run of ``name`` depends on besides corpus and seed."""
    if name in OVERRIDES:
        return digest(settings_of([*OVERRIDES[name], *overrides]))
    if name in FEATURES:
        return digest({"features": repr(FEATURES[name]), "strengths": STRENGTHS})
    return "none"


def settings_of(overrides: Sequence[str]) -> dict[str, Any]:
    """The settings that change results, by section, as the stages see them: however a value is written."""
    settings = dataclasses.asdict(shipped_params(overrides))
    del settings["data"]["archive"], settings["runtime"]
    return settings


class Table:
    """The rows of all contestants, in a file.

    Args:
        corpus: the archive. Rows in the file from another one are dropped.
        path: of the file; None for none.
    """

    def __init__(self, corpus: Path, path: Path | None) -> None:
        self._path = path
        self._about = {"corpus": corpus.name, "sha256": sha256(corpus)}
        self._rows: dict[str, Row] = {}
        self._lock = Lock()
        if path is not None and path.exists():
            figures = read_record(path)
            if figures.get("sha256") == self._about["sha256"]:
                self._rows = {name: row for name, row in figures.items() if isinstance(row, dict)}

    def runs(self, name: str, settings: str) -> list[Run]:
        """The runs of ``name`` that were made with these ``settings``, with seeds from 0 on."""
        row = self._rows.get(name)
        return row["runs"] if row is not None and row.get("settings") == settings else []

    def write(self, name: str, settings: str, runs: Mapping[int, Run]) -> None:
        """Put the runs of ``name`` into its row, those from seed 0 on without a gap, and write the file.

        They are hours of work: what is done is written at once.
        """
        with self._lock:
            done = [runs[seed] for seed in takewhile(runs.__contains__, count())]
            if done:
                made = provenance()
                if self.runs(name, settings):  # of other seeds, perhaps from elsewhere
                    before = self._rows[name]
                    keys = [
                        key for key in ("command", "processor", "versions", "commit") if key in made | before
                    ]
                    made = {key: _both(*(of.get(key, "unknown") for of in (before, made))) for key in keys}
                self._rows[name] = summary(done) | {"settings": settings} | made
                self._rows = {known: self._rows[known] for known in NAMES if known in self._rows}
                write_result(self._path, {**self._about, **self._rows})

    def print(self) -> None:
        """A line for each contestant."""
        heads = f"{'on val':>8}{'seeds':>7}{'seconds':>9}{'MB':>7}{'ECE':>7}"
        print(f"{'':12}{'weighted F1':>16}{'macro F1':>16}{heads}")
        for name, row in self._rows.items():
            weighted = shown(row["mean"], row["std"], row["seeds"])
            macro = shown(row["macro_f1"], row["macro_std"], row["seeds"])
            val = f"{row['val_weighted_f1']:.3f}" if "val_weighted_f1" in row else ""
            error = f"{row['calibration_error']:.3f}" if "calibration_error" in row else ""
            print(
                f"{name:12}{weighted:>16}{macro:>16}{val:>8}{row['seeds']:7}"
                f"{row['seconds']:9.0f}{row['megabytes']:7.1f}{error:>7}"
            )


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--seeds", type=positive, default=3, help="runs of each, with seeds from 0 on")
    parser.add_argument("--jobs", type=positive, default=1, help="seeds that are run side by side")
    names = ",".join(NAMES)
    parser.add_argument("--only", type=partial(some_of, NAMES), default=names, help="some of these")
    add_overrides(parser)
    parser.add_argument("--work", type=Path, help="keep all folders there, to go on from")
    args = parser.parse_args()
    refuse_overrides(args.overrides, ["data"])
    contest = Contest(args.corpus, read_archive(args.corpus), args.overrides, args.jobs)
    table = Table(args.corpus, args.json)
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        settings = {name: settings_digest(name, args.overrides) for name in args.only}
        runs = {name: dict(enumerate(table.runs(name, settings[name])[: args.seeds])) for name in args.only}

        stopped = Event()

        def run_seed(seed: int) -> None:
            for name in args.only:  # one after another: what they share is in one folder
                if seed not in runs[name] and not stopped.is_set():
                    runs[name][seed] = contest.run(name, seed, work)
                    say(f"{name}, seed {seed}: weighted F1 on test {runs[name][seed]['weighted_f1']:.4f}")
                    table.write(name, settings[name], runs[name])

        tasks = [partial(run_seed, seed) for seed in range(args.seeds)]
        list(run_all(tasks, args.jobs, stopped))
    table.print()


if __name__ == "__main__":
    run_main(main)
