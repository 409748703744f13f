"""Each benchmark runs and writes its figures; how fast anything is, is no matter for a test."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import make_sample
from receiptbert import BertFinetuneModel, WordpieceTokenizer
from receiptbert.hf_format import save_pretrained
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


def run_benchmark(name: str, options: list[str], folder: Path) -> dict[str, Any]:
    """The figures that the benchmark writes."""
    result = folder / "result.json"
    command = [sys.executable, str(ROOT / f"benchmarks/{name}.py"), "--json", str(result), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(result.read_text())
    return figures


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
    figures = run_benchmark(name, [*corpus, *options], tmp_path)
    assert figures.keys() >= KEYS[name] | {"command", "processor"}
    assert figures.get("labels_equal", True)


def test_the_numbers_behind_the_answers(
    tmp_path: Path,
    texts: list[str],
    tokenizer: WordpieceTokenizer,
    finetune_model: Callable[..., BertFinetuneModel],
) -> None:
    save_pretrained(finetune_model(), tokenizer, tmp_path / "model", ["а", "б", "в"])
    rows = [f"{text},{i % 3},{split}" for split in ("train", "val", "test") for i, text in enumerate(texts)]
    (tmp_path / "data.csv").write_text("\n".join(["text,label,split", *rows]))
    options = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "data.csv")]
    figures = run_benchmark("answers", options, tmp_path)
    assert figures["not_scaled"]["largest_weight"] > figures["scaled"]["largest_weight"]
    assert 0 < figures["lines_with_another_class_if_padding_is_not_masked"] <= 1
    # The published formulas: (V + P + 2) d + 2d, 4 (4d^2 + 6d), 4 (8d^2 + 7d).
    parameters = figures["parameters"]
    assert parameters["embeddings"] == (30_000 + 24 + 2 + 2) * 256
    assert parameters["attention"] == 4 * (4 * 256**2 + 6 * 256)
    assert parameters["feed_forward"] == 4 * (8 * 256**2 + 7 * 256)
