"""A tiny run of the whole pipeline through the real ``dvc``."""

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import pytest
import yaml
from dvc.cli import main as dvc
from filelock import FileLock, Timeout

import evaluate
import finetune
from project import commit, make_project
from tests import projects
from tests.conftest import ROOT, log
from tests.projects import TINY, contents, logged, metric, run_here, set_params

STAGES = list(projects.STAGES)
DVC_YAML = yaml.safe_load((ROOT / "dvc.yaml").read_text())


PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
# A shell that stays between DVC and a stage if it can, as where SHELL is not set (cron, containers). A second
# thread costs so small a model more time than it saves.
ENVIRONMENT = os.environ | {
    "PATH": PATH,
    "SHELL": "/bin/sh",
    "OMP_NUM_THREADS": "1",
}


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=ENVIRONMENT)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


def dvc_here(command: list[str], cwd: Path, capfd: pytest.CaptureFixture[str], succeeds: bool = True) -> str:
    """What a command of DVC's that runs no stage says; in this process, which has loaded what it takes."""
    capfd.readouterr()
    # What DVC logs goes to stdout as it was when DVC was imported.
    with contextlib.chdir(cwd), warnings.catch_warnings(), log("dvc", logging.INFO) as heard:
        warnings.simplefilter("ignore")
        assert (dvc(command) == 0) == succeeds
    return "".join([*capfd.readouterr(), heard.getvalue()])


def stages_run(output: str) -> list[str]:
    return re.findall(r"Running stage '(\w+)'", output)


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A copy of the project with a tiny corpus and model, reproduced once and committed."""
    folder = tmp_path_factory.mktemp("project") / "project"
    sizes = ["--unlabelled", "300", "--train", "300", "--val", "40", "--test", "60"]
    settings = [f"{key}={value}" for key, value in TINY.items() if key != "data.archive"]
    make_project(folder, sizes, settings)
    commit(folder)
    ran = stages_run(run(["dvc", "repro"], folder).stdout)
    commit(folder)
    return folder, ran


@pytest.fixture
def project(reproduced: tuple[Path, list[str]], tmp_path: Path) -> Path:
    """A copy of the reproduced project, cache included, for one test to change."""
    shutil.copytree(reproduced[0], tmp_path / "project", symlinks=True)
    return tmp_path / "project"


def test_all_stages_run_once_and_leave_nothing_to_commit(
    reproduced: tuple[Path, list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    folder, ran = reproduced
    assert ran == STAGES
    assert not stages_run(dvc_here(["repro"], folder, capfd))
    assert run(["git", "status", "--porcelain"], folder).stdout == ""
    assert metric(folder, "test")["rows"] == 60
    assert metric(folder, "data")["rows"] == {"train": 300, "val": 40, "test": 60, "unsupervised": 300}
    assert metric(folder, "pretrain")["steps"] > 0
    config = json.loads((folder / "models/finetuned/config.json").read_text())
    temperature = metric(folder, "finetune")["temperature"]
    assert config["softmax_temperature"] == temperature
    assert f"the temperature {temperature:g}," in (folder / "metrics/MODEL_CARD.md").read_text()


def test_every_plot_data_is_drawn_once(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dvc_here(["plots", "show"], project, capfd)
    drawings = [
        line for line in (project / "dvc_plots/index.html").read_text().splitlines() if "spec =" in line
    ]
    of_stages = [plot for stage in DVC_YAML["stages"].values() for plot in stage.get("plots", [])]
    assert len(drawings) == len(of_stages) + len(DVC_YAML["plots"])
    assert not any("DVC_METRIC" in drawing for drawing in drawings)  # a place in a template left unfilled
    drawn = {path: settings for plot in of_stages for path, settings in plot.items()}
    assert drawn.keys() == {str(path.relative_to(project)) for path in (project / "metrics/plots").iterdir()}
    curves = json.loads((ROOT / ".dvc/plots/curves.json").read_text())["transform"][0]["fold"]
    for path, settings in drawn.items():
        columns = (project / path).read_text().splitlines()[0].split(",")
        assert {settings["x"], settings["y"]} <= set(columns)
        if settings["template"] == "curves":
            assert len(set(columns) & set(curves)) == 2


def test_same_inputs_give_the_same_bytes(project: Path) -> None:
    """In a process whose hashes of strings, and so the order of sets, are others."""

    def made() -> dict[str, bytes]:
        tops = ("data/raw/", "data/tokenized/", "models/", "metrics/")
        return {name: content for name, content in contents(project).items() if name.startswith(tops)}

    before = made()
    for output in ("data/raw", "data/tokenized", "models", "metrics"):
        shutil.rmtree(project / output)
    for stage in projects.STAGES.values():
        run_here(stage, project)
    assert made() == before
    assert run(["git", "status", "--porcelain"], project).stdout == ""


def test_only_what_uses_a_change_runs_again(project: Path) -> None:
    # New archive bytes around the same CSV: unzip alone. A comment in a module: the stages that import it.
    with zipfile.ZipFile(project / "data/corpus.zip") as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(project / "data/corpus.zip", "w") as new:
        for name, content in members.items():
            new.writestr(f"other_folder/{name}", content)
    with (project / "src/receiptbert/evaluation.py").open("a") as module:
        module.write("# a comment\n")
    assert stages_run(run(["dvc", "repro"], project).stdout) == ["unzip", "evaluate"]


def test_a_damaged_output_is_restored_and_one_stage_can_be_forced(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As the messages on damaged outputs advise, and docs/troubleshooting.md for a checkpoint of yours."""
    outputs = [project / "data/tokenized/lengths.json", project / "models/finetuned/config.json"]
    before = [path.read_bytes() for path in outputs]
    for path in outputs:
        path.write_text("{")
    assert not stages_run(dvc_here(["repro"], project, capfd))
    assert [path.read_bytes() for path in outputs] == before
    assert stages_run(run(["dvc", "repro", "-s", "-f", "finetune"], project).stdout) == ["finetune"]


def test_an_experiment_trains_with_its_number_and_nothing_is_computed_again(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = run(["dvc", "exp", "run", "-S", "finetune.lr=3e-5"], project).stdout
    assert stages_run(output) == ["finetune", "evaluate"]
    newest = max((project / "runs/finetune").iterdir())
    assert max(logged(newest)["lr"].values()) == pytest.approx(3e-5)
    assert "finetune.lr" in dvc_here(["params", "diff"], project, capfd)
    differences = dvc_here(["metrics", "diff"], project, capfd).splitlines()
    (row,) = (line for line in differences if "val_loss" in line)
    path, _, before, after, _ = row.split()
    assert path == "metrics/finetune.json"
    assert float(before) != float(after)

    lock = (project / "dvc.lock").read_text()
    (project / "dvc.lock").write_text(lock[: lock.rindex("path:") + len("path:")])  # cut by a kill
    assert "dvc.lock" in dvc_here(["status"], project, capfd, succeeds=False)
    run(["git", "checkout", "-q", "dvc.lock"], project)
    assert stages_run(run(["dvc", "repro"], project).stdout) == ["evaluate"]  # the rest from the run cache
    assert (project / "dvc.lock").read_text() == lock


def test_an_experiment_may_run_in_a_tree_of_its_own(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As those of the queue do, which is DVC's and not tested here."""
    before = contents(project / "metrics")
    ran = run(["dvc", "exp", "run", "--temp", "-n", "other", "-S", "finetune.lr=1e-1"], project).stdout
    assert stages_run(ran) == ["finetune", "evaluate"]
    assert contents(project / "metrics") == before
    shown = json.loads(run(["dvc", "exp", "show", "--json"], project).stdout)
    (metrics,) = (
        {name: values["data"] for name, values in revision["data"]["metrics"].items()}
        for row in shown
        for experiment in row.get("experiments") or []
        for revision in experiment["revs"]
    )
    assert metrics["metrics/finetune.json"]["val_loss"] != metric(project, "finetune")["val_loss"]
    dvc_here(["exp", "apply", "other"], project, capfd)
    assert metrics["metrics/finetune.json"]["val_loss"] == metric(project, "finetune")["val_loss"]
    assert not stages_run(dvc_here(["repro"], project, capfd))


def test_git_does_not_merge_the_lock_files_of_two_runs(project: Path) -> None:
    """Merged line by line, one run's outputs would seem to be those of another's code."""
    paths = [project / "dvc.lock", project / "metrics/plots/pretrain.csv"]
    before = {path: path.read_text().splitlines() for path in paths}

    def change(line: int) -> None:
        for path, lines in before.items():
            changed = lines.copy()
            changed[line] += " "
            path.write_text("\n".join(changed) + "\n")
        commit(project)

    run(["git", "checkout", "-q", "-b", "theirs"], project)
    change(0)
    run(["git", "checkout", "-q", "-"], project)
    change(-1)
    merge = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "merge", "theirs"]
    assert subprocess.run(merge, cwd=project, capture_output=True).returncode == 1
    conflicts = run(["git", "diff", "--name-only", "--diff-filter=U"], project).stdout.splitlines()
    assert conflicts == [str(path.relative_to(project)) for path in paths]
    for path, lines in before.items():
        assert path.read_text().splitlines() == [*lines[:-1], f"{lines[-1]} "]


def test_other_beginnings_of_finetuning(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From scratch, and from a checkpoint elsewhere that has a vocabulary of its own."""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast  # noqa: PLC0415

    foreign = project / "foreign"
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"абвгдежзиклмн",
        *(f"##{c}" for c in "абвгдеиклмно"),
    ]
    foreign.mkdir()
    (foreign / "words.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab=str(foreign / "words.txt")).save_pretrained(foreign)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=40,
    )
    BertForMaskedLM(config).save_pretrained(foreign)
    for init in ("scratch", "foreign"):
        set_params(project, {"finetune.init": init, "finetune.teachers": "1"})
        run_here(finetune.finetune, project)
        warned = (
            "of the tokens of train are unknown to the model from finetune.init" in capsys.readouterr().err
        )
        assert warned == (init == "foreign")  # whose vocabulary lacks half of the letters
        run_here(evaluate.evaluate, project)
        config = json.loads((project / "models/finetuned/config.json").read_text())
        assert config["vocab_size"] == (700 if init == "scratch" else len(vocabulary))
        assert config["corpus_labels"] == [str(number) for number in range(96)]
        assert config["id2label"]["0"] == "Молоко"


def newest_checkpoint(project: Path) -> Path | None:
    return max((project / ".checkpoints/pretrain").rglob("*.safetensors"), default=None)


def wait_for_checkpoint_after(project: Path, last: Path | None) -> None:
    end = time.monotonic() + 120
    while newest_checkpoint(project) in (None, last):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_killed_dvc_takes_its_trainer_along_and_the_next_one_goes_on(project: Path) -> None:
    set_params(project, {"pretrain.epochs": "100000", "pretrain.max_steps": "100000"})
    set_params(project, {"runtime.checkpoint_seconds": "0"})
    lock = project / ".checkpoints/pretrain.lock"

    with subprocess.Popen(["dvc", "repro", "pretrain"], cwd=project, env=ENVIRONMENT) as killed:
        try:
            wait_for_checkpoint_after(project, None)
            with pytest.raises(Timeout):
                FileLock(lock).acquire(timeout=0)
        finally:
            killed.kill()
    with FileLock(lock, timeout=120):  # the trainer has ended
        last = newest_checkpoint(project)

    command = [sys.executable, "src/pretrain.py"]
    with subprocess.Popen(command, cwd=project, stderr=subprocess.PIPE, text=True) as trainer:
        try:
            wait_for_checkpoint_after(project, last)
            trainer.terminate()
            _, errors = trainer.communicate(timeout=120)
        finally:
            trainer.kill()
    assert trainer.returncode == 128 + signal.SIGTERM
    assert "resumed after step" in errors
    assert errors.splitlines()[-1].startswith("SIGTERM: stopped after step")
