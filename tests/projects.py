"""Projects: folders with a params.yaml, in which stages run; what goes into them, and what comes out."""

import contextlib
import itertools
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import finetune
import make_sample
import pipeline
import pretokenize
import pretrain
import train_tokenizer
import unzip
from receiptbert.params import Params
from tests.conftest import SETTINGS

Stage = Callable[[Params], str | None]

CSV = "text,label,split\nmilk,1,train\nrye bread,2,train\ntea,2,val\nsoap,1,test\nkvass,,unsupervised\n"


# A pipeline of seconds.
TINY = {
    "data.archive": "data/tiny.zip",
    "tokenizer.vocab_size": "700",
    "tokenizer.min_frequency": "2",
    "model.hidden_size": "8",
    "model.num_hidden_layers": "1",
    "model.num_attention_heads": "2",
    "model.intermediate_size": "16",
    "pretrain.epochs": "1",
    "finetune.epochs": "1",
    "finetune.min_steps": "0",
    "finetune.teachers": "0",
    "pretrain.precision": "fp32",  # whatever the processor has
    "finetune.precision": "fp32",
    "runtime.device": "cpu",
}


STAGES = {
    stage.__name__: stage
    for stage in (
        unzip.unzip,
        train_tokenizer.train_tokenizer,
        pretokenize.pretokenize,
        pretrain.pretrain,
        finetune.finetune,
        evaluate.evaluate,
    )
}


def with_value(params_yaml: str, key: str, value: str) -> str:
    """``params.yaml`` with another value for ``key`` (``finetune.lr``, say), comments of other lines kept."""
    section, name = key.split(".")
    lines = params_yaml.splitlines()
    start = lines.index(next(line for line in lines if line.startswith(f"{section}:")))
    place = next(i for i in range(start, len(lines)) if lines[i].startswith(f"  {name}:"))
    lines[place] = f"  {name}: {value}"
    return "\n".join(lines) + "\n"


def set_params(folder: Path, values: dict[str, str]) -> None:
    """Change values in params.yaml as a person would, line by line."""
    path = folder / "params.yaml"
    for key, value in values.items():
        path.write_text(with_value(path.read_text(), key, value))


def run_here(stage: Stage, folder: Path) -> None:
    """Run a stage as DVC would in ``folder``, but in this process, which has torch loaded already."""
    with contextlib.chdir(folder), mock.patch("sys.argv", [f"{stage.__name__}.py"]):
        pipeline.run_stage(stage)


def contents(folder: Path) -> dict[str, bytes]:
    """Every output's bytes; the logs in runs/ are none."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "runs" not in path.relative_to(folder).parts
    }


def refusal(stage: Stage, folder: Path) -> str:
    """The line with which a stage must end."""
    with pytest.raises(SystemExit) as ended:
        run_here(stage, folder)
    line = str(ended.value.code)
    assert line.startswith(f"{stage.__name__}: error: ")
    assert line.isprintable()
    return line


def matches(expected: str, line: str) -> bool:
    """Whether ``line`` is ``expected``, in which … stands for anything."""
    pattern = ".*".join(map(re.escape, expected.split("…")))
    return re.fullmatch(pattern, line) is not None


def refuses(stage: str, folder: Path, expected: str) -> None:
    """A stage must end with this line, in which … stands for anything."""
    line = refusal(STAGES[stage], folder)
    assert matches(f"{stage}: error: {expected}", line), line


def make_zip(path: Path, members: dict[str, str | bytes]) -> Path:
    """A zip with files of these names and contents."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return path


def metric(folder: Path, name: str) -> Any:
    """The figures in one of a project's metrics."""
    return json.loads((folder / f"metrics/{name}.json").read_text())


def logged(run: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows of a run: the value of each curve at each step, none of which comes twice."""
    events = EventAccumulator(str(run))
    events.Reload()
    curves = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    for name, curve in curves.items():
        assert all(one.step < other.step for one, other in itertools.pairwise(curve)), name
    return {name: {event.step: event.value for event in curve} for name, curve in curves.items()}


@pytest.fixture(scope="session")
def tiny_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all stages have run on a tiny corpus; tests copy it before they change anything."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "data").mkdir()
    sizes = ["--unlabelled", "100", "--train", "100", "--val", "20", "--test", "20"]
    make_sample.main([str(folder / "data/tiny.zip"), *sizes])
    shutil.copy(SETTINGS, folder / "params.yaml")
    set_params(folder, TINY)
    for stage in STAGES.values():
        run_here(stage, folder)
    return folder


@pytest.fixture
def project(tiny_project: Path, tmp_path: Path) -> Path:
    """A copy of the tiny project for one test to change."""
    # Without the folders of runs, which are named by the second.
    return Path(shutil.copytree(tiny_project, tmp_path / "project", ignore=shutil.ignore_patterns("runs")))


@pytest.fixture
def bare_project(tmp_path: Path) -> Path:
    """A folder with nothing but params.yaml, which names ``in.zip``."""
    (tmp_path / "params.yaml").write_text(with_value(SETTINGS.read_text(), "data.archive", "in.zip"))
    return tmp_path
