"""Runs of benchmarks, in the process of the test."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

import make_sample
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("corpus") / "tiny.zip"
    sizes = ["--unlabelled", "300", "--train", "300", "--val", "40", "--test", "60"]
    make_sample.main([str(path), *sizes])
    return path


def run_benchmark(name: str, options: list[str], folder: Path) -> dict[str, Any]:
    """The figures that the benchmark writes. It runs in this process, which has loaded what it takes."""
    result = folder / "result.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [str(ROOT / f"benchmarks/{name}.py"), "--json", str(result), *options])
        patch.setenv("OMP_NUM_THREADS", "1")
        importlib.import_module(name).main()
    figures: dict[str, Any] = json.loads(result.read_text())
    return figures


def pretend_scores(folder: Path, f1: float) -> None:
    """Leave in ``folder`` what a run of the stages leaves."""
    for name in ("metrics", "models/finetuned"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "metrics/test.json").write_text(json.dumps({"weighted_f1": f1, "macro_f1": 0.4, "ece": 0.02}))
    (folder / "metrics/finetune.json").write_text('{"val_weighted_f1": 0.6}')
    (folder / "models/finetuned/model.safetensors").write_bytes(b"0" * 2_000_000)
