"""The files that a training goes on from: whole or not there, and found by the same training alone."""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from receiptbert.checkpoints import Checkpoints, State, _code, conditions, training_fingerprint
from receiptbert.errors import UserError
from receiptbert.params_file import load_params
from tests.conftest import ROOT, Cut
from tests.projects import STAGES, run_here


def state(value: float) -> State:
    return State({"weights": torch.full((4,), value)}, {"step": value, "epochs": [{"f1": 0.5}]})


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[Checkpoints]:
    with Checkpoints(tmp_path / "stage", "a", seconds=60) as made:
        yield made


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_the_newest_state_comes_back(checkpoints: Checkpoints, tmp_path: Path) -> None:
    assert checkpoints.load() is None
    for step in (1, 2, 10):
        checkpoints.save(step, state(step))
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded.tensors["weights"].tolist() == [10.0] * 4
    assert loaded.values == state(10).values
    assert len(files(tmp_path)) == 2
    checkpoints.remove()
    assert checkpoints.load() is None
    assert files(tmp_path) == []


def test_nothing_of_a_checkpoint_stays_open(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """On NFS its folder could not be removed at the end: the client keeps there what is still mapped."""
    checkpoints.save(1, state(1))
    loaded = checkpoints.load()
    assert loaded is not None
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    checkpoints: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    for step in (1, 2):
        checkpoints.save(step, state(step))
    newest = files(tmp_path)[-1]
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
    newest.write_bytes({"cut": content[:-1], "flip": content, "empty": b""}[damage])
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded.values["step"] == 1
    assert f"{newest} was damaged and has been removed" in capsys.readouterr().err
    checkpoints.save(3, state(3))
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded.values["step"] == 3


def test_checkpoints_may_be_removed_before_the_training_begins(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """A teacher trains for long between the start of a stage and that of the final model's training."""
    shutil.rmtree(tmp_path / "stage")
    assert checkpoints.load() is None
    checkpoints.save(1, state(1.0))
    assert checkpoints.load() is not None


def test_damaged_checkpoints_do_not_outlive_new_ones(checkpoints: Checkpoints, tmp_path: Path) -> None:
    for step in (8, 9):
        checkpoints.save(step, state(step))
    for path in files(tmp_path):
        path.write_bytes(b"")
    assert checkpoints.load() is None
    checkpoints.save(1, state(1))
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded.values["step"] == 1


def test_a_write_that_fails_leaves_the_last_checkpoint(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.save(1, state(1))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(2, state(2))
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded.values["step"] == 1
    assert not list(tmp_path.rglob("*.part"))


def test_what_a_killed_write_left_is_removed(checkpoints: Checkpoints, tmp_path: Path) -> None:
    left = tmp_path / "stage/a/step-000000001-0123456789abcdef.safetensors.part"
    left.parent.mkdir()
    left.write_text("half")
    checkpoints.save(2, state(2))
    assert not left.exists()
    left.write_text("half")
    checkpoints.remove()
    assert not left.parent.exists()


def test_with_other_code_there_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, found = tmp_path / "file", []
    monkeypatch.setattr("receiptbert.checkpoints._code", lambda: [file])
    for content in ("as it was", "as it was", "changed"):
        file.write_text(content)
        with Checkpoints(tmp_path / "stage", training_fingerprint(["a"], []), 60) as checkpoints:
            found.append(checkpoints.load() is not None)
            checkpoints.save(1, state(1))
    assert found == [False, True, False]


def test_the_code_that_a_checkpoint_depends_on_is_that_of_the_project() -> None:
    source = ROOT / "src"
    assert {source / "receiptbert/checkpoints.py", source / "pretrain.py"} <= set(_code())
    assert all(file.is_relative_to(source) for file in _code())


def test_a_training_removes_its_own_checkpoints_alone(tmp_path: Path) -> None:
    for fingerprint in ("a", "b"):
        with Checkpoints(tmp_path / "stage", fingerprint, 60) as checkpoints:
            checkpoints.save(1, state(1))
    checkpoints.remove()
    with Checkpoints(tmp_path / "stage", "a", 60) as checkpoints:
        assert checkpoints.load() is not None


def test_another_trainer_is_refused_by_name(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "pretrain", "a", 60):
        with pytest.raises(UserError, match="another pretrain is training"), make_other(tmp_path):
            pass
        with Checkpoints(tmp_path / "finetune", "a", 60):
            pass
    with make_other(tmp_path):
        pass


def make_other(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "pretrain", "b", 60)


def test_only_the_same_parameters_inputs_and_names_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text("a")
    first = training_fingerprint(["x"], [tmp_path / "in"])
    assert training_fingerprint(["x"], [tmp_path / "in"]) == first
    assert training_fingerprint(["y"], [tmp_path / "in"]) != first
    (tmp_path / "in/a.txt").write_text("b")
    assert training_fingerprint(["x"], [tmp_path / "in"]) != first
    (tmp_path / "in/a.txt").write_text("a")
    (tmp_path / "in/a.txt").rename(tmp_path / "in/b.txt")
    assert training_fingerprint(["x"], [tmp_path / "in"]) != first
    (tmp_path / "in/b.txt").rename(tmp_path / "in" / os.fsdecode(b"\xe9"))
    assert training_fingerprint(["x"], [tmp_path / "in"]) != first
    (tmp_path / "in" / os.fsdecode(b"\xe9")).rename(tmp_path / "in/a.txt")
    (tmp_path / "in/deeper").mkdir()
    (tmp_path / "in/deeper/c.txt").write_text("c")
    assert training_fingerprint(["x"], [tmp_path / "in"]) != first

    with Checkpoints(tmp_path / "stage", "x", 60) as one:
        one.save(1, state(1))
    with Checkpoints(tmp_path / "stage", "y", 60) as other:
        assert other.load() is None
    assert "1 other" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_checkpoints_depend_on_what_their_stage_depends_on(
    tiny_project: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def compare(parameters: Sequence[object], inputs: Iterable[Path]) -> str:
        spec = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
        params = load_params(Path("params.yaml"))
        sections = [name for name in spec["params"] if "." not in name]
        assert list(parameters) == [getattr(params, section) for section in sections]
        assert sorted(map(str, inputs)) == sorted(dep for dep in spec["deps"] if not dep.startswith("src/"))
        return "of these"

    def find(_: Path, fingerprint: str, __: float) -> Checkpoints:
        assert fingerprint == "of these"
        raise Cut

    monkeypatch.setattr(f"{stage}.training_fingerprint", compare)
    monkeypatch.setattr(f"{stage}.Checkpoints", find)
    with pytest.raises(Cut):
        run_here(STAGES[stage], tiny_project)


def test_conditions_are_what_decides_the_last_bits() -> None:
    now = conditions(torch.device("cpu"), "fp32", "torch")
    assert now == {
        "device": "cpu",
        "precision": "fp32",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    assert conditions(torch.device("cpu"), "bf16", "torch").keys() == now.keys()
    assert conditions(torch.device("cpu"), "fp16", "torch")["amp_backend"] == "torch"


def test_checkpoints_rest_between_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    checkpoints = Checkpoints(tmp_path, "x", seconds=10)
    now = 5.0
    checkpoints.load()  # here the training begins
    now = 10.0
    assert not checkpoints.due
    now = 15.0
    assert checkpoints.due

    def take_a_second(*_: Any, **__: Any) -> bytes:
        nonlocal now
        now += 1.0
        return b""

    monkeypatch.setattr("receiptbert.checkpoints.save", take_a_second)
    checkpoints.save(1, state(1))
    now = 16.0 + 59.0
    assert not checkpoints.due
    now = 16.0 + 60.0
    assert checkpoints.due
