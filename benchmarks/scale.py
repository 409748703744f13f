"""Wall time and peak memory of each stage at 30 thousand, 300 thousand and 3 million lines, and their growth.

    python benchmarks/scale.py [-S KEY=VALUE] [--json OUT]

The lines come from the generator of the sample. Pretraining takes a fixed number of steps, finetuning one
epoch of each teacher and of the final model over a fixed number of labelled lines, so these two show what
the corpus alone costs them; so does evaluation, over a fixed number of lines. Growth is the time of the
largest corpus in times of the smallest; a stage whose time grows as fast as the data has the growth of the
lines.
"""

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from common import (
    STAGES,
    add_overrides,
    argument_parser,
    cores,
    positive,
    run_main,
    stage_command,
    write_params,
    write_result,
)
from project import generate_corpus
from receiptbert.progress import say
from timing import measure

Figures = dict[str, dict[str, dict[str, float]]]  # number of lines -> stage -> what `measure` found


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__, corpus=False)
    parser.add_argument("--lines", type=positive, nargs="+", default=[30_000, 300_000, 3_000_000])
    parser.add_argument("--steps", type=positive, default=50, help="of pretraining")
    parser.add_argument(
        "--train", type=positive, default=500, help="labelled lines, as many of val and of test"
    )
    add_overrides(parser)
    args = parser.parse_args()

    figures: Figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {lines: Path(scratch) / str(lines) for lines in args.lines}
        say("generating the lines")
        with ThreadPoolExecutor(cores()) as threads:  # each waits for a process
            list(threads.map(partial(_generate, labelled=args.train), folders, folders.values()))
        for lines, folder in folders.items():
            figures[str(lines)] = _run_stages(folder, [f"pretrain.max_steps={args.steps}", *args.overrides])
            # Now: more lines may not fit into memory.
            write_result(args.json, {"stages": figures, "growth": growth(figures)})
    grown = growth(figures)
    print(f"{'stage':16}" + "".join(f"{lines:>14,} lines" + " " * 10 for lines in args.lines) + "growth")
    for stage in STAGES:
        cells = (figures[str(lines)][stage] for lines in args.lines)
        print(
            f"{stage:16}"
            + "".join(f"{cell['seconds']:12.1f} s {cell['peak_gib']:11.2f} GiB" for cell in cells)
            + f"{grown[stage]:6.1f}"
        )
    print(f"{'lines':16}" + " " * 30 * len(args.lines) + f"{grown['lines']:6.1f}")


def growth(figures: Figures) -> dict[str, float]:
    """How many times as many lines the largest corpus has as the smallest, and as many seconds each stage."""
    sizes = sorted(figures, key=int)
    first, last = figures[sizes[0]], figures[sizes[-1]]
    seconds = {stage: last[stage]["seconds"] / first[stage]["seconds"] for stage in STAGES}
    return {"lines": int(sizes[-1]) / int(sizes[0]), **seconds}


def _generate(unlabelled: int, folder: Path, labelled: int) -> None:
    """Create ``folder`` with a corpus of so many lines, ``labelled`` in each of train, val and test."""
    folder.mkdir()
    counts = {"unlabelled": unlabelled, "train": labelled, "val": labelled, "test": labelled}
    options = (option for name, count in counts.items() for option in (f"--{name}", str(count)))
    generate_corpus(folder / "corpus.zip", *options)


def _run_stages(folder: Path, settings: Sequence[str]) -> dict[str, dict[str, float]]:
    """Run each stage's script on the corpus in ``folder``, as DVC would."""
    one_pass = ["finetune.epochs=1", "finetune.min_steps=0"]
    write_params(folder, ["data.archive=corpus.zip", *one_pass, *settings])
    return {stage: measure(stage_command(stage), folder) for stage in STAGES}


if __name__ == "__main__":
    run_main(main)
