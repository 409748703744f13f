"""quality.py: a table that grows seed by seed, each row with settings of its own."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import pytest

import common
import quality
import runs
from linear import STRENGTHS, fit_svm
from receiptbert.errors import UserError
from receiptbert.params_file import load_params
from tests.benchmark_runs import pretend_scores, run_benchmark
from tests.conftest import ROOT


def test_quality_is_a_table_that_grows(archive: Path, tmp_path: Path) -> None:
    options = ["--corpus", str(archive), "--seeds", "1", "--only"]
    first = run_benchmark("quality", [*options, "majority"], tmp_path)
    figures = run_benchmark("quality", [*options, "svm_char,svm_both"], tmp_path)
    assert figures["majority"] == first["majority"]
    corpus = common.read_archive(archive)
    shares = corpus.loc[corpus["split"] == "test", "label"].value_counts(normalize=True)
    share = shares.get(corpus.loc[corpus["split"] == "train", "label"].mode()[0], 0)
    assert figures["majority"]["mean"] == pytest.approx(share * 2 * share / (1 + share), abs=1e-4)
    assert min(figures[svm]["mean"] for svm in ("svm_char", "svm_both")) > figures["majority"]["mean"]
    assert figures["svm_char"]["runs"][0]["C"] in STRENGTHS
    table = quality.Table(archive, tmp_path / "result.json")
    assert table.runs("svm_char", quality.settings_digest("svm_char")) == figures["svm_char"]["runs"]
    of_another_corpus = quality.Table(ROOT / "data/sample.zip", tmp_path / "result.json")
    assert not of_another_corpus.runs("svm_char", quality.settings_digest("svm_char"))


def test_the_strength_of_an_svm_is_the_best_on_val(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, found = common.read_archive(archive), []
    for strength in STRENGTHS:
        monkeypatch.setattr("linear.STRENGTHS", [strength])
        found.append(fit_svm(corpus, "svm_word", 0)[1])
    monkeypatch.setattr("linear.STRENGTHS", STRENGTHS)
    assert fit_svm(corpus, "svm_word", 0)[1] == max(found) > min(found)


def test_quality_of_several_seeds_side_by_side(archive: Path, tmp_path: Path) -> None:
    options = ["--corpus", str(archive), "--seeds", "3", "--jobs", "2", "--only", "majority,svm_word"]
    figures = run_benchmark("quality", options, tmp_path)
    assert [figures[name]["seeds"] for name in ("majority", "svm_word")] == [3, 3]


def test_a_damaged_table_is_to_be_removed(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"result\.json is damaged .* remove it"):
        quality.Table(archive, tmp_path / "result.json")


def test_a_table_keeps_seeds_that_lack_none_before_them(archive: Path, tmp_path: Path) -> None:
    table = quality.Table(archive, tmp_path / "result.json")
    run = {"weighted_f1": 0.5, "macro_f1": 0.4}
    table.write("svm_word", "settings", {1: run})
    assert not (tmp_path / "result.json").exists()
    table.write("svm_word", "settings", {0: run, 1: run, 3: run})
    assert len(quality.Table(archive, tmp_path / "result.json").runs("svm_word", "settings")) == 2


def test_runs_of_the_pipeline_have_their_own_settings_and_share_a_pretraining(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def pretend(stage: str, folder: Path, _jobs: int, **_: Any) -> int:
        params = load_params(folder / "params.yaml")
        assert params.pretrain.seed == params.finetune.seed
        assert params.finetune.epochs == 3
        if stage == "unzip":
            assert (folder / params.data.archive).samefile(archive)
            (folder / "data").mkdir()
        assert (folder / "data").exists()
        assert not params.data.train_on_held_out_texts  # the models beside it do not
        if stage in ("pretrain", "evaluate"):
            calls.append((stage, params.finetune.seed, params.finetune.teachers, params.finetune.init))
        if stage == "evaluate":
            pretend_scores(folder, 0.5)
        return 0

    monkeypatch.setattr(runs, "run_stage", pretend)
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
    other = tmp_path / "other.zip"
    common.write_archive(common.read_archive(archive).iloc[1:], other)
    calls.clear()
    archive = other
    of_other = quality.Contest(other, common.read_archive(other), ["finetune.epochs=3"])
    of_other.run("default", 7, tmp_path)  # nothing of another corpus is used again
    assert [stage for stage, *_ in calls] == ["pretrain", "evaluate"]
    of_other.run("default", 7, tmp_path)  # what is finetuned is not finetuned again
    assert len(calls) == 2
    assert run.pop("seconds") >= 0
    assert run == {
        "weighted_f1": 0.5,
        "macro_f1": 0.4,
        "calibration_error": 0.02,
        "val_weighted_f1": 0.6,
        "megabytes": 2,
    }


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_after_a_seed_that_failed_no_other_begins(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: str
) -> None:
    begun, together = [], Barrier(int(jobs))

    def fail(_contest: Any, name: str, seed: int, _work: Path) -> dict[str, float]:
        begun.append((name, seed))
        together.wait(60)
        raise UserError("pretrain ended with exit code 1")

    monkeypatch.setattr(quality.Contest, "run", fail)
    options = ["--corpus", str(archive), "--seeds", "4", "--jobs", jobs, "--only", "scratch,default"]
    with pytest.raises(UserError, match="exit code 1"):
        run_benchmark("quality", options, tmp_path)
    assert sorted(begun) == [("scratch", seed) for seed in range(int(jobs))]


def test_after_ctrl_c_no_other_contestant_begins(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ending = [], Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, *args: Any, **kwargs: Any) -> None:
            ending.set()
            super().shutdown(*args, **kwargs)

    def interrupt(_contest: Any, name: str, *_: Any) -> dict[str, float]:
        begun.append(name)
        os.kill(os.getpid(), signal.SIGINT)  # comes to the main thread, which waits for this one
        assert ending.wait(60)
        return {"weighted_f1": 0.5, "macro_f1": 0.4}

    monkeypatch.setattr(runs, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(quality.Contest, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(
            "quality", ["--corpus", str(archive), "--seeds", "1", "--only", "scratch,default"], tmp_path
        )
    assert begun == ["scratch"]


def test_a_summary_of_seeds() -> None:
    found = [{"weighted_f1": f1, "macro_f1": f1 / 2, "seconds": 3.0} for f1 in (0.5, 0.6, 0.7)]
    row = quality.summary(found)
    assert row.pop("runs") == found
    assert row == pytest.approx(
        {"mean": 0.6, "std": 0.1, "seeds": 3, "macro_f1": 0.3, "macro_std": 0.05, "seconds": 3}
    )


def test_a_digest_is_of_settings_and_not_of_how_they_are_written() -> None:
    def digest(*overrides: str) -> str:
        return quality.settings_digest("default", overrides)

    assert digest("pretrain.lr=3e-5", "model.size=small") == digest("model.size=small", "pretrain.lr=0.00003")
    assert digest("runtime.device=cuda", "data.archive=x.zip") == digest()
    assert digest("pretrain.lr=3e-5") != digest()
    assert quality.settings_digest("svm_char", ["pretrain.lr=3e-5"]) == quality.settings_digest("svm_char")
    assert quality.settings_digest("svm_char") != quality.settings_digest("svm_word")


@pytest.mark.parametrize("setting", ["data.train_on_held_out_texts=true", "pretrain.seed=3"])
def test_a_setting_that_a_table_decides_is_refused(archive: Path, tmp_path: Path, setting: str) -> None:
    with pytest.raises(UserError, match=f"^{setting.split('=')[0]} is not to be changed here"):
        run_benchmark("quality", ["--corpus", str(archive), "-S", setting], tmp_path)


def test_seeds_that_a_table_has_of_the_same_settings_are_not_run_again(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = [{"weighted_f1": f1, "macro_f1": 0.5} for f1 in (0.5, 0.6)]
    settings = quality.settings_digest("default")
    table = quality.Table(archive, tmp_path / "result.json")
    table.write("default", settings, dict(enumerate(done)))
    assert table.runs("default", settings) == done
    assert table.runs("undistilled", settings) == []
    assert quality.settings_digest("undistilled") != settings
    assert table.runs("default", quality.settings_digest("default", ["model.size=small"])) == []

    monkeypatch.setattr(quality, "provenance", lambda: {"processor": "another", "commit": "1234567"})
    table.write("default", settings, dict(enumerate([*done, done[0]])))
    row = json.loads((tmp_path / "result.json").read_text())["default"]
    assert row["seeds"] == 3
    assert row["processor"].endswith("; another")  # the first two are of this one
    assert row["commit"].endswith("; 1234567")


def test_the_assignments_settings_are_those_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    (line,) = (line for line in readme.splitlines() if line.startswith("| the assignment's settings"))
    command = line.split("`")[1]
    assert command == "dvc exp run " + " ".join(
        f"-S {override}" for override in quality.OVERRIDES["assignment"]
    )
