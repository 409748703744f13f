"""Settings are compared on splits of train and val, in folders that are shared and made once."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import common
import runs
import sweep
from receiptbert.errors import UserError
from receiptbert.params_file import load_params

TEACHERS = "finetune.teachers=0"
LR = "pretrain.lr=2e-3 finetune.epochs=3"


def rows(splits: dict[str, str]) -> pd.DataFrame:
    """A corpus with the labels of each split, one a letter, and an unsupervised row."""
    table = [(label, split) for split, labels in splits.items() for label in labels]
    texts = [f"text {number}" for number in range(len(table) + 1)]
    labels, names = zip(*table, ("", "unsupervised"), strict=True)
    return pd.DataFrame({"text": texts, "label": labels, "split": names})


def pretend(stage: str, folder: Path, _jobs: int, **_output: Any) -> int:
    """Leave what the sweep reads of a stage, scores that its settings tell; a teacher number 9 fails."""
    params = load_params(folder / "params.yaml")
    p = params.finetune
    assert p.seed == params.pretrain.seed
    (folder / "metrics").mkdir(exist_ok=True)
    f1 = 0.5 + 0.1 * (p.teachers == 0) * p.seed
    teachers = {"teacher_val_weighted_f1": 0.4} if p.teachers else {}
    scores = {
        "pretrain": {"mlm_loss": 3.0},
        "finetune": {"val_weighted_f1": f1, "val_loss": 1.5, **teachers},
    }
    if stage in scores:
        assert (folder / "data").resolve().parent.name.startswith("tokenized-")
        (folder / f"metrics/{stage}.json").write_text(json.dumps(scores[stage]))
    (folder / "log.txt").write_text("\n".join(f"line {number}" for number in range(20)))
    return 3 if p.teachers == 9 and stage == "finetune" else 0


def run_sweep(monkeypatch: pytest.MonkeyPatch, archive: Path, folder: Path, *options: str) -> dict[str, Any]:
    """The figures that a sweep writes."""
    result = folder / "result.json"
    arguments = ["sweep.py", "--corpus", str(archive), "--json", str(result), *options]
    monkeypatch.setattr("sys.argv", arguments)
    sweep.main()
    figures: dict[str, Any] = json.loads(result.read_text())
    return figures


def test_a_split_is_random_and_has_the_rows_of_train_and_val_alone(archive: Path) -> None:
    corpus = common.read_archive(archive)
    anew = sweep.split_anew(corpus, 0)
    assert Counter(anew["split"]) == {"train": 255, "val": 85, "test": 1, "unsupervised": 300}
    before = corpus[corpus["split"].isin(["train", "val"])]
    after = anew[anew["split"].isin(["train", "val"])]
    assert after[["text", "label"]].values.tolist() == before[["text", "label"]].values.tolist()
    assert not set(anew["text"]) & set(corpus.loc[corpus["split"] == "test", "text"])
    pd.testing.assert_frame_equal(anew, sweep.split_anew(corpus, 0))
    assert not anew.equals(sweep.split_anew(corpus, 1))


@pytest.mark.parametrize("split", range(20))
def test_a_class_is_in_train_if_it_is_in_either(split: int) -> None:
    corpus = rows({"train": "aaaaaaaaaaabbccd", "val": "abef", "test": "gh"})
    anew = sweep.split_anew(corpus, split)
    labels = {name: part["label"] for name, part in anew.groupby("split")}
    assert set(labels["train"]) == set("abcdef")
    assert len(labels["val"]) == 5
    assert labels["test"].isin(labels["train"]).all()


def test_the_archive_of_a_split_is_one_that_the_stages_read(archive: Path, tmp_path: Path) -> None:
    anew = sweep.split_anew(common.read_archive(archive), 0)
    anew.loc[0, "text"] = 'of two\r\nlines, "quoted"'
    common.write_archive(anew, tmp_path / "anew.zip")
    pd.testing.assert_frame_equal(common.read_archive(tmp_path / "anew.zip"), anew)


def test_what_settings_leave_equal_is_shared() -> None:
    candidates = sweep.read_candidates(["model.size=mini", TEACHERS, LR, "tokenizer.vocab_size=900"])
    trials = sweep.plan(candidates, 2, "digest", Path())
    assert [trial.candidate for trial in trials[:3]] == ["shipped", "model.size=mini", TEACHERS]
    made = {level: [trial.folders[level] for trial in trials[:5]] for level in sweep.LEVELS}
    as_shipped = {level: [path == paths[0] for path in paths] for level, paths in made.items()}
    assert as_shipped == {
        "tokenized": [True, True, True, True, False],
        "pretrained": [True, True, True, False, False],
        "finetuned": [True, True, False, False, False],
    }
    of_splits = [
        {path for trial in half for path in trial.folders.values()} for half in (trials[:5], trials[5:])
    ]
    assert not of_splits[0] & of_splits[1]


def test_what_corpora_and_splits_make_is_not_shared() -> None:
    names = [set(sweep.folder_names(digest, split, []).values()) for digest in "ab" for split in (0, 1)]
    assert len(set.union(*names)) == 4 * len(sweep.LEVELS)


def test_what_is_changed_in_all_runs_is_changed_in_the_shipped_settings_too() -> None:
    shipped, candidate = sweep.plan(
        sweep.read_candidates([LR], ["pretrain.lr=1e-3", TEACHERS]), 1, "digest", Path()
    )
    assert (shipped.candidate, candidate.candidate) == ("shipped", LR)
    params = [common.shipped_params(trial.overrides) for trial in (shipped, candidate)]
    assert [p.finetune.teachers for p in params] == [0, 0]
    assert [p.pretrain.lr for p in params] == [1e-3, 2e-3]


def test_folders_are_made_once_and_a_sweep_goes_on(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    def count(stage: str, folder: Path, jobs: int, **_output: Any) -> int:
        calls.append(stage)
        return pretend(stage, folder, jobs)

    monkeypatch.setattr(runs, "run_stage", count)
    options = ["--work", str(tmp_path), "--splits", "2", "--jobs", "2"]
    figures = run_sweep(monkeypatch, archive, tmp_path, *options, TEACHERS)
    assert Counter(calls) == {
        "unzip": 2,
        "train_tokenizer": 2,
        "pretokenize": 2,
        "pretrain": 2,
        "finetune": 4,
    }
    assert (figures["corpus"], figures["shipped"]["mean"]) == ("tiny.zip", 0.5)
    assert figures["shipped"]["teacher_val_weighted_f1"] == 0.4
    row = figures[TEACHERS]
    assert (row["mean"], row["difference"], row["difference_error"]) == (0.55, 0.05, 0.05)
    assert [run["split"] for run in row["runs"]] == [0, 1]
    assert "teacher_val_weighted_f1" not in row
    assert "+0.0500 ± 0.0500" in capsys.readouterr().out

    calls.clear()
    assert run_sweep(monkeypatch, archive, tmp_path, *options, TEACHERS, LR).keys() > figures.keys()
    assert Counter(calls) == {"pretrain": 2, "finetune": 2}


def test_a_run_whose_held_out_texts_have_no_target_has_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    run = {"val_weighted_f1": 0.5, "val_loss": 1.0, "pretrain_seconds": 2.0, "finetune_seconds": 3.0}
    found = [{"split": 0, "mlm_loss": 4.0, **run}, {"split": 1, **run}]
    row = sweep.summary(found, found)
    assert "mlm_loss" not in row
    sweep.print_table({"shipped": row})
    assert "1.0000" + 20 * " " + "       2 s" in capsys.readouterr().out


def test_the_others_go_on_when_a_run_fails(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "run_stage", pretend)
    with pytest.raises(SystemExit, match="unfinished runs: 1 of 3"):
        run_sweep(
            monkeypatch, archive, tmp_path, "--splits", "1", "--jobs", "2", "finetune.teachers=9", TEACHERS
        )
    figures = json.loads((tmp_path / "result.json").read_text())
    made = {"command", "processor", "versions", "commit"}
    assert figures.keys() - made == {"corpus", "sha256", "shipped", TEACHERS}
    said = capsys.readouterr().err
    assert "finetune.teachers=9, split 0: finetune ended with exit code 3" in said
    assert "log.txt:\n  line 10\n" in said


def test_folders_are_begun_in_the_order_of_the_candidates(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    def note(stage: str, folder: Path, jobs: int, **_output: Any) -> int:
        if stage == "finetune":
            begun.append(load_params(folder / "params.yaml").finetune.teachers)
        return pretend(stage, folder, jobs)

    monkeypatch.setattr(runs, "run_stage", note)
    run_sweep(monkeypatch, archive, tmp_path, "--splits", "1", TEACHERS, "model.size=mini")
    assert begun == [2, 0]  # the last is the first, by another name


def test_what_needs_a_folder_that_failed_is_not_begun(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def fail(stage: str, folder: Path, jobs: int, **_output: Any) -> int:
        calls.append(stage)
        return pretend(stage, folder, jobs) or int(stage == "pretrain")

    monkeypatch.setattr(runs, "run_stage", fail)
    trials = sweep.plan(sweep.read_candidates([TEACHERS]), 1, "digest", tmp_path)
    sweep.sweep(trials, common.read_archive(archive), 1, lambda: None)
    assert calls == ["unzip", "train_tokenizer", "pretokenize", "pretrain"]
    assert sweep.summaries(trials) == {}
    sweep.print_table({})


def test_the_stages_themselves_run_in_a_folder(archive: Path, tmp_path: Path) -> None:
    """Those that do not train, of which each takes a second."""
    _, trial = sweep.plan(sweep.read_candidates([]), 2, "digest", tmp_path)
    corpus = common.read_archive(archive)
    assert sweep.make_level(trial, "tokenized", corpus, 2)
    folder = trial.folders["tokenized"]
    pd.testing.assert_frame_equal(common.read_archive(folder / "corpus.zip"), sweep.split_anew(corpus, 1))
    counts = json.loads((folder / "metrics/data.json").read_text())
    assert counts["rows"] == {"train": 255, "val": 85, "test": 1, "unsupervised": 300}
    assert counts["rows_left_out"] == {"train": 0, "val": 0, "unsupervised": 0}
    assert "tokens learned" in (folder / "log.txt").read_text()


@pytest.mark.parametrize(
    "candidate",
    ["data.archive=other.zip", "finetune.lr=1e-4 pretrain.seed=3", "runtime.device=cpu", "finetune.lr=fast"],
)
def test_a_candidate_that_is_none_is_refused_at_once(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, candidate: str
) -> None:
    with pytest.raises(UserError, match=candidate.split()[-1].split("=")[0]):
        run_sweep(monkeypatch, archive, tmp_path, candidate)


def test_the_difference_is_that_of_the_splits_that_both_have() -> None:
    def scored(f1: dict[int, float]) -> list[sweep.Run]:
        return [{"split": split, "val_weighted_f1": value, "val_loss": 2.0} for split, value in f1.items()]

    row = sweep.summary(scored({1: 0.6, 2: 0.8}), scored({0: 0.1, 1: 0.5, 2: 0.5}))
    found = row.pop("runs")
    assert [run["split"] for run in found] == [1, 2]
    assert row == pytest.approx(
        {"mean": 0.7, "std": 0.02**0.5, "difference": 0.2, "difference_error": 0.1, "val_loss": 2}
    )
    assert "difference_error" not in sweep.summary(scored({1: 0.6}), scored({1: 0.5}))
    assert "difference" not in sweep.summary(scored({1: 0.6}), [])
