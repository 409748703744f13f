"""The benchmarks that kill find what a kill has changed; here nothing is killed in earnest."""

import json
import subprocess
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import chaos
import chaos_experiments
import common
from receiptbert.base_trainer import BaseTrainer
from tests.benchmark_runs import run_benchmark
from tests.conftest import Cut
from tests.projects import STAGES, run_here, set_params


# A checkpoint comes every 60 seconds, or after 60 times what the last one took, if that is more.
@pytest.mark.parametrize(("different", "seconds", "overhead"), [(False, 0.6, 1 / 101), (True, 15, 1 / 61)])
def test_the_outputs_of_a_killed_stage_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, different: bool, seconds: float, overhead: float
) -> None:
    backward = BaseTrainer._backward
    runs: list[str] = []

    def run(stage: str, folder: Path, kill_after: float | None = None) -> bool:
        passes = []

        def count(trainer: Any, loss: Any) -> None:
            passes.append(loss)
            if kill_after is not None and len(passes) > 5:
                raise Cut
            backward(trainer, loss)

        with monkeypatch.context() as patch:
            patch.setattr(BaseTrainer, "_backward", count)
            with nullcontext() if kill_after is None else pytest.raises(Cut):
                run_here(STAGES[stage], folder)
        runs.append(stage)
        if different and stage == "finetune":
            (folder / "metrics/finetune.json").write_text(str(len(runs)))
        return kill_after is not None

    def seconds_of(work: Callable[[], object]) -> float:
        work()
        return seconds

    settings = ["model.size=tiny", "tokenizer.vocab_size=100", "runtime.checkpoint_seconds=60"]
    shipped = common.shipped_params(settings)
    monkeypatch.setattr(chaos, "shipped_params", lambda: shipped)
    monkeypatch.setattr(chaos, "_run", run)
    monkeypatch.setattr(chaos, "seconds_of", seconds_of)
    monkeypatch.setattr(
        chaos, "CORPUS", ["--unlabelled", "200", "--train", "200", "--val", "40", "--test", "20"]
    )
    monkeypatch.setattr("receiptbert.checkpoints.REST", 0)  # a checkpoint after each step
    options = ["--kills", "2", "-S", "pretrain.max_steps=10", "-S", "finetune.epochs=1"]
    with pytest.raises(SystemExit, match="some outputs differ") if different else nullcontext():
        run_benchmark("chaos", options, tmp_path)
    figures = json.loads((tmp_path / "result.json").read_text())
    assert (figures["kills"], figures["killed"], figures["resumed"]) == (2, 2, 2)
    assert figures["equal"] == (1 if different else 2)
    assert (figures["write_seconds"], figures["overhead"]) == pytest.approx((seconds, overhead), rel=1e-5)


def test_a_stage_is_killed_if_it_has_not_ended_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chaos, "stage_command", str.split)
    assert chaos._run("sleep 60", tmp_path, 0.1)
    assert not chaos._run("true", tmp_path, 60)
    with pytest.raises(SystemExit, match="false failed"):
        chaos._run("false", tmp_path)


class Dvc:
    """Stands in for git and DVC: an experiment changes params.yaml, whose bytes are what is reproduced."""

    def __init__(self, fault: str) -> None:
        self._fault = fault
        self.changes: list[str] = []

    def make_project(self, folder: Path, _corpus: object, settings: Sequence[str]) -> None:
        folder.mkdir()
        common.write_params(folder, settings)

    def run(self, command: list[str], folder: Path) -> str:
        if command[:3] == ["dvc", "exp", "run"]:
            self.changes.append(command[-1])
            key, value = command[-1].split("=")
            set_params(folder, {key: value})
        elif command == ["dvc", "repro"]:
            stale = self._fault == "bytes" and folder.name == "project"
            (folder / "metrics").mkdir(exist_ok=True)
            made = "stale" if stale else (folder / "params.yaml").read_text()
            (folder / "metrics/test.json").write_text(made)
            (folder / "dvc.lock").write_text("lock")
        elif command == ["dvc", "status"]:
            return "evaluate:\n changed" if self._fault == "status" else "Data and pipelines are up to date."
        elif command[:2] == ["git", "status"]:
            unexpected = " M src/x.py\n" if self._fault == "git" else ""
            return f" M params.yaml\n M metrics/test.json\n{unexpected}"
        return ""


@pytest.mark.parametrize("fault", ["", "bytes", "status", "git"])
def test_what_does_not_agree_after_experiments_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    dvc, killed = Dvc(fault), []

    def seconds_of(work: Callable[[], object]) -> float:
        work()
        return 9.0

    def kill(command: list[str], folder: Path, seconds: float) -> bool:
        assert 0 <= seconds <= 3
        dvc.run(command, folder)
        killed.append(command[-1])
        return True

    monkeypatch.setattr(chaos_experiments, "make_project", dvc.make_project)
    monkeypatch.setattr(chaos_experiments, "run", dvc.run)
    monkeypatch.setattr(chaos_experiments, "commit", lambda _: None)
    monkeypatch.setattr(chaos_experiments, "seconds_of", seconds_of)
    monkeypatch.setattr(chaos_experiments, "_killed", kill)
    monkeypatch.setattr(chaos_experiments, "_mended", lambda _: len(killed) == 1)
    with pytest.raises(SystemExit, match="does not agree with itself") if fault else nullcontext():
        run_benchmark("chaos_experiments", ["--experiments", "6"], tmp_path)
    figures = json.loads((tmp_path / "result.json").read_text())
    assert len(dvc.changes) == figures["experiments"] == 6
    assert (figures["killed"], figures["killed_while_dvc_wrote_its_files"]) == (len(killed), 1)
    assert 0 < len(killed) < 6
    assert (figures["equal"], figures["up_to_date"]) == (fault != "bytes", fault != "status")
    assert figures["unexpected_changes"] == ([" M src/x.py"] if fault == "git" else [])


def test_an_experiment_is_killed_if_it_is_not_done_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chaos_experiments._killed(["sleep", "60"], tmp_path, 0.1)
    assert not chaos_experiments._killed(["true"], tmp_path, 60)
    with pytest.raises(SystemExit, match="false failed before it was killed"):
        chaos_experiments._killed(["false"], tmp_path, 60)
    with subprocess.Popen(["sleep", "0.5"], cwd=tmp_path) as stage:
        chaos_experiments._wait_for_stages_in(tmp_path)
        assert stage.poll() == 0 or not Path(f"/proc/{stage.pid}/cwd").exists()
    monkeypatch.setattr(chaos_experiments, "STAGE_SECONDS", 0.1)
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path) as stage:
        try:
            with pytest.raises(SystemExit, match="outlived its DVC"):
                chaos_experiments._wait_for_stages_in(tmp_path)
        finally:
            stage.kill()


@pytest.mark.parametrize(("params", "status", "cut"), [("", 0, False), ("seed: [", 0, True), ("", 255, True)])
def test_what_dvc_left_half_written_comes_back_from_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: str, status: int, cut: bool
) -> None:
    common.write_params(tmp_path, [])
    with (tmp_path / "params.yaml").open("a") as file:
        file.write(params)
    commands: list[list[str]] = []
    monkeypatch.setattr(chaos_experiments, "run", lambda command, _: commands.append(command))
    done: Any = subprocess.CompletedProcess([], status)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert chaos_experiments._mended(tmp_path) == cut
    assert (["git", "checkout", "dvc.lock", "params.yaml"] in commands) == cut
