"""What the machine refuses: no space, no permission, no memory, nobody who reads. One line, nothing lost."""

import errno
import io
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from receiptbert.params import Params
from receiptbert.progress import say
from receiptbert.tables import open_output
from tests.conftest import ROOT
from tests.projects import STAGES, contents, refusal, refuses, run_here


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond ``size`` bytes, as if the disk were full then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


OUTPUTS = {
    "unzip": ["data/raw", "metrics/data.json"],
    "train_tokenizer": ["models/tokenizer"],
    "pretokenize": ["data/tokenized", "metrics/tokens.json", "metrics/plots/lengths.csv"],
    "pretrain": ["models/pretrained", "metrics/pretrain.json", "metrics/plots/pretrain.csv"],
    "finetune": ["models/finetuned", "metrics/finetune.json", "metrics/plots/finetune.csv"],
    "evaluate": ["metrics/test.json", *(f"metrics/plots/{name}.csv" for name in ("confusion", "classes"))],
}


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_ends_a_stage_by_name_and_costs_nothing(project: Path, stage: str) -> None:
    done = contents(project)
    for output in OUTPUTS[stage]:  # as DVC removes them before it runs a stage
        remove(project / output)
    before = contents(project)
    # Each stage's largest output does not fit, by a byte; TensorBoard's log and the like do.
    lost = {name: len(content) for name, content in done.items() if name not in before}
    largest = max(lost, key=lost.__getitem__)
    with largest_file(lost[largest] - 1):
        line = refusal(STAGES[stage], project)
    assert re.fullmatch(rf"{stage}: error: .*{os.strerror(errno.EFBIG)}; raise the limit .*", line), line
    # The checkpoints of a training are larger still.
    assert Path(largest).parent.name in line or f".checkpoints/{stage}" in line
    assert not [name for name in contents(project) if name.endswith((".part", ".replaced"))]
    assert contents(project).items() >= before.items()
    assert largest not in contents(project)

    run_here(STAGES[stage], project)
    assert contents(project) == done


def test_a_full_disk_is_said_to_lack_room_for_the_answers(tmp_path: Path) -> None:
    out = tmp_path / "labelled.csv"
    with (
        pytest.raises(OSError, match="File too large") as caught,
        largest_file(9),
        open_output(out) as stream,
    ):
        stream.write(b"1234567890")
    assert caught.value.filename == str(out)
    assert not list(tmp_path.iterdir())


def test_a_log_that_does_not_fit_ends_a_training_in_one_line(project: Path) -> None:
    """TensorBoard writes it in a thread of its own."""
    command = ["bash", "-c", 'ulimit -f 0; exec "$0" "$1"', sys.executable, str(ROOT / "src/pretrain.py")]
    ended = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert re.search(r"^pretrain: error: .*File too large; raise the limit", ended.stderr, re.MULTILINE)


def test_a_file_where_a_folder_must_be(project: Path) -> None:
    shutil.rmtree(project / "metrics")
    (project / "metrics").write_text("")
    advice = "a file stands where a folder must be; move it away"
    refuses("unzip", project, f"metrics/data.json.part: Not a directory; {advice}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(project: Path) -> None:
    before = contents(project)
    (project / "models").chmod(0o555)
    advice = "change its permissions or owner, or run from a folder of your own"
    try:
        refuses("train_tokenizer", project, f"models/tokenizer.part: Permission denied; {advice}")
    finally:
        (project / "models").chmod(0o755)
    assert contents(project) == before


def test_a_traceback_is_there_for_who_asks(bare_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pretrain(_: Params) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    assert refusal(pretrain, bare_project).startswith("pretrain: error: out of memory (2.00")
    monkeypatch.setenv("RECEIPTBERT_DEBUG", "1")
    with pytest.raises(torch.OutOfMemoryError):
        run_here(pretrain, bare_project)


def test_a_closed_stdout_loses_nothing(tiny_project: Path, tmp_path: Path) -> None:
    for closed in ("| true", ">&-", "2>&-", "2>&1 | true"):
        folder = tmp_path / f"project {closed.replace('|', '')}"
        folder.mkdir()
        shutil.copytree(tiny_project / "data", folder / "data", ignore=shutil.ignore_patterns("raw"))
        shutil.copy(tiny_project / "params.yaml", folder)
        line = f'"$0" "$1" {closed}; echo ${{PIPESTATUS[0]}}'
        command = ["bash", "-c", line, sys.executable, str(ROOT / "src/unzip.py")]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        assert ran.stdout.splitlines()[-1] == "0", ran.stderr
        assert "Traceback" not in ran.stderr
        assert "Exception ignored" not in ran.stderr
        raw = (folder / "data/raw/data.csv").read_bytes()
        assert raw == (tiny_project / "data/raw/data.csv").read_bytes()


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def gone_terminal() -> int:
    terminal, of_stage = os.openpty()
    os.close(terminal)
    return of_stage


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("make", [full_disk, gone_terminal])
def test_a_log_that_cannot_be_written_fails_no_stage(
    bare_project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    make: Callable[[], int],
) -> None:
    def pretrain(_: Params) -> str:
        say("a step")
        (bare_project / "weights").write_text("whole")
        return "the summary"

    # Like Python's own two: stderr has no buffer, what is left in that of stdout is written at the exit.
    stream = os.fdopen(make(), "w") if name == "stdout" else io.TextIOWrapper(io.FileIO(make(), "w"))
    with stream:
        monkeypatch.setattr(sys, name, stream)
        run_here(pretrain, bare_project)
    assert (bare_project / "weights").read_text() == "whole"
    said = capsys.readouterr()
    if name == "stderr":
        assert said.out == "the summary\n"
    else:
        assert re.fullmatch(
            r"a step\npretrain: warning: cannot write to stdout \(.+\); the files are complete\n", said.err
        )


def test_ctrl_c_while_a_stage_is_loaded_leaves_no_traceback() -> None:
    program = "import pipeline, sys; sys.argv[0] = 'src/pretrain.py'; raise {}"
    for error, expected in (
        ("KeyboardInterrupt", r"pretrain: interrupted\n"),
        ("OSError", r"Traceback .*OSError\n"),
    ):
        ended = subprocess.run(
            [sys.executable, "-c", program.format(error)],
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
            check=False,
            capture_output=True,
            text=True,
        )
        assert re.fullmatch(expected, ended.stderr, re.DOTALL), ended.stderr
        assert ended.returncode == (-signal.SIGINT if error == "KeyboardInterrupt" else 1)
