"""runs.py: stages in folders that are made once, several at the same time."""

import json
import time
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest

import runs
from receiptbert.errors import UserError


def test_a_folder_is_made_once_with_what_its_stages_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def pretend(stage: str, folder: Path, *_: Any, **_output: Any) -> int:
        ran.append(stage)
        assert (folder / "corpus.zip").read_text() == "corpus"
        assert (folder / "models/tokenizer/vocab").read_text() == "tokens"
        return int(len(ran) == 2)  # the second one fails, for once

    monkeypatch.setattr(runs, "run_stage", pretend)
    (tmp_path / "source").mkdir()
    (tmp_path / "source/vocab").write_text("tokens")

    def make() -> float:
        return runs.make(
            tmp_path / "folder",
            ["unzip", "pretokenize"],
            ["finetune.lr=3e-4"],
            corpus=lambda path: path.write_text("corpus"),
            links={"models/tokenizer": tmp_path / "source"},
        )

    with pytest.raises(UserError, match=r"^pretokenize ended with exit code 1$"):
        make()
    make()
    assert ran == ["unzip", "pretokenize"] * 2
    assert make() == json.loads((tmp_path / "folder" / runs.RECORD).read_text())["seconds"]
    assert len(ran) == 4
    settings = (tmp_path / "folder/params.yaml").read_text()
    assert "archive: corpus.zip" in settings
    assert "lr: 3e-4" in settings


def test_of_a_stage_that_fails_beside_others_the_end_of_the_log_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"^unzip ended with exit code 1$"):
        runs.make(tmp_path, ["unzip"], [], jobs=2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("log.txt:")
    assert lines[-1].startswith("  unzip: error: corpus.zip not found")


def test_what_a_stage_prints_is_shown_if_it_runs_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / runs.LOG).write_text("of a run beside others")
    with pytest.raises(UserError, match=r"^unzip ended with exit code 1$"):
        runs.make(tmp_path, ["unzip"], [])
    said = capfd.readouterr().err
    assert "unzip: error: " in said
    assert "of a run beside others" not in said


def test_results_come_as_tasks_end() -> None:
    second = Event()

    def wait() -> str:
        assert second.wait(60)
        return "first"

    found = runs.run_all([wait, lambda: "second"], 2)
    assert next(found) == "second"
    second.set()
    assert list(found) == ["first"]


def test_after_a_task_that_failed_none_begins() -> None:
    begun: list[int] = []

    def task(number: int) -> None:
        begun.append(number)
        if number == 1:
            raise UserError("no room")

    with pytest.raises(UserError, match="no room"):
        list(runs.run_all([partial(task, number) for number in range(9)], 1))
    assert begun == [0, 1]


def test_a_failure_is_told_though_other_tasks_are_called_off_before_it_is() -> None:
    stopped = Event()

    def fail() -> None:
        while not stopped.is_set():
            time.sleep(0.01)
        raise UserError("no room")

    with pytest.raises(UserError, match="no room"):
        list(runs.run_all([fail, stopped.set, *[lambda: None] * 9], 2, stopped))


def test_what_ends_early_because_another_failed_is_no_result() -> None:
    stopped = Event()

    def parts() -> list[int]:
        assert stopped.wait(60)
        return []  # of several

    def fail() -> None:
        raise UserError("no room")

    found = []
    with pytest.raises(UserError, match="no room"):
        found.extend(runs.run_all([parts, fail], 2, stopped))
    assert found == []


def test_a_digest_changes_with_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(**files: str) -> str:
        for folder, content in files.items():
            (tmp_path / folder / "package").mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / "package/linear.py").write_text(content)
            (tmp_path / folder / "linear.py").write_text("")
        runs._code.cache_clear()
        return runs.digest({})

    monkeypatch.setattr(runs, "ROOT", tmp_path)
    try:
        first = digest(src="a = 1", benchmarks="")
        assert digest(src="a = 2") != first
        assert digest(src="a = 1", benchmarks="b = 2") == first  # what only measures
    finally:
        runs._code.cache_clear()
