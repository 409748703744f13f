"""Commands that benchmarks run, generated corpora, and projects of their own in git and DVC."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from common import ROOT, write_params

# A pipeline of seconds: options of ``generate_corpus``, and settings.
SMALL_CORPUS = ["--unlabelled", "1000", "--train", "300", "--val", "60", "--test", "60"]
SMALL_SETTINGS = [
    "tokenizer.vocab_size=1000",
    "tokenizer.min_frequency=2",
    "model.hidden_size=16",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=2",
    "model.intermediate_size=32",
    "pretrain.epochs=2",
    "finetune.epochs=2",
    "finetune.min_steps=0",
    "runtime.device=cpu",
]


def make_project(
    folder: Path, corpus: Sequence[str], settings: Sequence[str], variables: dict[str, str] | None = None
) -> None:
    """The code and the pipeline in ``folder``, with a small corpus as ``data/corpus.zip``, in git and DVC.

    Args:
        folder: to create.
        corpus: options of ``generate_corpus``.
        settings: as for ``write_params``.
        variables: as for ``run``.
    """
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("dvc.yaml", ".dvcignore", ".gitattributes", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "data").mkdir()
    generate_corpus(folder / "data/corpus.zip", *corpus)
    write_params(folder, ["data.archive=data/corpus.zip", *settings])
    run(["git", "init", "-q"], folder, variables)
    run(["dvc", "init", "-q"], folder, variables)
    shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots")


def environment() -> dict[str, str]:
    """Variables with which a command finds this Python's programs first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"}


def run(command: Sequence[str], folder: Path, variables: dict[str, str] | None = None) -> str:
    """What a command prints, with more ``variables`` than those of ``environment``; it must succeed."""
    variables = environment() | (variables or {})
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def generate_corpus(archive: Path, *options: str) -> None:
    """Write a generated corpus; ``options`` are those of ``data/make_sample.py``."""
    run([sys.executable, str(ROOT / "data/make_sample.py"), archive.name, *options], archive.parent)


def commit(folder: Path, variables: dict[str, str] | None = None) -> None:
    """Commit all that git does not ignore in ``folder``; ``variables`` as for ``run``."""
    # Whatever the user's own settings: no signature, no hooks, nothing else ignored than by the project.
    settings = ["user.name=x", "user.email=x@x", "commit.gpgsign=false"]
    settings += ["core.excludesFile=/dev/null", "core.hooksPath=/dev/null"]
    git = ["git", *(word for setting in settings for word in ("-c", setting))]
    run([*git, "add", "-A"], folder, variables)
    run([*git, "commit", "-qm", "state"], folder, variables)


def outputs(project: Path) -> dict[str, bytes]:
    """The bytes of all outputs, metrics and the lock, by their paths in ``project``."""
    tops = ("data/raw", "data/tokenized", "models", "metrics")
    files = [path for top in tops for path in (project / top).rglob("*") if path.is_file()]
    return {str(path.relative_to(project)): path.read_bytes() for path in [*files, project / "dvc.lock"]}
