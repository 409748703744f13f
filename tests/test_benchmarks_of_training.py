"""Benchmarks of stages and trainings: throughput, scale, epoch, apex_check, sizes, memory, half_precision."""

import argparse
import json
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import apex_check
import common
import half_precision
import memory
import ours
import runs
import scale
import sizes
import throughput
from setting import Setting, Stopwatch, Task, read_setting
from tests.benchmark_runs import run_benchmark
from tests.projects import STAGES, run_here


def setting_of(archive: Path, **options: Any) -> Setting:
    """What a benchmark reads, on a CPU."""
    usual = {"corpus": archive, "overrides": [], "size": "tiny", "vocab_size": None, "device": "cpu"}
    return read_setting(argparse.Namespace(**usual | options), "fp32")


def test_the_watch_counts_tokens_and_seconds_from_when_it_is_warm(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = setting_of(archive)
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    watch = Stopwatch(setting, Task(batch_size=2, seconds=3.0, warm_up=1.0))
    padding = setting.tokenizer.pad_token_id
    batch = torch.tensor([[9, 9, padding], [9, 9, 9]])
    ended = []
    for now in (0.5, 1.5, 2.5, 4.5, 5.0, 5.5):  # noqa: B007  read by the clock
        watch.saw(batch)
        ended.append(watch.step())
    assert ended == [False] * 5 + [True]  # four steps after 1.5
    assert watch.rate() == 4 * 5 / 4


def test_operations_are_those_of_the_plan(archive: Path) -> None:
    setting = setting_of(archive, overrides=["pretrain.letters_only=false"])  # the other contestants mask all
    length = 7
    same = setting.unlabelled.take(setting.unlabelled.lengths == length)
    setting = replace(setting, unlabelled=same, train=same)
    plan = setting.pretraining().plan
    finetuning = replace(plan, num_classes=setting.num_classes, target_share=0.0)
    for stage, planned in (("pretrain", plan), ("finetune", finetuning)):
        assert throughput.operations(setting, stage) == pytest.approx(planned.operations_per_token)


def test_berts_share_of_masked_tokens_needs_fewer_operations(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = setting_of(archive)
    monkeypatch.setattr(ours, "pretrain", lambda setting, _: throughput.operations(setting, "pretrain"))
    as_bert = throughput.pretrain_as_bert(setting, Task(batch_size=2, seconds=1.0, warm_up=1.0))
    # The Trainer's operations depend on no share, so beside it ours has nothing but this to gain.
    expected = setting_of(archive, overrides=["pretrain.mask_prob=0.15"])
    assert expected.params.pretrain.mask_prob != setting.params.pretrain.mask_prob
    same_texts = replace(expected, unlabelled=setting.unlabelled)
    assert (
        as_bert == throughput.operations(same_texts, "pretrain") < throughput.operations(setting, "pretrain")
    )


def test_the_size_sets_what_is_auto_and_the_user_has_the_last_word(archive: Path) -> None:
    for overrides, expected in (([], 0.1), (["pretrain.dropout=0.3"], 0.3)):
        assert setting_of(archive, overrides=overrides, size="base").params.pretrain.dropout == expected


def test_a_vocabulary_larger_than_the_corpus_fills_changes_no_text(archive: Path) -> None:
    small, large = setting_of(archive), setting_of(archive, vocab_size=9_000)
    assert small.shape.vocab_size == small.tokenizer.vocab_size < 9_000
    assert large.shape.vocab_size == large.tokenizer.vocab_size == 9_000
    assert (large.unlabelled.ids == small.unlabelled.ids).all()
    assert large.tokenizer.special_token_ids == small.tokenizer.special_token_ids


def test_scale_measures_each_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(command: list[str], folder: Path) -> dict[str, float]:
        run_here(STAGES[Path(command[1]).stem], folder)
        measured.append(command[1])
        return {"seconds": 2.0 if len(measured) <= len(common.STAGES) else 3.0, "peak_gib": 0.5}

    measured: list[str] = []
    monkeypatch.setattr(scale, "measure", measure)
    settings = ["model.size=tiny", "finetune.teachers=0", "runtime.device=cpu"]
    options = [
        "--lines",
        "100",
        "150",
        "--train",
        "200",
        "--steps",
        "5",
        *(f"-S{setting}" for setting in settings),
    ]
    figures = run_benchmark("scale", options, tmp_path)
    assert list(figures["stages"]["100"]) == common.STAGES
    assert all(cell == {"seconds": 2.0, "peak_gib": 0.5} for cell in figures["stages"]["100"].values())
    assert figures["growth"] == dict.fromkeys(["lines", *common.STAGES], 1.5)


def test_scale_keeps_what_it_measured_before_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: object) -> dict[str, float]:
        if len(measured) == len(common.STAGES):
            sys.exit("unzip failed")
        measured.append(1)
        return {"seconds": 2.0, "peak_gib": 0.5}

    measured: list[int] = []
    monkeypatch.setattr(scale, "measure", measure)
    with pytest.raises(SystemExit, match="unzip failed"):
        run_benchmark("scale", ["--lines", "100", "110", "--train", "200"], tmp_path)
    assert list(json.loads((tmp_path / "result.json").read_text())["stages"]) == ["100"]


def test_an_epoch_over_generated_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(stage: str, folder: Path, *_: Any, **_output: Any) -> int:
        prepared.append(folder.name)
        run_here(STAGES[stage], folder)
        return 0

    prepared: list[str] = []
    monkeypatch.setattr(runs, "run_stage", here)
    settings = ["model.size=tiny", "tokenizer.vocab_size=500", "runtime.device=cpu"]
    options = ["--lines", "400", "--batch-size", "50", *(f"-S{setting}" for setting in settings)]
    options += ["--work", str(tmp_path / "work")]
    figures = run_benchmark("epoch", options, tmp_path)
    assert figures["steps"] == -(-(400 - 40) // 50)  # a tenth is held out
    assert figures["tokens_per_second"] > 0
    assert figures["device"] == "cpu"
    run_benchmark("epoch", [*options, "-Spretrain.lr=1e-4"], tmp_path)  # the lines are prepared already
    assert len(prepared) == 3
    assert run_benchmark("epoch", [*options, "-Stokenizer.vocab_size=400"], tmp_path)["vocab_size"] == 400
    assert len(set(prepared)) == 2


def test_apex_beside_torch(
    archive: Path, tmp_path: Path, apex: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--corpus", str(archive), "--size", "tiny", "--steps", "6", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["apex_check.py", *options])
    with pytest.raises(
        SystemExit, match=r"^apex_check\.py: error: amp_backend = apex, which needs a CUDA GPU"
    ):
        common.run_main(apex_check.main)
    for module in ("apex_check", "receiptbert.pretraining"):
        monkeypatch.setattr(f"{module}.check_amp_backend", lambda *_: None)
    monkeypatch.setattr("receiptbert.pretraining.choose_precision", lambda name, *_: name)
    figures = run_benchmark("apex_check", options, tmp_path)
    assert apex.calls.count("scale_loss") == 6
    fp32, torchs, apexs = (figures[name] for name in ("fp32", "torch", "apex"))
    assert apexs["mean_of_last_50"] == fp32["mean_of_last_50"]  # the stand-in casts nothing
    assert apexs["largest_difference_to_torch"] == fp32["largest_difference_to_torch"] > 0
    assert torchs["largest_difference_to_torch"] == 0 == torchs["skipped_steps"]
    assert (figures["steps"], figures["device"]) == (6, "cpu")


def test_sizes_beside_a_matrix_product(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sizes, "keep_freed_memory", lambda *_: None)  # for good, in this whole process
    monkeypatch.setitem(throughput.MATRIX, "cpu", 64)
    settings, pretrain_ours = {}, ours.pretrain

    def pretrain(setting: Setting, task: Task) -> float:
        settings[setting.shape.hidden_size, task.batch_size] = setting
        return pretrain_ours(setting, task)

    monkeypatch.setattr(ours, "pretrain", pretrain)
    quick = ["--rounds", "1", "--seconds", "0.01", "--warm-up", "0.01", "--device", "cpu"]
    options = [*quick, "--sizes", "tiny,mini", "--precisions", "fp32", "--batch-sizes", "8"]
    figures = run_benchmark("sizes", ["--corpus", str(archive), *options], tmp_path)
    assert list(figures["rows"]) == ["tiny, fp32, 8", "mini, fp32, 8"]
    assert list(settings) == [(128, 8), (256, 8)]
    assert settings[128, 8].shape.num_hidden_layers == 2 != settings[256, 8].shape.num_hidden_layers
    for row, setting in zip(figures["rows"].values(), settings.values(), strict=True):
        performed = row["tokens_per_second"] * throughput.operations(setting, "pretrain")
        assert row["operations_per_second"] == pytest.approx(performed, rel=1e-5)
        share = performed / figures["matrix_rates"]["fp32"]
        assert row["share_of_matrix_rate"] == pytest.approx(share, abs=1e-4)  # rounded in the file
        assert setting.params.pretrain.dropout == 0
    assert figures["device"] == "cpu"
    assert f"torch {version('torch')}, " in figures["versions"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [["tiny", "fp32", "8"], ["mini", "fp32", "8"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precisions", "fp16"], "sizes.py: error: --precisions = fp16, which this cpu does not support"),
        (["--precisions", "fp32", "--corpus", "nowhere.zip"], "sizes.py: error: nowhere.zip not found"),
        (["--precisions", "fp8"], "argument --precisions: 'fp8' is none of auto, fp32"),
        (["--sizes", "tiny,mega"], "argument --sizes: 'mega' is none of tiny, mini"),
        (["--batch-sizes", "8,0"], "argument --batch-sizes: '8,0' is not a list of numbers"),
        (["--seconds", "0"], "argument --seconds: 0 is no number of seconds above 0"),
        (["--warm-up", "nan"], "argument --warm-up: nan is no number of seconds above 0"),
        (["--rounds", "-1"], "argument --rounds: -1 is not a whole number from 1"),
    ],
)
def test_sizes_refuses(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["sizes.py", "--device", "cpu", *options])
    with pytest.raises(SystemExit) as refusal:
        common.run_main(sizes.main)
    assert message in f"{refusal.value}{capsys.readouterr().err}"


def test_memory_beside_the_plan(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = memory.Row("tiny", 9_000, 4, 0.1, activation_checkpointing=True)
    monkeypatch.setattr(memory, "ROWS", [row])
    figures = run_benchmark("memory", ["--corpus", str(archive), "--device", "cpu"], tmp_path)
    (found,) = figures["rows"].values()
    entries = 9_000 * 128 * 4 * 4 / 2**30  # weights, gradients and moments of these alone
    assert found["plan_gib"] > entries
    assert found["measured_gib"] > entries
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["tiny,"]


# --- half_precision.py ---


@pytest.mark.parametrize("dtype", half_precision.HALF)
def test_imitated_products_are_rounded_once_forward_and_backward(dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(5, 300), torch.randn(7, 300), torch.randn(7)
    rounded = [tensor.to(dtype).requires_grad_() for tensor in (x, weight, bias)]
    with half_precision.ProductsInFp32():
        output = torch.nn.functional.linear(*rounded)
        output.backward(torch.ones_like(output))
    exact = [tensor.detach().double() for tensor in rounded]
    expected = torch.nn.functional.linear(*exact)
    assert output.dtype == dtype
    half_a_step = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(output.double(), expected, rtol=1.01 * half_a_step, atol=1e-4 * half_a_step)
    of_weight = exact[0].sum(dim=0).expand(7, -1)
    assert rounded[1].grad is not None
    torch.testing.assert_close(rounded[1].grad.double(), of_weight, rtol=1.01 * half_a_step, atol=1e-5)


def test_half_precision_scores_the_three_precisions(tiny_project: Path, tmp_path: Path) -> None:
    options = ["--project", str(tiny_project), "--seeds", "1", "--device", "cpu"]
    options += ["-S", "finetune.epochs=1", "-S", "finetune.min_steps=0"]
    figures = run_benchmark("half_precision", options, tmp_path)
    assert figures["fp32"]["difference_from_fp32"] == 0
    assert figures["bf16"]["runs"][0].keys() == {"weighted_f1", "val_weighted_f1"}
    assert figures["fp16"]["runs"][0]["skipped_steps"] == 0
