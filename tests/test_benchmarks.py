"""What benchmarks share, and three that write figures; how fast anything is, is no matter for a test."""

import json
import os
import pickle
import re
import sys
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import common
import inference
import throughput
import timing
from huggingface import in_any_order
from receiptbert.errors import UserError
from setting import Setting
from tests.benchmark_runs import run_benchmark
from tests.projects import make_zip

QUICK = ["--rounds", "1", "--size", "tiny", "--device", "cpu"]
SHORT = ["--seconds", "0.01", "--warm-up", "0.01", "--vocab-size", "1000"]
# Each ratio, and the two contestants that it is of.
RATIOS = {
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
        "pretrain_15_percent_vs_trainer_same_precision": (
            "pretrain: ours, 15% masked",
            "pretrain: Trainer, same precision",
        ),
        "pretrain_15_percent_vs_trainer_defaults": (
            "pretrain: ours, 15% masked",
            "pretrain: Trainer, defaults",
        ),
        "pretrain_15_percent_vs_literal": ("pretrain: ours, 15% masked", "pretrain: read literally"),
        "pretrain_15_percent_share_of_floor": ("pretrain: ours, 15% masked", "pretrain: floor, 15% masked"),
        "finetune_vs_trainer_same_precision": ("finetune: ours", "finetune: Trainer, same precision"),
        "finetune_vs_trainer_defaults": ("finetune: ours", "finetune: Trainer, defaults"),
        "finetune_share_of_floor": ("finetune: ours", "finetune: floor"),
    },
    "inference": {
        "predict_vs_pipeline_same_precision": ("ours", "pipeline, same precision"),
        "predict_vs_pipeline_sorted": ("ours", "pipeline, sorted"),
        "predict_vs_pipeline_defaults": ("ours", "pipeline, defaults"),
    },
}


class InlineExecutor:
    """Stands in for a process of its own: what goes there and comes back is pickled."""

    def __init__(self, _: int, _context: Any) -> None:
        pass

    def shutdown(self, wait: bool) -> None:
        pass

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        function, *arguments = pickle.loads(pickle.dumps((function, *arguments)))
        done.set_result(pickle.loads(pickle.dumps(function(*arguments))))
        return done


@pytest.mark.parametrize(
    ("name", "options"),
    [
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
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    figures = run_benchmark(name, ["--corpus", str(archive), *options], tmp_path)
    assert figures.keys() >= {"command", "processor"}
    for key, (faster, slower) in RATIOS[name].items():  # of one round, so no median is involved
        assert figures[key] == pytest.approx(
            figures["medians"][faster] / figures["medians"][slower], rel=1e-3, abs=1e-4
        )
    assert str(tmp_path) not in figures["command"]


def test_the_trainers_batches_in_any_order_are_still_its_batches() -> None:
    texts = list(range(11))
    ordered = in_any_order(texts, 3)
    batches = [ordered[start : start + 3] for start in range(0, 11, 3)]
    assert sorted(batches) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]
    assert len({tuple(in_any_order(texts, 3)) for _ in range(99)}) > 1


def test_models_beside_the_pipeline_do_not_learn_texts_of_test(archive: Path, tmp_path: Path) -> None:
    corpus = common.read_archive(archive)
    train, test = (corpus.index[corpus["split"] == split] for split in ("train", "test"))
    corpus.loc[train[0], "text"] = corpus.loc[test[0], "text"].upper()
    common.write_archive(corpus, tmp_path / "leaking.zip")
    pd.testing.assert_frame_equal(
        common.read_archive(tmp_path / "leaking.zip").reset_index(drop=True),
        corpus.drop(train[0]).reset_index(drop=True),
    )


def test_lines_that_one_of_two_predictors_would_skip_are_not_timed(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours computes equal lines once, and gives no label to a line without tokens."""
    corpus = common.read_archive(archive)
    unlabelled = corpus.index[corpus["split"] == "unsupervised"]
    corpus.loc[unlabelled, "text"] = ["чай", " ", *("чай", "сыр") * 149]
    common.write_archive(corpus, tmp_path / "few.zip")
    classified = []

    def watch(setting: Setting, folder: str) -> Callable[[list[str]], list[str]]:
        classify = ours(setting, folder)
        return lambda lines: classified.append(lines) or classify(lines)  # type: ignore[func-returns-value]

    ours = inference._ours
    monkeypatch.setattr(inference, "_ours", watch)
    run_benchmark("inference", ["--corpus", str(tmp_path / "few.zip"), *QUICK, "--lines", "3"], tmp_path)
    assert classified[:2] == [["чай", "сыр"], ["чай"]]


def test_other_labels_than_those_of_the_pipeline_are_no_success(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "_ours", lambda *_: lambda lines: ["another"] * len(lines))
    with pytest.raises(SystemExit, match="the labels differ"):
        run_benchmark("inference", ["--corpus", str(archive), *QUICK, "--lines", "50"], tmp_path)
    assert not json.loads((tmp_path / "result.json").read_text())["labels_equal"]


def test_the_first_of_the_rounds_is_not_counted() -> None:
    numbers = count(1)
    rates = timing.in_turns({"a": lambda: next(numbers), "b": lambda: next(numbers)}, rounds=2)
    assert rates == {"a": [3, 5], "b": [4, 6]}


def test_figures_are_printed_as_people_read_them(capsys: pytest.CaptureFixture[str]) -> None:
    common.print_figures({"rows": 6000, "seconds": 12345.678, "ratio": 1.23456, "of": {"a": 1, "b": 0.5}})
    assert capsys.readouterr().out == "rows     6,000\nseconds  12,346\nratio    1.235\nof       a 1, b 0.5\n"


def test_a_measured_peak_is_that_of_the_command_alone(tmp_path: Path) -> None:
    occupied = bytearray(b"1" * (256 << 20))
    figures = timing.measure([sys.executable, "-c", "text = 'x' * (64 << 20)"], tmp_path)
    assert 64 / 1024 < figures["peak_gib"] < len(occupied) / 1024**3
    with pytest.raises(SystemExit, match="false failed"):
        timing.measure(["false"], tmp_path)


@pytest.mark.parametrize("override", ["finetune.epoch=3", "finetun.epochs=3", "epochs", "", "finetune.lr=["])
def test_a_setting_that_params_yaml_lacks_or_yaml_cannot_read_is_refused(
    tmp_path: Path, override: str
) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(repr(override))}: (no such setting|.* not valid YAML)"):
        common.write_params(tmp_path, [override])


def test_stages_side_by_side_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("common.cores", lambda: 8)
    threads = [common.stage_environment("pretrain", jobs).get("OMP_NUM_THREADS") for jobs in (1, 3, 16)]
    assert threads == [None, "2", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # whoever sets it knows better
    assert common.stage_environment("pretrain", 3)["OMP_NUM_THREADS"] == "5"
    assert common.stage_environment("pretrain")["DVC_STAGE"] == "pretrain"  # it ends when we are killed


def test_the_command_that_is_written_can_be_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(
        "sys.argv",
        ["/somewhere/sweep.py", "--corpus", "/home/x.zip", "--json=/a/b.json", "a.b=1 c.d=2", "e.f=3/4"],
    )
    assert common.provenance()["command"] == (
        "OMP_NUM_THREADS=1 python benchmarks/sweep.py --corpus x.zip --json=b.json 'a.b=1 c.d=2' e.f=3/4"
    )


def test_where_figures_cannot_be_written_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert common.writable_file(str(tmp_path / "new/folder/x.json")) == tmp_path / "new/folder/x.json"
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file/x.json"):
        with pytest.raises(SystemExit):
            common.argument_parser("A benchmark.").parse_args(["--json", str(path)])
        assert f"argument --json: {path} cannot be written" in capsys.readouterr().err
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(SystemExit):
        common.argument_parser("A benchmark.").parse_args(["--json", str(tmp_path / "x.json")])


def test_a_name_that_is_not_utf_8_costs_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.fsdecode(b"\xe9.zip")
    monkeypatch.setattr("sys.argv", ["sweep.py", "--corpus", name])
    common.write_result(tmp_path / "result.json", {"corpus": name, "f1": 0.5})
    figures = json.loads((tmp_path / "result.json").read_text())
    assert (figures["corpus"], figures["f1"]) == (r"\udce9.zip", 0.5)


def test_a_single_value_has_no_deviation() -> None:
    assert common.shown(0.81234, 0.0, 1) == "0.812"
    assert common.shown(0.81234, 0.00456, 3) == "0.812 ± 0.005"
    assert common.shown(0.81234, 0.00456, 2, decimals=4) == "0.8123 ± 0.0046"


def test_a_corpus_that_cannot_be_read_is_named_as_it_was_given(tmp_path: Path) -> None:
    """Neither a setting of the pipeline nor a temporary folder."""
    with pytest.raises(UserError, match=r"none\.zip not found; name a zip with your CSV$"):
        common.read_archive(tmp_path / "none.zip")
    path = make_zip(tmp_path / "bad.zip", {"in/rows.csv": "text;label;split\n"})
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: in/rows\.csv lacks the column text"):
        common.read_archive(path)
