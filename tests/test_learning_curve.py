"""learning_curve.py: its points, what is drawn of them, and how it goes on after it was cut off."""

from pathlib import Path
from threading import Event
from typing import Any

import pytest

import common
import learning_curve
import quality
import runs
from receiptbert.params_file import load_params
from tests.benchmark_runs import pretend_scores, run_benchmark


def test_points_of_a_learning_curve_side_by_side(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretend(_corpus: Any, unlabelled: float, seed: int, *_: Any) -> dict[float, float]:
        return {labels: unlabelled / 2 + labels / 10 + seed / 100 for labels in learning_curve.LABELS}

    # A tenth of so few labels is too little for a linear model.
    shares = []

    def svm(contest: quality.Contest, *_: Any) -> dict[str, float]:
        shares.append((contest.corpus["split"] == "train").sum() / 300)
        return {"weighted_f1": 0.5}

    monkeypatch.setattr(quality.Contest, "svm", svm)
    monkeypatch.setattr(learning_curve, "bert_scores", pretend)
    drawn = []
    monkeypatch.setattr(learning_curve, "plot", lambda scores, *_: drawn.append(list(scores)))
    options = ["--corpus", str(archive), "--seeds", "2", "--jobs", "3"]
    first = run_benchmark("learning_curve", [*options, "--plot", "curve.svg"], tmp_path)
    found = first["weighted_f1"]
    assert list(found) == [
        "linear SVM",
        "linear SVM, words too",
        "BERT, 100% of the unlabelled lines",
        "BERT, 30% of the unlabelled lines",
        "BERT, 10% of the unlabelled lines",
        "BERT from scratch",
    ]
    assert set(shares) == set(learning_curve.LABELS)
    assert [len(series) for series in drawn] == [2, 3, 4, 5, 6]  # as each is done
    assert drawn[-1] == list(found)

    other = common.read_archive(archive).iloc[1:]  # its points have nothing to do with those in the file
    assert not learning_curve.Curves(archive.name, other, tmp_path / "result.json", None)._scores
    # The SVMs alone, and the rest stays.
    again = run_benchmark("learning_curve", [*options, "--seeds", "0"], tmp_path)
    assert again["weighted_f1"] == found
    assert "--seeds 0" in again["made"]["linear SVM"]["command"]
    assert again["made"]["BERT from scratch"] == first["made"]["BERT from scratch"]
    assert found["BERT, 30% of the unlabelled lines"]["0.1"] == pytest.approx([0.16, 0.17])
    assert found["BERT from scratch"]["1.0"] == pytest.approx([0.1, 0.11])


def test_a_learning_curve_of_less_than_no_seed_is_refused(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_benchmark("learning_curve", ["--corpus", str(archive), "--seeds", "-3"], tmp_path)
    assert "error: --seeds cannot be negative; 0 scores the SVMs alone" in capsys.readouterr().err


def test_a_learning_curve(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = common.read_archive(archive)
    drawn = [learning_curve.draw(corpus, "train", share) for share in (0.1, 0.3)]
    assert [(part["split"] == "train").sum() for part in drawn] == [30, 90]
    assert set(drawn[0].index) < set(drawn[1].index)
    assert (drawn[0]["split"] != "train").sum() == (corpus["split"] != "train").sum()

    calls = []

    def pretend(stage: str, folder: Path, jobs: int, **_: Any) -> int:
        splits = common.read_archive(folder / "corpus.zip")["split"]
        calls.append((stage, (splits == "unsupervised").sum()))
        assert jobs == 2
        if stage == "unzip" and len(calls) > 1:
            assert (folder / "models/tokenizer").is_symlink()
        pretend_scores(folder, (splits == "train").mean())
        return 0

    monkeypatch.setattr(runs, "run_stage", pretend)
    f1 = learning_curve.bert_scores(corpus, 0.3, 0, tmp_path, 2, Event())
    stages = [*runs.PRETRAINING, *learning_curve.AFTER_LABELS * 3]
    assert calls == [(stage, 90) for stage in stages]
    assert f1[1.0] > f1[0.3] > f1[0.1] > 0

    (done,) = tmp_path.glob(f"0.3-0-*/labels-0.1/{runs.RECORD}")
    done.unlink()  # cut off there
    calls.clear()
    assert learning_curve.bert_scores(corpus, 0.3, 0, tmp_path, 2, Event()) == f1
    assert calls == [(stage, 90) for stage in learning_curve.AFTER_LABELS]

    stopped = Event()
    stopped.set()  # another point has failed
    assert learning_curve.bert_scores(corpus, 0.3, 0, tmp_path, 2, stopped) == {}

    calls.clear()
    learning_curve.bert_scores(
        corpus.iloc[1:], 0.3, 0, tmp_path, 2, Event()
    )  # another corpus has no scores yet
    assert [stage for stage, _ in calls] == stages

    settings = []

    def note(_stage: str, folder: Path, *_: Any, **_output: Any) -> int:
        params = load_params(folder / "params.yaml")
        p = params.finetune
        settings.append((p.init, p.teachers, params.pretrain.seed, p.seed))
        pretend_scores(folder, 0.5)
        return 0

    monkeypatch.setattr(runs, "run_stage", note)
    for unlabelled, seed in ((0.0, 0), (0.3, 1)):
        learning_curve.bert_scores(corpus, unlabelled, seed, tmp_path, 1, Event())
    assert set(settings) == {("scratch", 0, 0, 0), ("pretrained", 2, 1, 1)}

    figures = []
    for name in ("one.svg", "other.svg"):
        scores = {"BERT": {share: [value] for share, value in f1.items()}}
        learning_curve.plot(scores, "tiny", tmp_path / name)
        figures.append((tmp_path / name).read_bytes())
    assert figures[0] == figures[1]
