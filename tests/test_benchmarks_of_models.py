"""Benchmarks of a finetuned model: predict, onnx_runtime, wheel, parity, answers."""

import copy
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import answers
import common
import onnx_runtime
import parity
import predict
import wheel
from receiptbert import BertFinetuneModel, Classifier, WordpieceTokenizer, cli, precision
from receiptbert.corpus import label_list
from receiptbert.errors import UserError
from receiptbert.hf_format import save_pretrained
from receiptbert.metrics import f1
from receiptbert.onnx_export import CalibratedModel
from receiptbert.splits import LABEL, SPLIT, TEST
from tests.benchmark_runs import run_benchmark


@pytest.mark.parametrize("equal", [True, False])
def test_predict_compares_the_formats(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, equal: bool
) -> None:
    def measure(command: list[str], folder: Path, stdin: Path) -> dict[str, float]:
        monkeypatch.chdir(folder)
        with stdin.open(encoding="utf-8") as file:
            monkeypatch.setattr("sys.stdin", file)
            cli.main(command[3:])
        if not equal and "in.parquet" in command:
            (folder / "from_parquet.csv").write_text("other answers")
        return {"seconds": 1.0 if "bf16" in command else 2.0, "peak_gib": 0.5}

    monkeypatch.setattr(predict, "measure", measure)
    for module in (predict, precision):
        monkeypatch.setattr(module, "has_bf16", lambda _: True)
    options = ["--lines", "40", "--pipeline-lines", "7", "--model", str(checkpoint), "--device", "cpu"]
    with nullcontext() if equal else pytest.raises(SystemExit, match="the outputs differ"):
        run_benchmark("predict", options, tmp_path)
    figures = json.loads((tmp_path / "result.json").read_text())
    assert figures["lines"] == figures["distinct_lines"] == 40
    assert (figures["lines_per_second"], figures["peak_memory_mib"]) == (20, 512)
    assert figures["peak_memory_of_a_tenth_mib"] == 512
    assert figures["pipeline_ratio"] > 0
    assert figures["formats_equal"] == equal
    assert figures["labels_equal"]
    assert figures["bf16_ratio"] == 2
    assert figures["share_of_other_labels_in_bf16"] < 1


def test_onnx_runtime_beside_torch(
    archive: Path,
    tmp_path: Path,
    tokenizer: WordpieceTokenizer,
    finetune_model: Callable[..., BertFinetuneModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corpus = common.read_archive(archive)
    labels, rows = label_list(corpus), corpus[corpus[SPLIT] == TEST]
    model = finetune_model(num_classes=len(labels))
    save_pretrained(model, tokenizer, tmp_path / "model", labels)
    frequent = rows[LABEL].mode()[0]
    other = copy.deepcopy(model)  # in place of the quantized one; it gives all lines one class
    with torch.no_grad():
        other._classifier_head._output.bias[labels.index(frequent)] += 1000

    def pretend(_: Path, path: Path, int8: bool, texts: Sequence[str]) -> None:
        """Exporting takes seconds; test_onnx_export.py does it."""
        assert len(texts) == 60
        path.write_bytes(b"0" * (1_000_000 if int8 else 4_000_000))

    monkeypatch.setattr(onnx_runtime, "export_onnx", pretend)
    monkeypatch.setattr(
        onnx_runtime,
        "OnnxModel",
        lambda path: CalibratedModel(other if path.name == "onnx_int8.onnx" else model, 1.0),
    )
    options = ["--corpus", str(archive), "--model", str(tmp_path / "model"), "--rounds", "1"]
    figures = run_benchmark("onnx_runtime", options, tmp_path)
    by_torch, by_onnx, by_int8 = (figures[name] for name in ("torch", "onnx", "onnx_int8"))
    assert by_torch["same_labels"] == by_onnx["same_labels"] == 1 > by_int8["same_labels"]
    assert by_torch["largest_difference"] == by_onnx["largest_difference"] == 0
    assert by_int8["largest_difference"] > 0.5
    assert by_torch["weighted_f1"] == by_onnx["weighted_f1"] != by_int8["weighted_f1"]
    assert by_int8["weighted_f1"] == pytest.approx(f1(rows[LABEL], [frequent] * 60, "weighted"), rel=1e-4)
    assert by_onnx["megabytes"] == 4 * by_int8["megabytes"] == 4


def test_the_wheel_is_weighed_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pretend(command: list[str], folder: Path) -> str:
        if "wheel" in command:
            (folder / "receiptbert-0.whl").write_bytes(b"0" * 2048)
        sizes = {"receiptbert": 2, "numpy": 3, "torch": 100, "nvidia-cublas": 50, "pip": 20}
        return "".join(f"{name} {size * 2**20}\n" for name, size in sizes.items())

    monkeypatch.setattr(wheel, "run", pretend)
    monkeypatch.setattr(wheel, "load_classifier", lambda _: None)
    figures = run_benchmark("wheel", [], tmp_path)
    assert (figures["packages"], figures["installed_mib"], figures["wheel_kib"]) == (2, 5, 2)
    assert figures["command"] == "OMP_NUM_THREADS=1 python benchmarks/wheel.py --json result.json"


def test_parity_counts_the_labels_that_differ(
    archive: Path,
    tmp_path: Path,
    tokenizer: WordpieceTokenizer,
    finetune_model: Callable[..., BertFinetuneModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = label_list(common.read_archive(archive))
    names = [f"category {label}" for label in labels]
    model = finetune_model(num_classes=len(labels))
    save_pretrained(model, tokenizer, tmp_path / "model", names, labels)

    def pretend(folder: Path, texts: list[str]) -> list[str]:
        answers = [prediction.category for prediction in Classifier.from_pretrained(folder)(texts)]
        return ["another", *answers[1:]]

    monkeypatch.setattr(parity, "by_onnx", pretend)
    options = ["--corpus", str(archive), "--model", str(tmp_path / "model")]
    figures = run_benchmark("parity", options, tmp_path)
    counts = [figures[f"other_labels_from_{name}"] for name in ("predict", "pipeline", "onnx")]
    assert counts == [0, 0, 1]
    assert figures["rows"] == 60


@pytest.mark.parametrize("name", ["onnx_runtime", "parity"])
def test_a_model_of_another_corpus_is_refused(
    archive: Path,
    tmp_path: Path,
    tokenizer: WordpieceTokenizer,
    finetune_model: Callable[..., BertFinetuneModel],
    name: str,
) -> None:
    save_pretrained(finetune_model(), tokenizer, tmp_path / "model", ["а", "б", "в"])
    options = ["--corpus", str(archive), "--model", str(tmp_path / "model")]
    with pytest.raises(UserError, match=r"model has other classes than .*tiny\.zip"):
        run_benchmark(name, options, tmp_path)


def test_the_numbers_behind_the_answers(
    tmp_path: Path,
    texts: list[str],
    tokenizer: WordpieceTokenizer,
    finetune_model: Callable[..., BertFinetuneModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_pretrained(finetune_model(), tokenizer, tmp_path / "model", ["а", "б", "в"])
    rows = [f"{text},{i % 3},{split}" for split in ("train", "val", "test") for i, text in enumerate(texts)]
    (tmp_path / "data.csv").write_text("\n".join(["text,label,split", *rows, "а,,unsupervised"]))
    options = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "data.csv")]
    monkeypatch.setattr(answers, "PASSES", 1)
    figures = run_benchmark("answers", options, tmp_path)
    assert figures["rate_of_a_wide_projection"] > 0
    assert figures["not_scaled"]["largest_weight"] > figures["scaled"]["largest_weight"]
    for key in ("queries_with_a_weight_above_0.99", "queries_stuck"):
        found = [figures[name][key] for name in ("not_scaled", "scaled")]
        assert found == pytest.approx([0.34, 0], abs=0.002)  # as docs/answers.md says
    assert 0 < figures["share_of_lines_with_another_class_if_padding_is_not_masked"] <= 1
