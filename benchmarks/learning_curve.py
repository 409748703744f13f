"""Weighted F1 on test as labels and unlabelled lines grow, against linear SVMs; a table and a plot.

    python benchmarks/learning_curve.py [--corpus ZIP] [--seeds N] [--jobs N] [--work DIR] [--json OUT]
                                        [--plot SVG]

Shares of the labels of train and of the unlabelled lines are drawn at random, the same for every seed; val
keeps all its labels. The tokenizer is learned from all train texts at every share of the labels. Without
unlabelled lines the encoder starts from random weights, and there are no teachers. With ``--seeds 0`` the
SVMs alone are trained.

The SVMs come first, then the curve of all unlabelled lines; each is written, and drawn, when all its seeds
are done. Other series of the same rows in OUT stay, each with its command. With ``--work DIR`` everything is
kept in DIR, and a run that was cut off goes on from there; after a change of the code all is made anew.
"""

import hashlib
import statistics
import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from threading import Event
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

from common import (
    argument_parser,
    deviation,
    positive,
    provenance,
    read_archive,
    read_record,
    run_main,
    shown,
    writable_file,
    write_archive,
    write_result,
)
from quality import OVERRIDES, Contest, read_scores, settings_of
from receiptbert.progress import say
from receiptbert.splits import SPLIT, TRAIN, UNSUPERVISED
from runs import PRETRAINING, digest, make, run_all, seeds

LABELS = [1.0, 0.3, 0.1]
UNLABELLED = [1.0, 0.0, 0.1, 0.3]
# What depends on the labels; tokenizer and pretraining are kept.
AFTER_LABELS = ["unzip", "pretokenize", "finetune", "evaluate"]
SVMS = {"linear SVM": "svm_char", "linear SVM, words too": "svm_both"}  # series -> FEATURES of linear.py

Scores = dict[str, dict[float, list[float]]]  # series -> share of the labels -> weighted F1 of each seed


def name_of(unlabelled: float) -> str:
    """The name of the series with this share of the unlabelled lines."""
    return f"BERT, {unlabelled:.0%} of the unlabelled lines" if unlabelled else "BERT from scratch"


SERIES = [*SVMS, *map(name_of, sorted(UNLABELLED, reverse=True))]  # in the table and in the plot


def draw(corpus: pd.DataFrame, split: str, share: float) -> pd.DataFrame:
    """``corpus`` with a random ``share`` of the rows of ``split``; larger shares hold the smaller ones."""
    rows = np.flatnonzero(corpus[SPLIT] == split)
    rows = np.random.default_rng(0).permutation(rows)
    return corpus.drop(corpus.index[rows[round(share * len(rows)) :]])


def digest_of_rows(corpus: pd.DataFrame) -> str:
    """Changes with any row of ``corpus``, and with their order."""
    return hashlib.sha256(corpus.to_csv(index=False).encode()).hexdigest()


def svm_scores(archive: Path, corpus: pd.DataFrame) -> Scores:
    """Those of the linear models, which no seed changes."""
    scores: Scores = {series: {} for series in SVMS}
    for share in LABELS:
        contest = Contest(archive, draw(corpus, TRAIN, share))
        for series, features in SVMS.items():
            scores[series][share] = [contest.svm(features, 0)["weighted_f1"]]
    return scores


def bert_scores(
    corpus: pd.DataFrame, unlabelled: float, seed: int, work: Path, jobs: int, stopped: Event
) -> dict[float, float]:
    """Weighted F1 on test for each share of the labels, after one pretraining on ``unlabelled``.

    Args:
        work: where the folder of the pretraining is, or is made.
        jobs: how many share the cores.
        stopped: once it is set, no further share is begun.
    """
    # From scratch nothing is pretrained, but the tokenizer needs texts and the encoder a shape.
    overrides = OVERRIDES["scratch"] if not unlabelled else []
    corpus = draw(corpus, UNSUPERVISED, unlabelled or min(filter(None, UNLABELLED)))
    overrides = [*overrides, *seeds(seed)]
    known = settings_of(overrides) | {"corpus": digest_of_rows(corpus)}
    folder = work / f"{unlabelled}-{seed}-{digest(known)}"
    make(folder, PRETRAINING, overrides, corpus=partial(write_archive, corpus), jobs=jobs)
    links = {name: folder / name for name in ("models/tokenizer", "models/pretrained")}
    scores = {}
    for labels in LABELS:
        if stopped.is_set():
            break
        share, drawn = folder / f"labels-{labels}", partial(write_archive, draw(corpus, TRAIN, labels))
        make(share, AFTER_LABELS, overrides, corpus=drawn, links=links, jobs=jobs)
        scores[labels] = read_scores(share)["weighted_f1"]
    return scores


def plot(scores: Scores, title: str, path: Path) -> None:
    """A line for each series, the labels on a logarithmic axis."""
    mpl.rcParams["svg.hashsalt"] = title  # the same bytes for the same figures
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for series, by_labels in scores.items():
        means = [statistics.fmean(by_labels[share]) for share in LABELS]
        axes.plot(LABELS, means, "--" if series in SVMS else "-", marker="o", label=series)
    axes.set_xscale("log")
    axes.set_xticks(LABELS, [f"{share:.0%}" for share in LABELS])
    axes.minorticks_off()
    axes.set(xlabel="labelled lines", ylabel="weighted F1, test", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


class Curves:
    """The series that are done, in a file and in a plot.

    Args:
        name: of the corpus.
        corpus: its rows. Series in the file that come from other rows, so from other draws, are dropped.
        path: of the file; None for none.
        drawn: of the plot; None for none.
    """

    def __init__(self, name: str, corpus: pd.DataFrame, path: Path | None, drawn: Path | None) -> None:
        self._path, self._drawn, self._title = path, drawn, Path(name).stem
        self._about = {"corpus": name, "sha256_of_rows": digest_of_rows(corpus)}
        self._scores: Scores = {}
        self._made: dict[str, Any] = {}  # the provenance of each series
        if path is not None and path.exists():
            figures = read_record(path)
            if all(figures.get(key) == value for key, value in self._about.items()):
                self._made = figures["made"]
                self._scores = {
                    series: {float(share): f1 for share, f1 in row.items()}
                    for series, row in figures["weighted_f1"].items()
                }

    def add(self, scores: Scores) -> None:
        """Put in series, replacing earlier ones of that name; write and draw all."""
        self._made |= dict.fromkeys(scores, provenance())
        self._scores |= scores
        self._scores = {series: self._scores[series] for series in SERIES if series in self._scores}
        f1 = {series: {str(share): f1 for share, f1 in row.items()} for series, row in self._scores.items()}
        write_result(self._path, {**self._about, "weighted_f1": f1, "made": self._made})
        if self._drawn is not None:
            plot(self._scores, self._title, self._drawn)

    def print(self) -> None:
        """A line for each series."""
        width = max(map(len, SERIES))
        print(f"{'labels':{width}}" + "".join(f"{share:>16.0%}" for share in LABELS))
        for series, row in self._scores.items():
            cells = (
                shown(statistics.fmean(f1), deviation(f1), len(f1)) for f1 in map(row.__getitem__, LABELS)
            )
            print(f"{series:{width}}" + "".join(f"{cell:>16}" for cell in cells))


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="runs of each point, with seeds from 0 on")
    parser.add_argument("--jobs", type=positive, default=1, help="pretrainings that are run side by side")
    parser.add_argument("--work", type=Path, help="keep all folders there, to go on from")
    parser.add_argument("--plot", type=writable_file, help="draw the curves there")
    args = parser.parse_args()
    if args.seeds < 0:
        parser.error("--seeds cannot be negative; 0 scores the SVMs alone")
    corpus = read_archive(args.corpus)
    done_series = Curves(args.corpus.name, corpus, args.json, args.plot)
    done_series.add(svm_scores(args.corpus, corpus))
    curves: dict[float, dict[int, dict[float, float]]] = {unlabelled: {} for unlabelled in UNLABELLED}
    with tempfile.TemporaryDirectory() as scratch:
        work, stopped = args.work or Path(scratch), Event()

        def run(unlabelled: float, seed: int) -> tuple[float, int, dict[float, float]]:
            return unlabelled, seed, bert_scores(corpus, unlabelled, seed, work, args.jobs, stopped)

        points = [partial(run, *point) for point in product(UNLABELLED, range(args.seeds))]
        for unlabelled, seed, found in run_all(points, args.jobs, stopped):
            curve = curves[unlabelled]
            curve[seed] = found
            say(f"{name_of(unlabelled)}, seed {seed}: " + ", ".join(f"{f1:.4f}" for f1 in found.values()))
            if len(curve) == args.seeds:
                row = {share: [curve[seed][share] for seed in range(args.seeds)] for share in LABELS}
                done_series.add({name_of(unlabelled): row})
    done_series.print()


if __name__ == "__main__":
    run_main(main)
