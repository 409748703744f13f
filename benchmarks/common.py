"""What the benchmarks share: options, settings, a corpus, and how results are written."""

import argparse
import csv
import math
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import pandas as pd
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from receiptbert import cli
from receiptbert.archive import DATA_NAME, extract_corpus
from receiptbert.corpus import label_list, read_corpus
from receiptbert.equal_texts import held_out_too, number_texts
from receiptbert.errors import UserError, one_line_errors, printable
from receiptbert.failures import explain
from receiptbert.json_files import read_json_object
from receiptbert.params import Params, TokenizerParams
from receiptbert.params_file import load_params
from receiptbert.reports import write_json
from receiptbert.saved_classifier import SavedClassifier, load_classifier
from receiptbert.splits import SPLIT, TEXT, TRAIN, UNSUPERVISED
from receiptbert.tokenization import WordpieceTokenizer
from timing import Rates

ROOT = Path(__file__).parents[1]
PARAMS = ROOT / "params.yaml"
STAGES = ["unzip", "train_tokenizer", "pretokenize", "pretrain", "finetune", "evaluate"]
# What x86 processors multiply matrices with, as Linux names it; the speed of training follows from it.
MATRIX_UNITS = ["avx2", "avx512f", "avx512_bf16", "amx_bf16"]


def argument_parser(doc: str, *, corpus: bool = True, model: bool = False) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have, or all that read a ``corpus`` or a ``model``."""
    parser = argparse.ArgumentParser(
        description=doc.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    if corpus:
        parser.add_argument("--corpus", type=Path, default=ROOT / "data/sample.zip", help="a zip as in data/")
    if model:
        model_help = "a folder with a finetuned model"
        parser.add_argument("--model", type=Path, default=ROOT / "models/finetuned", help=model_help)
    parser.add_argument("--json", type=writable_file, help="write the figures there")
    return parser


def writable_file(name: str) -> Path:
    """The type of an option that names a file to write: hours of work must not end for want of it."""
    path = Path(name)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{name} cannot be written; name a file in a folder that is yours")
    return path


def positive(text: str) -> int:
    """The type of an option that is a positive integer, which may count millions of lines."""
    return cli.positive(text, digits=9)


def seconds(text: str) -> float:
    """The type of an option that is a time above 0."""
    value = float(text)  # what is no number, argparse refuses
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return value


def some_of(known: Collection[str], listed: str) -> list[str]:
    """The type, for its ``known`` names, of an option that lists some of them, separated by commas."""
    names = list(dict.fromkeys(listed.split(",")))
    unknown = [name for name in names if name not in known]
    if unknown:  # argparse turns it into an error of the parser
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
    return names


def run_main(main: Callable[[], None]) -> None:
    """Run a benchmark; bad input ends it with one line, as it does a stage."""
    _commit()  # hours later another commit may be checked out
    with one_line_errors(Path(sys.argv[0]).name, explain):
        main()


def add_overrides(parser: argparse.ArgumentParser, what: str = "") -> None:
    """``-S``, for ``write_params``; ``what`` extends its help."""
    text = f"as dvc exp run -S{what}"
    parser.add_argument("-S", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help=text)


def shipped_params(overrides: Sequence[str] = ()) -> Params:
    """The settings of ``params.yaml``, with ``overrides`` as for ``write_params``."""
    with tempfile.TemporaryDirectory() as scratch:
        write_params(Path(scratch), overrides)
        return load_params(Path(scratch) / "params.yaml")


def stage_command(stage: str) -> list[str]:
    """What DVC runs for ``stage``, to be run from any folder."""
    return [sys.executable, str(ROOT / f"src/{stage}.py")]


def stage_environment(stage: str, jobs: int = 1) -> dict[str, str]:
    """Variables for one of ``jobs`` stages that run at the same time: each has its share of the cores."""
    share = {"OMP_NUM_THREADS": str(max(1, cores() // jobs))} if jobs > 1 else {}
    # As DVC sets it: a stage that has it ends when we are killed.
    return share | os.environ | {"DVC_STAGE": stage}


def cores() -> int:
    """Cores that may be used."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_params(folder: Path, overrides: Sequence[str]) -> None:
    """Write the shipped parameters into ``folder``, changed as ``dvc exp run -S section.key=value`` would.

    Raises:
        UserError: there is no such setting, or its value cannot be read.
    """
    yaml = YAML()
    params = yaml.load(PARAMS)
    for override in overrides:
        key, _, value = override.partition("=")
        section, _, name = key.partition(".")
        if name not in params.get(section, {}):
            raise UserError(f"{override!r}: no such setting in params.yaml; write section.key=value")
        try:
            params[section][name] = yaml.load(value)
        except YAMLError:
            raise UserError(f"{override!r}: the value is not valid YAML; mend or quote it") from None
    yaml.dump(params, folder / "params.yaml")


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def shown(mean: float, std: float, number: int, decimals: int = 3) -> str:
    """The mean of so many values, and their deviation if there are several."""
    return f"{mean:.{decimals}f}" + (f" ± {std:.{decimals}f}" if number > 1 else "")


# For a pipeline beside models that learn from `read_archive`.
AS_READ = ["data.train_on_held_out_texts=false"]


def read_archive(archive: Path) -> pd.DataFrame:
    """The rows of a corpus zip that the pipeline uses: not those of ``held_out_too``."""
    if not archive.exists():
        raise UserError(f"{archive} not found; name a zip with your CSV")
    with tempfile.TemporaryDirectory() as scratch:
        member = extract_corpus(archive, Path(scratch))[DATA_NAME]
        corpus = read_corpus(Path(scratch) / DATA_NAME, f"{archive}: {member}")
    return corpus[~held_out_too(corpus, number_texts(corpus[TEXT]))]


def write_archive(corpus: pd.DataFrame, path: Path) -> None:
    """``corpus`` as a zip that the pipeline reads."""
    # All fields quoted, so that line breaks within texts come back as they were.
    text = corpus.to_csv(index=False, quoting=csv.QUOTE_ALL, lineterminator="\n")
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        archive.writestr(DATA_NAME, text)


def read_record(path: Path) -> dict[str, Any]:
    """Read what a benchmark wrote by ``write_json``.

    Raises:
        UserError: it is damaged.
    """
    return read_json_object(path, "remove it; what it records is then made anew")


def load_classifier_of(corpus: pd.DataFrame, args: argparse.Namespace) -> SavedClassifier:
    """The model in ``args.model``, finetuned on ``corpus``.

    Raises:
        UserError: there is none, or it has other classes.
    """
    saved = load_classifier(args.model)
    if saved.labels != label_list(corpus):
        raise UserError(f"{args.model} has other classes than {args.corpus}")
    return saved


def tokenizer_texts(corpus: pd.DataFrame) -> list[str]:
    """What the pipeline would train a tokenizer on."""
    return list(corpus.loc[corpus[SPLIT].isin([UNSUPERVISED, TRAIN]), TEXT])


def train_tokenizer(corpus: pd.DataFrame, settings: TokenizerParams) -> WordpieceTokenizer:
    """The tokenizer that the pipeline would train."""
    with tempfile.TemporaryDirectory() as scratch:
        return WordpieceTokenizer.from_corpus(
            tokenizer_texts(corpus),
            Path(scratch) / "corpus.txt",
            scratch,
            "benchmark",
            settings.vocab_size,
            settings.min_frequency,
        )


def print_figures(figures: Mapping[str, object]) -> None:
    """Print a line for each figure."""
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:{width}}  {_written(value)}")


def _written(figure: object) -> str:
    if isinstance(figure, Mapping):
        return ", ".join(f"{name} {_written(value)}" for name, value in figure.items())
    if isinstance(figure, float) and abs(figure) < 1000:
        return f"{figure:.4g}"
    return f"{figure:,.0f}" if type(figure) in (int, float) else str(figure)


def write_result(
    path: Path | None, figures: Mapping[str, object], rates: Mapping[str, Rates] | None = None
) -> None:
    """Write figures, rates (of each round, and medians) and ``provenance`` as JSON; nothing if ``path`` is
    None."""
    if path is None:
        return
    if rates:
        medians = {name: statistics.median(values) for name, values in rates.items()}
        figures = {**figures, "medians": medians, "rounds": dict(rates)}
    result = {**figures, **provenance()}
    # A name of a corpus may hold bytes that are not UTF-8.
    names = {key: printable(value) for key, value in result.items() if isinstance(value, str)}
    write_json(path, result | names, lambda value: float(f"{value:.6g}"))


def provenance() -> dict[str, str]:
    """Where figures come from: the command, the processor, versions, and in a git tree the commit."""
    commit = {"commit": name} if (name := _commit()) else {}
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers"))
    return {"command": _this_command(), "processor": _processor(), "versions": versions, **commit}


@cache
def _commit() -> str:
    """The commit checked out, ``-dirty`` if tracked files other than results differ; empty without git."""

    def git(*arguments: str) -> str:
        return subprocess.check_output(
            ["git", "-C", str(ROOT), *arguments], stderr=subprocess.DEVNULL, text=True
        ).strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ":!benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _this_command() -> str:
    """What was typed, without the folders of absolute paths, which mean nothing elsewhere.

    The number of threads decides the speed, and last bits.
    """
    threads = [f"OMP_NUM_THREADS={number}"] if (number := os.environ.get("OMP_NUM_THREADS")) else []
    script = f"benchmarks/{Path(sys.argv[0]).name}"
    # A path may also follow an equals sign, as in --corpus=PATH and -S finetune.init=PATH.
    arguments = [re.sub(r"(^|=)/(?:.*/)?", r"\1", value) for value in sys.argv[1:]]
    return shlex.join([*threads, "python", script, *arguments])


def _processor() -> str:
    """The kind of processor, what it multiplies matrices with, how many cores of it may be used, the GPUs."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    facts = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in lines if ":" in line)
    name = facts.get("model name") or platform.processor() or platform.machine()
    # Two kinds that differ in these train at other speeds, and a virtual machine gives both one name.
    units = [unit for unit in MATRIX_UNITS if unit in facts.get("flags", "").split()]
    return ", ".join([name, *units, f"{cores()} cores", *_gpus()])


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True)
    return done.stdout.splitlines() if done.returncode == 0 else []
