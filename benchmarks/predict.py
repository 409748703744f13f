"""``receiptbert predict`` on many generated lines: rate, peak memory, and the same output from every format.

    python benchmarks/predict.py --lines 1000000 [--json OUT]

The command runs as a user would run it, from a cold start, on a CSV, on a Parquet file, and on plain lines
from stdin; the three outputs must be the same bytes. It runs on the first tenth of the CSV too: memory that
grows with the lines would show; and where the hardware has bf16, once more in bf16. For comparison,
``transformers.pipeline`` at its defaults, one line at a time, is timed on a few of the lines, half of them
before and half of them after, without its start-up. The lines are those of the sample's generator, no two
alike: nothing is gained by computing equal ones once.
"""

import argparse
import csv
import filecmp
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from pyarrow import parquet
from transformers import pipeline

from common import argument_parser, positive, print_figures, run_main, write_result
from project import generate_corpus
from receiptbert.archive import DATA_NAME, extract_corpus
from receiptbert.devices import choose_device
from receiptbert.precision import has_bf16
from receiptbert.progress import say
from receiptbert.saved_classifier import load_classifier
from timing import measure


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__, corpus=False, model=True)
    parser.add_argument("--lines", type=positive, default=1_000_000)
    parser.add_argument(
        "--pipeline-lines", type=positive, default=2_000, help="lines that the pipeline is timed on"
    )
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()

    device = choose_device(args.device, key="--device")
    load_classifier(args.model)  # says in one line what is wrong with it
    say(f"generating {args.lines:,} lines")
    lines = _generate(args.lines)
    few = lines[: args.pipeline_lines]
    torch.backends.cuda.enable_cudnn_sdp(True)  # torch's default; ``choose_device`` turns it off
    classify = pipeline("text-classification", str(args.model), device=device, truncation=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_inputs(lines, folder)
        _write_inputs(lines[: len(lines) // 10], folder / "tenth")
        half = len(few) // 2
        before = _timed(classify, few[:half])
        tenth = _predict("csv", folder / "tenth", args)
        in_bf16 = _compare_bf16(folder / "tenth", args, tenth) if has_bf16(device) else {}
        # "from csv": how the table is read; it is always written as CSV.
        runs = {kind: _predict(kind, folder, args) for kind in ("csv", "parquet", "txt")}
        after = _timed(classify, few[half:])
        same = all(
            filecmp.cmp(folder / "from_csv.csv", folder / f"from_{kind}.csv", shallow=False) for kind in runs
        )
        ours = _labels(folder / "from_csv.csv", len(few))

    rate = args.lines / runs["csv"]["seconds"]
    pipeline_rate = len(few) / (before["seconds"] + after["seconds"])
    figures = {
        "lines": args.lines,
        "distinct_lines": len(set(lines)),
        "seconds": runs["csv"]["seconds"],
        "lines_per_second": rate,
        "peak_memory_mib": max(run["peak_gib"] for run in runs.values()) * 1024,
        "peak_memory_of_a_tenth_mib": tenth["peak_gib"] * 1024,
        "pipeline_lines_per_second": pipeline_rate,
        "pipeline_ratio": rate / pipeline_rate,
        "labels_equal": ours == before["labels"] + after["labels"],
        "formats_equal": same,
    } | in_bf16
    print_figures(figures)
    write_result(args.json, figures)
    if not (figures["formats_equal"] and figures["labels_equal"]):
        sys.exit("the outputs differ")


def _generate(count: int) -> list[str]:
    sizes = ["--unlabelled", str(count), "--train", "0", "--val", "0", "--test", "0"]
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "lines.zip"
        generate_corpus(archive, *sizes, "--seed", "1")
        extract_corpus(archive, Path(folder))
        with (Path(folder) / DATA_NAME).open(encoding="utf-8", newline="") as file:
            return [row["text"] for row in csv.DictReader(file)]


def _write_inputs(lines: list[str], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / "in.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["text"], *([line] for line in lines)])
    (folder / "in.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    parquet.write_table(pa.table({"text": lines}), folder / "in.parquet")


def _predict(kind: str, folder: Path, args: argparse.Namespace, *options: str) -> dict[str, float]:
    """Seconds and peak memory of the command; it writes ``from_<kind>.csv``, or what ``options`` name."""
    say(f"receiptbert predict from {kind} {' '.join(options)}")
    source = "-" if kind == "txt" else f"in.{kind}"  # plain lines come from stdin
    usual = ["--model", str(args.model.resolve()), "--device", args.device, "-o", f"from_{kind}.csv"]
    command = [sys.executable, "-m", "receiptbert", "predict", source, *usual, *options]
    return measure(command, folder, stdin=folder / "in.txt")


def _compare_bf16(folder: Path, args: argparse.Namespace, in_fp32: dict[str, float]) -> dict[str, float]:
    """How many times faster bf16 is than fp32, start included, and the share of lines with another label."""
    seconds = _predict("csv", folder, args, "--precision", "bf16", "-o", "in_bf16.csv")["seconds"]
    labels, in_bf16 = (_labels(folder / name) for name in ("from_csv.csv", "in_bf16.csv"))
    other = sum(a != b for a, b in zip(labels, in_bf16, strict=True))
    return {
        "bf16_ratio": in_fp32["seconds"] / seconds,
        "share_of_other_labels_in_bf16": other / max(len(labels), 1),
    }


def _labels(path: Path, count: int | None = None) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row["category"] for row in islice(csv.DictReader(file), count)]


def _timed(classify: Any, lines: list[str]) -> dict[str, Any]:
    start = time.perf_counter()
    labels = [answer["label"] for answer in classify(lines)]
    return {"seconds": time.perf_counter() - start, "labels": labels}


if __name__ == "__main__":
    run_main(main)
