"""``receiptbert predict`` that is ended: by an error, a signal, or nobody who reads."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from receiptbert import Classifier
from receiptbert.errors import UserError
from receiptbert.failures import explain
from tests.conftest import ROOT
from tests.predict_runs import Run, files, write


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError("x"), OSError(28, "No space left on device")])
def test_a_run_that_fails_leaves_what_was_there(
    run: Run,
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Any,
) -> None:
    write("in.csv", texts)
    Path("out.csv").write_text("earlier")
    classify, calls = Classifier.__call__, []

    def fail_later(self: Classifier, lines: list[str], top_k: int) -> Any:
        calls.append(files())
        if len(calls) == 3:
            raise error
        return classify(self, lines, top_k)

    monkeypatch.setattr(Classifier, "__call__", fail_later)
    with pytest.raises(SystemExit) as end:
        run("in.csv", "-o", "out.csv")
    assert end.value.code == (130 if error is KeyboardInterrupt else f"receiptbert: error: {explain(error)}")
    assert ("receiptbert: interrupted" in capsys.readouterr().err) == (error is KeyboardInterrupt)
    assert calls[-1] == [f".out.csv.{os.getpid()}.part", "in.csv", "out.csv"]
    assert Path("out.csv").read_text() == "earlier"
    assert files() == ["in.csv", "out.csv"]


def test_with_stderr_closed_ctrl_c_says_nothing_among_the_answers(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    write("in.csv", ["а"])
    monkeypatch.setattr(Classifier, "__call__", interrupt)
    monkeypatch.setattr("sys.stderr", None)
    with pytest.raises(SystemExit) as end:
        run("in.csv")
    assert end.value.code == 130
    assert "interrupted" not in capfd.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_kill_ends_it_as_a_kill_does(
    run: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    write("in.csv", ["а"])
    monkeypatch.setattr(Classifier, "__call__", lambda *_, **__: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as end:
        run("in.csv", "-o", "out.csv")
    assert end.value.code == 128 + number
    assert files() == ["in.csv"]


def test_a_signal_that_is_ignored_does_not_end_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As SIGHUP is under nohup."""
    classify = Classifier.__call__

    def closed_terminal(classifier: Classifier, *arguments: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGHUP)
        return classify(classifier, *arguments, **kwargs)

    write("in.csv", ["а"])
    monkeypatch.setattr(Classifier, "__call__", closed_terminal)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run("in.csv", "-o", "out.csv")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert files() == ["in.csv", "out.csv"]


def test_debugging_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECEIPTBERT_DEBUG", "1")
    with pytest.raises(UserError, match="not found"):
        run("none.csv")


def test_a_closed_pipe_is_the_end_and_no_error(
    run: Run, texts: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write("in.csv", texts)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        with pytest.raises(SystemExit) as end:
            run("in.csv")
    assert end.value.code == 141
    assert not capfd.readouterr().err


def test_a_full_stdout_ends_it_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("чай\n")
    command = [sys.executable, "-m", "receiptbert", "predict", "in.txt", "--model", str(checkpoint)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 1
    line = ended.stderr.splitlines()[-1]  # a slow machine says before how far it is
    assert line.startswith("receiptbert: error: No space left on device")
    assert "Traceback" not in ended.stderr


def test_so_it_does_if_only_the_version_was_asked_for() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "receiptbert", "--version"]
        ended = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("receiptbert: error: No space left on device")
    assert len(ended.stderr.splitlines()) == 1
