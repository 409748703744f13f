"""Each benchmark runs and writes its figures; how fast anything is, is no matter for a test."""

import argparse
import importlib
import json
import pickle
import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import answers
import apex_check
import common
import epoch
import half_precision
import learning_curve
import make_sample
import memory
import onnx_runtime
import parity
import predict
import quality
import scale
import sizes
import throughput
import wheel
from receiptbert import BertFinetuneModel, Classifier, WordpieceTokenizer, cli, precision
from receiptbert.corpus import label_list
from receiptbert.errors import UserError
from receiptbert.hf_format import save_pretrained
from receiptbert.onnx_export import CalibratedModel
from receiptbert.params import load_params
from setting import Setting, Stopwatch, Task, read_setting
from tests.conftest import ROOT, STAGES, run_here

QUICK = ["--rounds", "1", "--size", "tiny", "--device", "cpu"]
SHORT = ["--seconds", "0.01", "--warm-up", "0", "--vocab-size", "1000"]
# Each ratio, and the two contestants that it is of.
RATIOS = {
    "quality": {},
    "tokenization": {
        "pretokenize_vs_encode_batch_fast": ("pretokenize", "encode_batch_fast"),
        "pretokenize_vs_loop": ("pretokenize", "loop over encode"),
        "training_vs_library": ("training: ours", "training: library"),
    },
    "throughput": {
        "pretrain_vs_trainer_same_precision": ("pretrain: ours", "pretrain: Trainer, same precision"),
        "pretrain_vs_trainer_defaults": ("pretrain: ours", "pretrain: Trainer, defaults"),
        "pretrain_vs_literal": ("pretrain: ours", "pretrain: read literally"),
        "pretrain_share_of_floor": ("pretrain: ours", "pretrain: floor"),
        "finetune_vs_trainer_same_precision": ("finetune: ours", "finetune: Trainer, same precision"),
        "finetune_vs_trainer_defaults": ("finetune: ours", "finetune: Trainer, defaults"),
        "finetune_share_of_floor": ("finetune: ours", "finetune: floor"),
    },
    "inference": {
        "predict_vs_pipeline_same_precision": ("ours", "pipeline, same precision"),
        "predict_vs_pipeline_defaults": ("ours", "pipeline, defaults"),
    },
}
ROWS = {"majority", "svm_word", "svm_char", "svm_both", "corpus"}  # of quality.py, without a training


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


class InlineExecutor:
    """Stands in for a process of its own: what goes there and comes back is pickled."""

    def __init__(self, _: int, _context: Any, initializer: Callable[..., None], initargs: Any) -> None:
        initializer(*pickle.loads(pickle.dumps(initargs)))

    def __enter__(self) -> "InlineExecutor":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        function, *arguments = pickle.loads(pickle.dumps((function, *arguments)))
        done.set_result(pickle.loads(pickle.dumps(function(*arguments))))
        return done


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("quality", ["--only", "majority,svm_word,svm_char,svm_both", "--seeds", "1"]),
        ("tokenization", ["--rounds", "1"]),
        ("throughput", [*QUICK, *SHORT, "--batch-size", "8", "--finetune-batch-size", "8"]),
        ("inference", [*QUICK, "--lines", "50"]),
    ],
)
@pytest.mark.filterwarnings("default")  # what the Trainer warns of
def test_a_benchmark_writes_its_figures(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: list[str]
) -> None:
    monkeypatch.setattr(throughput, "ProcessPoolExecutor", InlineExecutor)
    monkeypatch.setattr(throughput, "keep_freed_memory", lambda *_: None)  # would be kept for all tests
    monkeypatch.setattr(throughput, "MATRIX", {"cpu": 64})
    figures = run_benchmark(name, ["--corpus", str(archive), *options], tmp_path)
    assert figures.keys() >= {"command", "processor"} | (ROWS if name == "quality" else set())
    for key, (faster, slower) in RATIOS[name].items():  # of one round, so no median is involved
        assert figures[key] == pytest.approx(
            figures["medians"][faster] / figures["medians"][slower], rel=1e-3, abs=1e-4
        )
    assert str(tmp_path) not in figures["command"]
    assert figures.get("labels_equal", True)


def test_the_first_of_the_rounds_is_not_counted() -> None:
    numbers = count(1)
    rates = common.in_turns({"a": lambda: next(numbers), "b": lambda: next(numbers)}, rounds=2)
    assert rates == {"a": [3, 5], "b": [4, 6]}


def test_the_watch_counts_tokens_and_seconds_from_when_it_is_warm(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = argparse.Namespace(corpus=archive, overrides=[], size="tiny", vocab_size=None, device="cpu")
    setting = read_setting(given, "fp32")
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    watch = Stopwatch(setting, Task(batch_size=2, seconds=3.0, warm_up=1.0))
    padding = setting.tokenizer.pad_token_id
    batch = torch.tensor([[9, 9, padding], [9, 9, 9]])
    ended = []
    for now in (0.5, 1.5, 2.5, 4.0, 5.5):  # noqa: B007  read by the clock
        watch.saw(batch)
        ended.append(watch.step())
    assert ended == [False, False, False, False, True]
    assert watch.rate() == 3 * 5 / 4  # from 1.5 on


def test_operations_are_those_of_the_plan(archive: Path) -> None:
    given = argparse.Namespace(corpus=archive, overrides=[], size="tiny", vocab_size=None, device="cpu")
    setting = read_setting(given, "fp32")
    length = 7
    same = setting.unlabelled.take(setting.unlabelled.lengths == length)
    setting = replace(setting, unlabelled=same, train=same)
    for stage, row in (("pretrain", memory.Row("tiny", 0, 2, 0.0)), ("finetune", None)):
        plan = memory.plan_of(row or memory.Row("tiny", 0, 2, 0.0), setting)
        if row is None:
            plan = replace(plan, num_classes=setting.num_classes, mask_prob=0.0)
        assert throughput.operations(setting, stage) == pytest.approx(plan.operations_per_token)


def test_scale_measures_each_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(command: list[str], folder: Path) -> dict[str, float]:
        run_here(STAGES[Path(command[1]).stem], folder)
        return {"seconds": 2.0, "peak_gib": 0.5}

    monkeypatch.setattr(scale, "measure", measure)
    settings = ["model.size=tiny", "finetune.teachers=0", "runtime.device=cpu"]
    options = ["--lines", "100", "--train", "200", "--steps", "5", *(f"-S{setting}" for setting in settings)]
    figures = run_benchmark("scale", options, tmp_path)
    assert list(figures["stages"]["100"]) == common.STAGES
    assert all(cell == {"seconds": 2.0, "peak_gib": 0.5} for cell in figures["stages"]["100"].values())


def test_a_measured_peak_is_that_of_the_command_alone(tmp_path: Path) -> None:
    occupied = bytearray(b"1" * (256 << 20))
    figures = common.measure([sys.executable, "-c", "text = 'x' * (64 << 20)"], tmp_path)
    assert 64 / 1024 < figures["peak_gib"] < len(occupied) / 1024**3
    with pytest.raises(SystemExit, match="false failed"):
        common.measure(["false"], tmp_path)


def test_predict_compares_the_formats(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(command: list[str], folder: Path, stdin: Path) -> dict[str, float]:
        monkeypatch.chdir(folder)
        with stdin.open(encoding="utf-8") as file:
            monkeypatch.setattr("sys.stdin", file)
            cli.main(command[3:])
        return {"seconds": 1.0 if "bf16" in command else 2.0, "peak_gib": 0.5}

    monkeypatch.setattr(predict, "measure", measure)
    for module in (predict, precision):
        monkeypatch.setattr(module, "has_bf16", lambda _: True)
    options = ["--lines", "40", "--pipeline-lines", "7", "--model", str(checkpoint), "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["predict.py", *options, "--json", str(tmp_path / "result.json")])
    predict.main()
    figures = json.loads((tmp_path / "result.json").read_text())
    assert figures["lines"] == figures["distinct_lines"] == 40
    assert (figures["lines_per_second"], figures["peak_memory_mib"]) == (20, 512)
    assert figures["peak_memory_of_a_tenth_mib"] == 512
    assert figures["pipeline_ratio"] > 0
    assert figures["formats_equal"]
    assert figures["labels_equal"]
    assert figures["bf16_ratio"] == 2
    assert figures["other_labels_in_bf16"] < 1


def test_quality_is_a_table_that_grows(archive: Path, tmp_path: Path) -> None:
    options = ["--corpus", str(archive), "--seeds", "1", "--only"]
    first = run_benchmark("quality", [*options, "majority"], tmp_path)
    figures = run_benchmark("quality", [*options, "svm_char"], tmp_path)
    assert figures["majority"] == first["majority"]
    assert figures["svm_char"]["mean"] > figures["majority"]["mean"]
    table = quality.Table(archive, tmp_path / "result.json")
    assert table.runs("svm_char", quality.settings_digest("svm_char")) == figures["svm_char"]["runs"]
    of_another_corpus = quality.Table(ROOT / "data/sample.zip", tmp_path / "result.json")
    assert not of_another_corpus.runs("svm_char", quality.settings_digest("svm_char"))


def test_an_epoch_over_generated_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_stages(folder: Path, stages: Sequence[str]) -> None:
        for stage in stages:
            run_here(STAGES[stage], folder)

    monkeypatch.setattr(epoch, "run_stages", run_stages)
    settings = ["model.size=tiny", "tokenizer.vocab_size=500", "runtime.device=cpu"]
    options = ["--lines", "400", "--batch-size", "50", *(f"-S{setting}" for setting in settings)]
    figures = run_benchmark("epoch", [*options, "--work", str(tmp_path / "work")], tmp_path)
    assert figures["steps"] == -(-(400 - 40) // 50)  # a tenth is held out
    assert figures["tokens_per_second"] > 0
    assert figures["device"] == "cpu"
    with pytest.raises(UserError, match="holds lines that were prepared otherwise"):
        run_benchmark(
            "epoch", [*options, "-Spretrain.mask_prob=0.5", "--work", str(tmp_path / "work")], tmp_path
        )


def test_quality_of_several_seeds_side_by_side(archive: Path, tmp_path: Path) -> None:
    options = ["--corpus", str(archive), "--seeds", "3", "--jobs", "2", "--only", "majority,svm_word"]
    figures = run_benchmark("quality", options, tmp_path)
    assert [figures[name]["seeds"] for name in ("majority", "svm_word")] == [3, 3]


def test_a_table_keeps_seeds_that_lack_none_before_them(archive: Path, tmp_path: Path) -> None:
    table = quality.Table(archive, tmp_path / "result.json")
    run = {"weighted_f1": 0.5, "macro_f1": 0.4}
    table.write("svm_word", "settings", {1: run})
    assert not (tmp_path / "result.json").exists()
    table.write("svm_word", "settings", {0: run, 1: run, 3: run})
    assert len(quality.Table(archive, tmp_path / "result.json").runs("svm_word", "settings")) == 2


def pretend_scores(folder: Path, f1: float) -> None:
    """Leave in ``folder`` what a run of the stages leaves."""
    for name in ("metrics", "models/finetuned"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "metrics/test.json").write_text(json.dumps({"weighted_f1": f1, "macro_f1": 0.4, "ece": 0.02}))
    (folder / "metrics/finetune.json").write_text('{"val_weighted_f1": 0.6}')
    (folder / "models/finetuned/model.safetensors").write_bytes(b"0" * 2_000_000)


def test_runs_of_the_pipeline_have_their_own_settings_and_share_a_pretraining(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def pretend(folder: Path, stages: Sequence[str], _jobs: int) -> None:
        params = load_params(folder / "params.yaml")
        assert params.pretrain.seed == params.finetune.seed
        assert params.finetune.epochs == 3
        assert Path(params.data.archive) == archive
        calls.append((stages[-1], params.finetune.seed, params.finetune.teachers, params.finetune.init))
        pretend_scores(folder, 0.5)

    monkeypatch.setattr(quality, "run_stages", pretend)
    contest = quality.Contest(archive, common.read_archive(archive), ["finetune.epochs=3"])
    for name, seed in (("default", 7), ("undistilled", 7), ("undistilled", 8), ("scratch", 8)):
        run = contest.run(name, seed, tmp_path)
    assert calls == [
        ("pretrain", 7, 2, "pretrained"),
        ("evaluate", 7, 2, "pretrained"),
        ("evaluate", 7, 0, "pretrained"),
        ("pretrain", 8, 0, "pretrained"),
        ("evaluate", 8, 0, "pretrained"),
        ("pretrain", 8, 0, "scratch"),
        ("evaluate", 8, 0, "scratch"),
    ]
    assert run.pop("seconds") >= 0
    assert run == {
        "weighted_f1": 0.5,
        "macro_f1": 0.4,
        "calibration_error": 0.02,
        "val_weighted_f1": 0.6,
        "megabytes": 2,
    }


@pytest.mark.parametrize("override", ["finetune.epoch=3", "finetun.epochs=3", "epochs", "", "finetune.lr=["])
def test_a_setting_that_params_yaml_lacks_or_yaml_cannot_read_is_refused(
    tmp_path: Path, override: str
) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(repr(override))}: (no such setting|.* not valid YAML)"):
        common.write_params(tmp_path, [override])


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_after_a_seed_that_failed_no_other_begins(
    archive: Path, monkeypatch: pytest.MonkeyPatch, jobs: str
) -> None:
    begun = []

    def fail(_contest: Any, name: str, seed: int, _work: Path) -> dict[str, float]:
        begun.append((name, seed))
        time.sleep(0.1)
        sys.exit("pretrain ended with exit code 1")

    monkeypatch.setattr(quality.Contest, "run", fail)
    options = ["--corpus", str(archive), "--seeds", "4", "--jobs", jobs, "--only", "scratch,default"]
    monkeypatch.setattr("sys.argv", ["quality.py", *options])
    with pytest.raises(SystemExit, match="exit code 1"):
        quality.main()
    assert sorted(begun) == [("scratch", seed) for seed in range(int(jobs))]


def test_a_summary_of_seeds() -> None:
    runs = [{"weighted_f1": f1, "macro_f1": f1 / 2, "seconds": 3.0} for f1 in (0.5, 0.6, 0.7)]
    row = quality.summary(runs)
    assert row.pop("runs") == runs
    assert row == pytest.approx(
        {"mean": 0.6, "std": 0.1, "seeds": 3, "macro_f1": 0.3, "macro_std": 0.05, "seconds": 3}
    )


def test_stages_side_by_side_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("common.cores", lambda: 8)
    threads = [common.stage_environment("pretrain", jobs).get("OMP_NUM_THREADS") for jobs in (1, 3, 16)]
    assert threads == [None, "2", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # whoever sets it knows better
    assert common.stage_environment("pretrain", 3)["OMP_NUM_THREADS"] == "5"
    assert common.stage_environment("pretrain")["DVC_STAGE"] == "pretrain"  # it ends when we are killed


def test_the_command_that_is_written_can_be_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["/somewhere/sweep.py", "--corpus", "/home/x.zip", "a.b=1 c.d=2", "e.f=3"]
    )
    assert common.provenance()["command"] == "python benchmarks/sweep.py --corpus x.zip 'a.b=1 c.d=2' e.f=3"


def test_a_digest_is_of_settings_and_not_of_how_they_are_written() -> None:
    def digest(*overrides: str) -> str:
        return quality.settings_digest("default", overrides)

    assert digest("pretrain.lr=3e-5", "model.size=small") == digest("model.size=small", "pretrain.lr=0.00003")
    assert digest("runtime.device=cuda", "data.archive=x.zip") == digest()
    assert digest("pretrain.lr=3e-5") != digest()
    assert digest("data.train_on_held_out_texts=true") != digest()
    assert quality.settings_digest("svm_char", ["pretrain.lr=3e-5"]) == quality.settings_digest("svm_word")


def test_seeds_that_a_table_has_of_the_same_settings_are_not_run_again(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [{"weighted_f1": f1, "macro_f1": 0.5} for f1 in (0.5, 0.6)]
    settings = quality.settings_digest("default")
    table = quality.Table(archive, tmp_path / "result.json")
    table.write("default", settings, dict(enumerate(runs)))
    assert table.runs("default", settings) == runs
    assert table.runs("undistilled", settings) == []
    assert quality.settings_digest("undistilled") != settings
    assert table.runs("default", quality.settings_digest("default", ["model.size=small"])) == []

    monkeypatch.setattr(quality, "provenance", lambda: {"processor": "another", "commit": "1234567"})
    table.write("default", settings, dict(enumerate([*runs, runs[0]])))
    row = json.loads((tmp_path / "result.json").read_text())["default"]
    assert row["seeds"] == 3
    assert row["processor"].endswith("; another")  # the first two are of this one
    assert row["commit"].endswith("; 1234567")


def test_points_of_a_learning_curve_side_by_side(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretend(_corpus: Any, unlabelled: float, seed: int, *_: Any) -> dict[float, float]:
        return {labels: unlabelled / 2 + labels / 10 + seed / 100 for labels in learning_curve.LABELS}

    # A tenth of so few labels is too little for a linear model.
    monkeypatch.setattr(quality.Contest, "svm", lambda *_: {"weighted_f1": 0.5})
    monkeypatch.setattr(learning_curve, "bert_scores", pretend)
    drawn = []
    monkeypatch.setattr(learning_curve, "plot", lambda scores, *_: drawn.append(list(scores)))
    result = tmp_path / "result.json"
    options = ["--corpus", str(archive), "--seeds", "2", "--jobs", "3", "--json", str(result)]
    monkeypatch.setattr("sys.argv", ["learning_curve.py", *options, "--plot", "curve.svg"])
    learning_curve.main()
    found = json.loads(result.read_text())["weighted_f1"]
    assert list(found) == [
        "linear SVM",
        "linear SVM, words too",
        "BERT, 100% of the unlabelled lines",
        "BERT, 30% of the unlabelled lines",
        "BERT, 10% of the unlabelled lines",
        "BERT from scratch",
    ]
    assert [len(series) for series in drawn] == [2, 3, 4, 5, 6]  # as each is done
    assert drawn[-1] == list(found)

    made = json.loads(result.read_text())["made"]
    monkeypatch.setattr("sys.argv", ["learning_curve.py", *options, "--seeds", "0"])
    learning_curve.main()  # the SVMs alone, and the rest stays
    again = json.loads(result.read_text())
    assert again["weighted_f1"] == found
    assert "--seeds 0" in again["made"]["linear SVM"]["command"]
    assert again["made"]["BERT from scratch"] == made["BERT from scratch"]
    assert found["BERT, 30% of the unlabelled lines"]["0.1"] == pytest.approx([0.16, 0.17])
    assert found["BERT from scratch"]["1.0"] == pytest.approx([0.1, 0.11])


def test_a_learning_curve_that_fails_begins_nothing_more(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def fail(*_: Any) -> dict[float, float]:
        begun.append(1)
        if len(begun) > 1:
            time.sleep(0.2)  # another one may have begun before it is called off
        raise UserError("no room")

    def slow_svm(*_: Any) -> dict[str, float]:
        time.sleep(0.2)
        return {"weighted_f1": 0.5}

    monkeypatch.setattr(quality.Contest, "svm", slow_svm)  # six times, while the runs fail
    monkeypatch.setattr(learning_curve, "bert_scores", fail)
    monkeypatch.setattr("sys.argv", ["learning_curve.py", "--corpus", str(archive), "--seeds", "5"])
    with pytest.raises(UserError, match="no room"):
        learning_curve.main()
    assert len(begun) < 4  # of twenty


def test_a_learning_curve(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = common.read_archive(archive)
    drawn = [learning_curve.draw(corpus, "train", share) for share in (0.1, 0.3)]
    assert [(part["split"] == "train").sum() for part in drawn] == [30, 90]
    assert set(drawn[0].index) < set(drawn[1].index)
    assert (drawn[0]["split"] != "train").sum() == (corpus["split"] != "train").sum()

    calls = []

    def pretend(folder: Path, stages: Sequence[str], jobs: int) -> None:
        splits = common.read_archive(folder / "corpus.zip")["split"]
        calls.append((tuple(stages), (splits == "unsupervised").sum()))
        assert jobs == 2
        pretend_scores(folder, (splits == "train").mean())

    monkeypatch.setattr(learning_curve, "run_stages", pretend)
    f1 = learning_curve.bert_scores(corpus, 0.3, 0, tmp_path, 2)
    stages = [learning_curve.PRETRAINING, *[learning_curve.AFTER_LABELS] * 3]
    assert calls == [(tuple(some), 90) for some in stages]
    assert f1[1.0] > f1[0.3] > f1[0.1] > 0

    (tmp_path / "0.3-0/scores.json").write_text(json.dumps({"1.0": 0.5, "0.3": 0.4}))  # cut off there
    calls.clear()
    assert learning_curve.bert_scores(corpus, 0.3, 0, tmp_path, 2) == {1.0: 0.5, 0.3: 0.4, 0.1: f1[0.1]}
    assert calls == [(tuple(learning_curve.AFTER_LABELS), 90)]

    figures = []
    for name in ("one.svg", "other.svg"):
        scores = {"BERT": {share: [value] for share, value in f1.items()}}
        learning_curve.plot(scores, "tiny", tmp_path / name)
        figures.append((tmp_path / name).read_bytes())
    assert figures[0] == figures[1]


def test_the_assignments_settings_are_those_of_the_readme() -> None:
    line = next(
        line for line in (ROOT / "README.md").read_text().splitlines() if "assignment's settings" in line
    )
    command = line.split("`")[1]
    assert command == "dvc exp run " + " ".join(
        f"-S {override}" for override in quality.OVERRIDES["assignment"]
    )


def test_onnx_runtime_beside_torch(
    archive: Path,
    tmp_path: Path,
    tokenizer: WordpieceTokenizer,
    finetune_model: Callable[..., BertFinetuneModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = label_list(common.read_archive(archive))
    model = finetune_model(num_classes=len(labels))
    save_pretrained(model, tokenizer, tmp_path / "model", labels)

    def pretend(_: Path, path: Path, int8: bool, texts: Sequence[str]) -> None:
        """Exporting takes seconds; test_onnx_export.py does it."""
        assert len(texts) == 60
        path.write_bytes(b"0" * (1_000_000 if int8 else 4_000_000))

    monkeypatch.setattr(onnx_runtime, "export_onnx", pretend)
    monkeypatch.setattr(onnx_runtime, "OnnxModel", lambda _: CalibratedModel(model, 1.0))
    options = ["--corpus", str(archive), "--model", str(tmp_path / "model"), "--rounds", "1"]
    monkeypatch.setattr("sys.argv", ["onnx_runtime.py", *options, "--json", str(tmp_path / "figures.json")])
    onnx_runtime.main()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [figures[name]["same_labels"] for name in ("torch", "onnx", "onnx_int8")] == [1, 1, 1]
    assert figures["onnx"]["megabytes"] == 4 * figures["onnx_int8"]["megabytes"] == 4
    assert figures["torch"]["weighted_f1"] == figures["onnx"]["weighted_f1"]


def test_the_wheel_is_weighed_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pretend(command: list[str], folder: Path) -> str:
        if "wheel" in command:
            (folder / "receiptbert-0.whl").write_bytes(b"0" * 2048)
        sizes = {"receiptbert": 2, "numpy": 3, "torch": 100, "nvidia-cublas": 50, "pip": 20}
        return "".join(f"{name} {size * 2**20}\n" for name, size in sizes.items())

    monkeypatch.setattr(wheel, "run", pretend)
    monkeypatch.setattr("sys.argv", ["wheel.py", "--json", str(tmp_path / "figures.json")])
    wheel.main()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["packages"], figures["installed_mib"], figures["wheel_kib"]) == (2, 5, 2)
    assert figures["command"] == "python benchmarks/wheel.py --json figures.json"


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
    monkeypatch.setattr("sys.argv", ["parity.py", *options, "--json", str(tmp_path / "figures.json")])
    parity.main()
    figures = json.loads((tmp_path / "figures.json").read_text())
    counts = [figures[f"other_labels_from_{name}"] for name in ("predict", "pipeline", "onnx")]
    assert counts == [0, 0, 1]
    assert figures["rows"] == 60


def test_apex_beside_torch(
    archive: Path, tmp_path: Path, apex: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--corpus", str(archive), "--size", "tiny", "--steps", "6", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["apex_check.py", *options, "--json", str(tmp_path / "figures.json")])
    with pytest.raises(
        SystemExit, match=r"^apex_check\.py: error: amp_backend = apex, which needs a CUDA GPU"
    ):
        common.run_main(apex_check.main)
    for module in ("apex_check", "receiptbert.pretraining"):
        monkeypatch.setattr(f"{module}.check_amp_backend", lambda *_: None)
    monkeypatch.setattr("receiptbert.pretraining.choose_precision", lambda name, *_: name)
    apex_check.main()
    assert apex.calls.count("scale_loss") == 6
    figures = json.loads((tmp_path / "figures.json").read_text())
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
    settings = {}

    def pretrain(setting: Setting, task: Task) -> float:
        settings[setting.shape["hidden_size"], task.batch_size] = setting
        return throughput.pretrain_ours(setting, task)

    monkeypatch.setattr(sizes, "pretrain_ours", pretrain)
    quick = ["--rounds", "1", "--seconds", "0.01", "--warm-up", "0", "--device", "cpu"]
    options = [*quick, "--sizes", "tiny,mini", "--precisions", "fp32", "--batch-sizes", "8"]
    result = tmp_path / "figures.json"
    monkeypatch.setattr("sys.argv", ["sizes.py", "--corpus", str(archive), *options, "--json", str(result)])
    sizes.main()
    figures = json.loads(result.read_text())
    assert list(figures["rows"]) == ["tiny, fp32, 8", "mini, fp32, 8"]
    assert list(settings) == [(128, 8), (256, 8)]
    assert settings[128, 8].shape["num_hidden_layers"] == 2 != settings[256, 8].shape["num_hidden_layers"]
    for row, setting in zip(figures["rows"].values(), settings.values(), strict=True):
        performed = row["tokens_per_second"] * throughput.operations(setting, "pretrain")
        assert row["operations_per_second"] == pytest.approx(performed)
        share = performed / figures["matrix_rates"]["fp32"]
        assert row["share_of_matrix_rate"] == pytest.approx(share, abs=1e-4)  # rounded in the file
        assert setting.params.pretrain.dropout == 0
    assert (figures["device"], figures["torch_version"]) == ("cpu", torch.__version__)
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
    assert figures["wide_projection_is_faster"] > 0
    assert figures["not_scaled"]["largest_weight"] > figures["scaled"]["largest_weight"]
    stuck = [figures[name]["queries_with_a_weight_above_0.99"] for name in ("not_scaled", "scaled")]
    assert stuck == pytest.approx([0.34, 0], abs=0.01)  # as docs/answers.md says
    assert 0 < figures["lines_with_another_class_if_padding_is_not_masked"] <= 1
    # The published formulas: (V + P + 2) d + 2d, 4 (4d^2 + 6d), 4 (8d^2 + 7d).
    parameters = figures["parameters"]
    assert parameters["embeddings"] == (30_000 + 24 + 2 + 2) * 256
    assert parameters["attention"] == 4 * (4 * 256**2 + 6 * 256)
    assert parameters["feed-forward"] == 4 * (8 * 256**2 + 7 * 256)


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


def test_half_precision_scores_the_three_precisions(
    tiny_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = tmp_path / "result.json"
    options = ["--project", str(tiny_project), "--seeds", "1", "--json", str(result), "--device", "cpu"]
    options += ["-S", "finetune.epochs=1", "-S", "finetune.min_steps=0"]
    monkeypatch.setattr(sys, "argv", ["half_precision.py", *options])
    half_precision.main()
    figures = json.loads(result.read_text())
    assert figures["fp32"]["difference_from_fp32"] == 0
    assert figures["bf16"]["runs"][0].keys() == {"weighted_f1", "val_weighted_f1"}
    assert figures["fp16"]["runs"][0]["skipped_steps"] == 0
