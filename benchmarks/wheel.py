"""The wheel in an empty environment: its size, how long its import and its first prediction take.

    python benchmarks/wheel.py [--model FOLDER] [--json OUT]

Builds the wheel, makes an environment, and installs the wheel there with its dependencies, torch among them:
some minutes and, temporarily, gigabytes. ``installed_mib`` counts all packages but torch, what it brings
for GPUs, pip and setuptools. Times are the medians of five fresh processes.
"""

import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from common import ROOT, argument_parser, print_figures, run_main, write_result
from project import run
from receiptbert.progress import say
from receiptbert.saved_classifier import load_classifier
from timing import seconds_of

ROUNDS = 5
# Bytes of the packages of an environment, by name; run by its own Python.
SIZES = """
from importlib.metadata import distributions
for package in distributions():
    paths = [file.locate() for file in package.files or []]
    print(package.name, sum(path.stat().st_size for path in paths if path.exists()))
"""
PREDICT = """
import sys
from receiptbert import Classifier
print(Classifier.from_pretrained(sys.argv[1])(["МОЛОКО 3,2% 1Л"])[0].confidence)
"""
NOT_OURS = ("torch", "nvidia", "cuda", "triton", "pip", "setuptools")  # beginnings of names


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__, corpus=False, model=True)
    args = parser.parse_args()
    load_classifier(args.model)  # a bad one is told before minutes of work
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say("building the wheel")
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, folder)
        # From a copy: a build leaves its modules in the tree, and later wheels have those that are gone, too.
        shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("*.egg-info"))
        run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "."], folder)
        (wheel,) = folder.glob("*.whl")
        run([sys.executable, "-m", "venv", "environment"], folder)
        python = str(folder / "environment/bin/python")
        say("installing it")
        run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel.name], folder)
        # Not from the root of the project, whose modules would be found first.
        sizes = dict(line.split() for line in run([python, "-c", SIZES], folder).splitlines())
        ours = {package: int(size) for package, size in sizes.items() if not package.startswith(NOT_OURS)}
        figures = {
            "wheel_kib": wheel.stat().st_size / 2**10,
            "packages": len(ours),
            "installed_mib": sum(ours.values()) / 2**20,
            "python_seconds": median_seconds([python, "-c", "pass"], folder),
            "import_seconds": median_seconds([python, "-c", "import receiptbert"], folder),
            "first_prediction_seconds": median_seconds(
                [python, "-c", PREDICT, str(args.model.resolve())], folder
            ),
        }
    print_figures(figures)
    write_result(args.json, figures)


def median_seconds(command: list[str], folder: Path) -> float:
    """Median seconds that a fresh process takes, its start and its end included."""
    return statistics.median(seconds_of(lambda: run(command, folder)) for _ in range(ROUNDS))


if __name__ == "__main__":
    run_main(main)
