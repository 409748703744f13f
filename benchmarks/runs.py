"""Stages of the pipeline, run in folders of their own as DVC would run them, several at the same time.

A folder is made once: what ``make`` has finished there has a record, so a benchmark that was cut off goes on
from it. A folder's name is to hold a ``digest`` of all that its contents depend on.
"""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from common import ROOT, STAGES, read_record, stage_command, stage_environment, write_params
from receiptbert.errors import UserError, printable
from receiptbert.reports import write_json

ARCHIVE, RECORD, LOG = "corpus.zip", "done.json", "log.txt"
LAST_LINES = 10  # of the log of a stage that failed
PRETRAINING, FINETUNING = STAGES[:4], STAGES[4:]

Result = TypeVar("Result")


def make(
    folder: Path,
    stages: Sequence[str],
    overrides: Sequence[str],
    *,
    corpus: Callable[[Path], object] | None = None,
    links: Mapping[str, Path] | None = None,
    jobs: int = 1,
) -> float:
    """Run ``stages`` in ``folder``, unless that has been done; return the seconds that they took.

    Args:
        overrides: as for ``write_params``.
        corpus: puts the archive at the path that it is given.
        links: what the stages read of other folders, by its path in this one.
        jobs: runs that share the cores; if there is no other, what the stages print is shown, else it goes to
            the folder's log.

    Raises:
        UserError: a stage failed.
    """
    record = folder / RECORD
    if not record.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_params(folder, [*overrides, f"data.archive={ARCHIVE}"])
        if corpus is not None:
            corpus(folder / ARCHIVE)
        for name, source in (links or {}).items():
            link(source, folder / name)
        start = time.perf_counter()
        for stage in stages:
            _run(stage, folder, jobs)
        write_json(record, {"seconds": time.perf_counter() - start})
    return read_record(record)["seconds"]


def link(source: Path, path: Path) -> None:
    """Make ``path`` a symbolic link to ``source``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # of a benchmark that was cut off, maybe before the folder was moved
    path.symlink_to(source.resolve())


def _run(stage: str, folder: Path, jobs: int) -> None:
    log = folder / LOG
    if jobs == 1:
        code = run_stage(stage, folder, jobs, stdout=sys.stderr)
    else:
        with log.open("ab") as file:
            code = run_stage(stage, folder, jobs, stdout=file, stderr=file)
    if code and jobs > 1:
        lines = log.read_text("utf-8", "replace").splitlines()[-LAST_LINES:]
        end = "".join(f"  {printable(line)}\n" for line in lines)
        sys.stderr.write(f"the end of {log}:\n{end}")  # at once: other runs tell of theirs meanwhile
    if code:
        raise UserError(f"{stage} ended with exit code {code}")


def run_stage(stage: str, folder: Path, jobs: int, **output: Any) -> int:
    """The exit code of the script of ``stage``; ``output`` as for ``subprocess.run``."""
    environment = stage_environment(stage, jobs)
    return subprocess.run(stage_command(stage), cwd=folder, env=environment, **output).returncode


def run_all(
    tasks: Sequence[Callable[[], Result]], jobs: int, stopped: Event | None = None
) -> Iterator[Result]:
    """Call ``tasks``, ``jobs`` at the same time; yield what they return, as they end.

    After one that failed, and after Ctrl-C, none is begun and nothing more is yielded; ``stopped`` is set
    then, for those that have begun and are of several parts: they may end before the next one.
    """
    stopped = stopped or Event()

    def unless_stopped(task: Callable[[], Result]) -> list[Result]:
        if stopped.is_set():
            return []
        try:
            result = task()
        except BaseException:
            stopped.set()  # before this thread takes the next task
            raise
        return [] if stopped.is_set() else [result]  # it may lack parts

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for future in as_completed([pool.submit(unless_stopped, task) for task in tasks]):
                yield from future.result()
        finally:  # of Ctrl-C, too, which comes to the main thread
            stopped.set()


def seeds(seed: int) -> list[str]:
    """The overrides that repeat a run with another seed."""
    return [f"pretrain.seed={seed}", f"finetune.seed={seed}"]


def refuse_overrides(overrides: Sequence[str], sections: Sequence[str]) -> None:
    """Let a user change no seed, and no setting of ``sections``.

    Raises:
        UserError: an override does.
    """
    for key in (override.partition("=")[0] for override in overrides):
        if key.partition(".")[0] in sections or key.endswith(".seed"):
            raise UserError(f"{key} is not to be changed here")


def digest(settings: Mapping[str, Any]) -> str:
    """Changes with any of ``settings``, and with the code of the stages and of the linear models."""
    return hashlib.sha256(json.dumps([settings, _code()]).encode()).hexdigest()[:16]


@cache
def _code() -> list[str]:
    """Kept: what runs later in this process shares folders with what ran before."""
    return [sha256(path) for path in (ROOT / "benchmarks/linear.py", *sorted((ROOT / "src").rglob("*.py")))]


def sha256(path: Path) -> str:
    """Of the file at ``path``."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
