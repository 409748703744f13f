"""Change parameters at random with ``dvc exp run -S``, kill some runs, check that everything still agrees.

    python benchmarks/chaos_experiments.py --experiments 20 [--json OUT]

On a small corpus, each experiment changes one parameter of the work tree as the last one left it. Some are
killed (``kill -9`` of DVC, which takes its trainer along), and the next one goes on from there (if DVC died
while it wrote ``dvc.lock`` or ``params.yaml``, after the remedy in docs/training.md). In the end, after
``dvc repro``, ``dvc status`` must find nothing to do, ``git status`` must name only what README says, and
every output must have the bytes that a fresh project with these parameters gives.
"""

import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from common import argument_parser, positive, print_figures, run_main, write_result
from project import SMALL_CORPUS, SMALL_SETTINGS, commit, environment, make_project, outputs, run
from receiptbert.errors import UserError
from receiptbert.params_file import load_params
from receiptbert.progress import say
from timing import seconds_of

SETTINGS = [*SMALL_SETTINGS, "runtime.checkpoint_seconds=0"]
CHANGES = {
    "tokenizer.vocab_size": ["900", "1000"],
    "pretokenize.max_length_quantile": ["0.9", "0.995"],
    "pretrain.lr": ["3e-5", "5e-4", "1e-3"],
    "pretrain.epochs": ["1", "2", "3"],
    "pretrain.mask_prob": ["0.15", "0.25"],
    "finetune.lr": ["2e-4", "4e-4"],
    "finetune.epochs": ["1", "2"],
    "finetune.teachers": ["0", "1"],
    "finetune.init": ["pretrained", "scratch"],
}
MAY_CHANGE = ("params.yaml", "dvc.lock", "metrics/")
KILLED = 0.5  # share of the experiments, unless they end before
STAGE_SECONDS = 30  # that a stage may outlive its DVC


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__, corpus=False)
    parser.add_argument("--experiments", type=positive, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of changes, kills and moments")
    args = parser.parse_args()

    dice = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        project, fresh = Path(scratch) / "project", Path(scratch) / "fresh"
        make_project(project, SMALL_CORPUS, SETTINGS)
        seconds = seconds_of(lambda: run(["dvc", "repro"], project))
        commit(project)
        killed = cut = 0
        for number in range(args.experiments):
            key = dice.choice(sorted(CHANGES))
            change = f"{key}={dice.choice(CHANGES[key])}"
            dies = dice.random() < KILLED
            experiment = ["dvc", "exp", "run", "-S", change]
            if dies:  # not all stages rerun: a third of the time hits most
                killed += _killed(experiment, project, dice.uniform(0, seconds / 3))
                cut += _mended(project)
            else:
                run(experiment, project)
            say(f"{number + 1} of {args.experiments}: {change}{', killed' if dies else ''}")
        run(["dvc", "repro"], project)
        figures = {
            "experiments": args.experiments,
            "killed": killed,
            "killed_while_dvc_wrote_its_files": cut,
            "up_to_date": "up to date" in run(["dvc", "status"], project),
            "unexpected_changes": _unexpected(run(["git", "status", "--porcelain"], project)),
        }
        make_project(fresh, SMALL_CORPUS, SETTINGS)
        shutil.copy(project / "params.yaml", fresh)
        run(["dvc", "repro"], fresh)
        figures["equal"] = outputs(project) == outputs(fresh)
    print_figures(figures)
    write_result(args.json, figures)
    if not figures["up_to_date"] or figures["unexpected_changes"] or not figures["equal"]:
        sys.exit("the project does not agree with itself")


def _killed(command: list[str], folder: Path, seconds: float) -> bool:
    """Whether the command still ran after ``seconds``, and was killed."""
    silent = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=silent, stderr=silent)
    try:
        if process.wait(timeout=seconds):
            sys.exit(f"{' '.join(command)} failed before it was killed")
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        _wait_for_stages_in(folder)
        return True
    return False


def _wait_for_stages_in(folder: Path) -> None:
    """Wait until none is at work there: a stage ends with its DVC, a trainer once it has saved."""
    end = time.monotonic() + STAGE_SECONDS
    while _works_in(folder):
        if time.monotonic() > end:
            sys.exit(f"a stage outlived its DVC by {STAGE_SECONDS} s")
        time.sleep(0.1)


def _works_in(folder: Path) -> bool:
    """Whether a process is at work in ``folder`` (on Linux)."""
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):  # it has ended meanwhile, or is another user's
            if link.readlink() == folder.resolve():
                return True
    return False


def _mended(project: Path) -> bool:
    """Whether the kill cut ``dvc.lock`` or ``params.yaml``, which DVC writes in place; git has both.

    It may also have left a file of DVC's own in git's index.
    """
    run(["git", "reset", "-q"], project)
    status = subprocess.run(["dvc", "status"], cwd=project, env=environment(), capture_output=True)
    try:
        load_params(project / "params.yaml")
        cut = status.returncode != 0
    except UserError:
        cut = True
    if cut:
        run(["git", "checkout", "dvc.lock", "params.yaml"], project)
    return cut


def _unexpected(status: str) -> list[str]:
    """What ``git status --porcelain`` names besides parameters, lock and metrics."""
    return [line for line in status.splitlines() if not line[3:].startswith(MAY_CHANGE)]


if __name__ == "__main__":
    run_main(main)
