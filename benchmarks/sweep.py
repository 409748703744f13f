"""Weighted F1 on val of other settings against the shipped ones, over random splits; test is not scored.

    python benchmarks/sweep.py [--corpus ZIP] [--splits N] [--jobs N] [--work DIR] [--json OUT]
                               [-S KEY=VALUE ...] ["KEY=VALUE KEY=VALUE" ...]

Each argument is a candidate: changes of ``params.yaml``, as ``dvc exp run -S`` takes them. ``-S`` changes a
setting in all runs, those of the shipped settings too: for a shorter pretraining, say. The rows of train and
val are split anew for each of N splits, whose numbers are the seeds too. Test only serves to leave out its
texts, on which no run may train, and is then dropped.

The F1 of a run is that of the best epoch on the very val that chose it. So it is optimistic, for all
candidates alike: it serves to compare them. Differences from the shipped settings are paired by split. Their
standard error is too small, since the splits share most of their rows: two standard errors are no proof.

Runs share what their settings have in common: the tokenized texts, the pretraining. With ``--work DIR`` all
is kept in DIR, and a sweep that was cut off goes on from there (its seconds then count from there; with
several jobs they mean little anyway). After a change of the code all is made anew.
"""

import dataclasses
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from common import (
    AS_READ,
    add_overrides,
    argument_parser,
    deviation,
    positive,
    read_archive,
    read_record,
    run_main,
    shipped_params,
    shown,
    write_archive,
    write_result,
)
from receiptbert.errors import UserError
from receiptbert.progress import say
from receiptbert.reports import read_json
from receiptbert.splits import LABEL, SPLIT, TEST, TEXT, TRAIN, UNSUPERVISED, VAL
from runs import RECORD, digest, make, refuse_overrides, run_all, seeds, sha256

SHIPPED = "shipped"
VAL_SHARE = 4  # one in so many labelled rows is in val


class Level(NamedTuple):
    """What is made in one folder, and shared by all runs that have it in common."""

    stages: list[str]
    sections: list[str]  # of params.yaml, that matter besides those of earlier levels
    links: dict[str, list[str]]  # what the stages read of those levels


LEVELS = {
    "tokenized": Level(["unzip", "train_tokenizer", "pretokenize"], ["tokenizer", "pretokenize"], {}),
    "pretrained": Level(["pretrain"], ["model", "pretrain"], {"tokenized": ["data", "models/tokenizer"]}),
    "finetuned": Level(
        ["finetune"], ["finetune"], {"tokenized": ["data"], "pretrained": ["models/pretrained"]}
    ),
}
# The teachers' if any, the MLM loss if the texts held out have a target.
SCORES = ["val_weighted_f1", "val_loss", "teacher_val_weighted_f1", "mlm_loss"]
Run = dict[str, float]  # the split, scores and seconds
Row = dict[str, Any]  # of a candidate, see `summary`


@dataclasses.dataclass(frozen=True)
class Trial:
    """A candidate on a split."""

    candidate: str
    split: int
    overrides: list[str]
    folders: dict[str, Path]  # of each level


def read_candidates(arguments: Sequence[str], in_all: Sequence[str] = ()) -> dict[str, list[str]]:
    """The changes that each candidate makes, by its name, after those ``in_all``; the shipped settings first.

    Raises:
        UserError: a candidate changes what the sweep itself decides, or what is no setting of a model.
    """
    candidates: dict[str, list[str]] = {}
    for overrides in ([], *map(str.split, arguments)):
        changes = [*in_all, *overrides]
        refuse_overrides(changes, ["data", "runtime"])
        candidates[" ".join(overrides) or SHIPPED] = changes
    return candidates


def plan(candidates: Mapping[str, list[str]], splits: int, corpus: str, work: Path) -> list[Trial]:
    """The trials, in the order in which they are best begun: split by split; ``corpus`` is its SHA-256."""
    trials = []
    for split in range(splits):
        for candidate, changes in candidates.items():
            overrides = [*AS_READ, *changes, *seeds(split)]
            names = folder_names(corpus, split, overrides)
            folders = {level: work / name for level, name in names.items()}
            trials.append(Trial(candidate, split, overrides, folders))
    return trials


def folder_names(corpus: str, split: int, overrides: Sequence[str]) -> dict[str, str]:
    """For each level a name that changes with all that its outputs depend on."""
    # As the stages see them: two spellings of a value are one.
    settings = dataclasses.asdict(shipped_params(overrides))
    known: dict[str, Any] = {"corpus": corpus, "split": split}
    names = {}
    for name, level in LEVELS.items():
        known |= {section: settings[section] for section in level.sections}
        names[name] = f"{name}-{digest(known)}"
    return names


def split_anew(corpus: pd.DataFrame, split: int) -> pd.DataFrame:
    """``corpus`` with the rows of train and val redistributed, and one row that stands in for test.

    A class is in train if it is in either: rows are exchanged where chance has put all of a class into val.
    """
    rows = corpus[corpus[SPLIT] != TEST].copy()
    labelled = rows.index[rows[SPLIT] != UNSUPERVISED]
    order = rows.loc[np.random.default_rng(split).permutation(labelled), LABEL]
    size = len(order) // VAL_SHARE
    val, train = order.iloc[:size], order.iloc[size:]
    lacking = val[~val.isin(train) & ~val.duplicated()].index
    spare = train[train.duplicated()].index[: len(lacking)]  # each class keeps its first row
    rows.loc[labelled, SPLIT] = TRAIN
    rows.loc[val.index.difference(lacking).union(spare), SPLIT] = VAL
    # The stages need a row of test, though none before `evaluate` learns from it. It has a label of train,
    # so that it adds no class, and a text that no receipt has: rows of test's texts would be left out.
    stand_in = {TEXT: "no line of test is in a sweep", LABEL: train.iloc[0], SPLIT: TEST}
    return pd.concat([rows, pd.DataFrame([stand_in])], ignore_index=True)


def make_level(trial: Trial, level: str, corpus: pd.DataFrame, jobs: int) -> Path | None:
    """Make the folder of a level of ``trial``; return it, or None if a stage failed, which is reported."""
    folder, name = trial.folders[level], f"{trial.candidate}, split {trial.split}"
    stages, _, of_levels = LEVELS[level]
    made_before = (folder / RECORD).exists()
    links = {path: trial.folders[source] / path for source, paths in of_levels.items() for path in paths}

    def split(path: Path) -> None:
        write_archive(split_anew(corpus, trial.split), path)

    try:
        seconds = make(
            folder,
            stages,
            trial.overrides,
            corpus=split if level == "tokenized" else None,
            links=links,
            jobs=jobs,
        )
    except UserError as error:
        say(f"{name}: {error}")
        return None
    if not made_before:
        say(f"{name}: {level} in {seconds:,.0f} s")
    return folder


def sweep(trials: Sequence[Trial], corpus: pd.DataFrame, jobs: int, report: Callable[[], None]) -> None:
    """Make all folders, each once, ``jobs`` at the same time.

    A level is begun when the one before is done, so that no run blocks a job while it waits for another.
    ``report`` is called after each finetuning.
    """
    going_on = list(trials)
    for level in LEVELS:
        first: dict[Path, Trial] = {}  # trial of each folder
        for trial in going_on:
            first.setdefault(trial.folders[level], trial)
        made = set()
        tasks = [partial(make_level, trial, level, corpus, jobs) for trial in first.values()]
        for folder in run_all(tasks, jobs):
            made.add(folder)
            if folder is not None and level == "finetuned":
                report()
        going_on = [trial for trial in going_on if trial.folders[level] in made]


def read_run(trial: Trial) -> Run:
    """What the stages of a trial found, and their seconds."""
    pretrained, finetuned = (trial.folders[level] for level in ("pretrained", "finetuned"))
    metrics = read_json(pretrained / "metrics/pretrain.json") | read_json(finetuned / "metrics/finetune.json")
    return {
        "split": trial.split,
        **{name: metrics[name] for name in SCORES if name in metrics},
        "pretrain_seconds": read_record(pretrained / RECORD)["seconds"],
        "finetune_seconds": read_record(finetuned / RECORD)["seconds"],
    }


def summary(runs: Sequence[Run], shipped: Sequence[Run]) -> Row:
    """Mean and deviation of the F1 on val as ``mean`` and ``std``, means of the rest, the difference from the
    ``shipped`` runs of the same splits and its standard error (absent where there are too few), the runs."""
    in_all = set.intersection(*(set(run) for run in runs)) - {"split"}
    means = {name: statistics.fmean(run[name] for run in runs) for name in runs[0] if name in in_all}
    f1 = {run["split"]: run["val_weighted_f1"] for run in runs}
    pairs = [f1[run["split"]] - run["val_weighted_f1"] for run in shipped if run["split"] in f1]
    row: Row = {"mean": means.pop("val_weighted_f1"), "std": deviation(list(f1.values()))}
    if pairs:
        row["difference"] = statistics.fmean(pairs)
    if len(pairs) > 1:
        row["difference_error"] = statistics.stdev(pairs) / len(pairs) ** 0.5
    return row | means | {"runs": list(runs)}


def summaries(trials: Sequence[Trial]) -> dict[str, Row]:
    """The candidates that have a finished run."""
    runs: dict[str, list[Run]] = {trial.candidate: [] for trial in trials}
    for trial in trials:
        if (trial.folders["finetuned"] / RECORD).exists():
            runs[trial.candidate].append(read_run(trial))
    return {candidate: summary(found, runs[SHIPPED]) for candidate, found in runs.items() if found}


def print_table(table: Mapping[str, Row]) -> None:
    """A line for each candidate."""
    width = max(map(len, [*table, "candidate"]))
    heads = f"{'val loss':>10}{'teachers':>10}{'MLM loss':>10}{'pretrain':>10}{'finetune':>10}"
    print(f"{'candidate':{width}}{'splits':>8}{'weighted F1':>18}{'beyond shipped':>20}{heads}")
    for candidate, row in table.items():
        f1 = shown(row["mean"], row["std"], len(row["runs"]), decimals=4)
        difference = f"{row['difference']:+.4f}" if "difference" in row else ""
        if "difference_error" in row:
            difference += f" ± {row['difference_error']:.4f}"
        teachers, mlm_loss = (
            f"{row[name]:.4f}" if name in row else "" for name in ("teacher_val_weighted_f1", "mlm_loss")
        )
        print(
            f"{candidate:{width}}{len(row['runs']):8}{f1:>18}{difference:>20}"
            f"{row['val_loss']:10.4f}{teachers:>10}{mlm_loss:>10}"
            f"{row['pretrain_seconds']:8.0f} s{row['finetune_seconds']:8.0f} s"
        )


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("candidates", nargs="*", metavar='"KEY=VALUE ..."', help="changes in one argument")
    parser.add_argument("--splits", type=positive, default=3, help="of train and val, for each candidate")
    parser.add_argument("--jobs", type=positive, default=1, help="runs at the same time")
    parser.add_argument("--work", type=Path, help="keep all folders there, to go on from")
    add_overrides(parser, ", in all runs")
    args = parser.parse_args()
    corpus = read_archive(args.corpus)
    known = {"corpus": args.corpus.name, "sha256": sha256(args.corpus)}
    with tempfile.TemporaryDirectory() as scratch:
        candidates = read_candidates(args.candidates, args.overrides)
        trials = plan(candidates, args.splits, known["sha256"], args.work or Path(scratch))

        def report() -> None:
            write_result(args.json, known | summaries(trials))

        sweep(trials, corpus, args.jobs, report)
        print_table(summaries(trials))
        if unfinished := sum(not (trial.folders["finetuned"] / RECORD).exists() for trial in trials):
            sys.exit(f"unfinished runs: {unfinished} of {len(trials)}")


if __name__ == "__main__":
    run_main(main)
