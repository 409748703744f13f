"""Each benchmark runs and writes its figures; how fast anything is, is no matter for a test."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import make_sample
from tests.conftest import ROOT

QUICK = ["--rounds", "1", "--size", "tiny", "--device", "cpu"]
KEYS = {
    "svm": {"C", "val_weighted_f1", "test_weighted_f1"},
    "tokenization": {"pretokenize_vs_encode_batch_fast", "pretokenize_vs_loop"},
    "throughput": {
        "pretrain_vs_trainer_same_precision",
        "pretrain_vs_trainer_defaults",
        "pretrain_share_of_floor",
        "finetune_vs_trainer_same_precision",
        "finetune_vs_trainer_defaults",
    },
    "inference": {"predict_vs_pipeline_same_precision", "predict_vs_pipeline_defaults", "labels_equal"},
    "scale": {"stages"},
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("corpus") / "tiny.zip"
    sizes = ["--unlabelled", "300", "--train", "300", "--val", "40", "--test", "60"]
    make_sample.main([str(path), *sizes])
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("svm", []),
        ("tokenization", ["--rounds", "1"]),
        ("throughput", [*QUICK, "--seconds", "0", "--batch-size", "8", "--finetune-batch-size", "8"]),
        ("inference", [*QUICK, "--lines", "50"]),
        ("scale", ["--lines", "100"]),
    ],
)
def test_a_benchmark_writes_its_figures(archive: Path, tmp_path: Path, name: str, options: list[str]) -> None:
    corpus = [] if name == "scale" else ["--corpus", str(archive)]
    result = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / f"benchmarks/{name}.py"), *corpus, "--json", str(result), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    figures = json.loads(result.read_text())
    assert figures.keys() >= KEYS[name] | {"command", "processor"}
    assert figures.get("labels_equal", True)
