import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from receiptbert.corpus_facts import Classes, load_longest, save_longest
from receiptbert.errors import UserError
from receiptbert.metrics import (
    class_scores,
    confusion_scores,
    most_confused_pairs,
    score_intervals,
    scores,
)
from receiptbert.progress import say, track
from receiptbert.reports import mean_curve, read_json, write_csv, write_json


def test_json_keeps_order_and_rounds(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "m.json", {"f1": 1 / 3, "classes": {"Чай": [0.1234567]}, "rows": 7})
    expected = [
        "{",
        '  "f1": 0.33333,',
        '  "classes": {',
        '    "Чай": [',
        "      0.12346",
        "    ]",
        "  },",
        '  "rows": 7',
        "}",
    ]
    assert (tmp_path / "new" / "m.json").read_text().splitlines() == expected


def test_json_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "m.json", {"Чай": [0.5, 7]})
    assert read_json(tmp_path / "m.json") == {"Чай": [0.5, 7]}
    with pytest.raises(UserError, match=r"none\.json not found; run `dvc repro`"):
        read_json(tmp_path / "none.json")


def test_csv_rounds_and_quotes(tmp_path: Path) -> None:
    write_csv(tmp_path / "p.csv", ["text", "value"], [("a,b", 2 / 3), ("с\r d \n", 1)])
    assert (tmp_path / "p.csv").read_bytes().decode() == 'text,value\n"a,b",0.66667\nс d ,1\n'


def test_mean_curve_averages_runs_of_steps() -> None:
    history = [{"step": i, "MLM": float(i), "SOP": 1.0} for i in range(1, 8)]
    assert mean_curve(history, ["MLM", "SOP"], points=2) == [[3, 2.0, 1.0], [7, 5.5, 1.0]]
    assert len(mean_curve(history, ["MLM"])) == 7
    assert mean_curve([], ["MLM"]) == []


@pytest.mark.parametrize("steps", [199, 200, 201, 399, 15_801])
def test_no_point_of_a_curve_is_noisier_than_the_others(steps: int) -> None:
    last = [step for step, _ in mean_curve([{"step": i, "MLM": 1.0} for i in range(1, steps + 1)], ["MLM"])]
    lengths = {after - before for before, after in pairwise([0, *last])}
    assert max(lengths) - min(lengths) <= 1
    assert (len(last), last[-1]) == (min(steps, 200), steps)


def test_facts_come_back_as_they_were(tmp_path: Path) -> None:
    classes = Classes(labels=["7", "12"], names=["Чай", "Сыр"])
    classes.save(tmp_path / "classes.json")
    assert Classes.load(tmp_path / "classes.json") == classes
    save_longest(tmp_path / "lengths.json", 31)
    assert load_longest(tmp_path / "lengths.json") == 31
    with pytest.raises(UserError, match="dvc repro pretokenize"):
        Classes.load(tmp_path / "none.json")


TRUE = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 0, 0])


def test_scores_by_hand() -> None:
    result = scores(TRUE, PREDICTED, majority=0)
    # F1: class 0: 2*2/(3+4), class 1: 2*1/(2+2), class 2: 0.
    f1 = [4 / 7, 1 / 2, 0.0]
    assert next(iter(result)) == "weighted_f1"
    assert result["weighted_f1"] == pytest.approx((3 * f1[0] + 2 * f1[1]) / 6)
    assert result["macro_f1"] == pytest.approx(sum(f1) / 3)
    assert result["accuracy"] == pytest.approx(0.5)
    assert result["majority_weighted_f1"] == pytest.approx(0.5 * 2 * 3 / 9)
    assert result["rows"] == 6
    # The most frequent class of train need not be that of the rows scored.
    assert scores(TRUE, PREDICTED, majority=1)["majority_weighted_f1"] == pytest.approx(1 / 3 * 2 * 2 / 8)


def test_intervals_come_from_the_confusion_matrix() -> None:
    rng = np.random.default_rng(1)
    true = rng.choice(5, size=400, p=[0.5, 0.3, 0.1, 0.08, 0.02])
    predicted = np.where(rng.random(400) < 0.7, true, rng.choice(4, size=400))
    rows = rng.integers(400, size=400)  # one draw, scored from its matrix and by scikit-learn
    drawn = scores(true[rows], predicted[rows], majority=0)
    cells, counts = np.unique(np.stack([true, predicted])[:, rows], axis=1, return_counts=True)
    values = confusion_scores(cells[0], cells[1], counts)
    assert values == pytest.approx([drawn[name] for name in ("weighted_f1", "macro_f1", "accuracy")])

    intervals = score_intervals(true, predicted)
    whole = scores(true, predicted, majority=0)
    for name, (low, high) in intervals.items():
        assert low < whole[name] < high, name
    # A share has an interval in closed form.
    share = whole["accuracy"]
    half = 1.96 * (share * (1 - share) / 400) ** 0.5
    assert intervals["accuracy"] == pytest.approx((share - half, share + half), abs=0.006)
    assert score_intervals(true, predicted) == intervals


def test_a_perfect_score_has_no_width() -> None:
    assert score_intervals(TRUE, TRUE) == dict.fromkeys(("weighted_f1", "macro_f1", "accuracy"), (1, 1))


def test_class_scores_name_every_class_that_occurs() -> None:
    table = class_scores(TRUE, PREDICTED, ["Чай", "Сыр", "Мыло", "Никогда"])
    assert [(row[0], row[4]) for row in table] == [("Чай", 3), ("Сыр", 2), ("Мыло", 1)]
    assert table[0][1:4] == pytest.approx((4 / 7, 2 / 4, 2 / 3))  # F1, precision, recall
    assert table[1][1:4] == pytest.approx((0.5, 0.5, 0.5))


def test_confused_pairs_come_with_their_first_text() -> None:
    true, predicted = np.array([0, 1, 0, 0, 2]), np.array([1, 1, 1, 0, 0])
    pairs = most_confused_pairs(true, predicted, ["a", "b", "c", "d", "e"], ["Чай", "Сыр", "Мыло"], count=5)
    assert pairs == [("Чай", "Сыр", 2, "a"), ("Мыло", "Чай", 1, "e")]
    assert len(most_confused_pairs(true, predicted, list("abcde"), ["x", "y", "z"], count=1)) == 1


def test_progress_yields_everything_and_writes_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 15))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    assert list(track(range(5), "reading", 5, "texts")) == [0, 1, 2, 3, 4]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "reading: 2 of 5 texts, 0.1 a second, 45 s left"
    assert lines[-1].startswith("reading: 5 texts in ")


def test_progress_of_what_was_begun_earlier(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 15))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    list(track(range(5), "training", 15, "steps", before=10))
    assert capsys.readouterr().err.splitlines()[0] == "training: 12 of 15 steps, 0.1 a second, 45 s left"


def test_progress_of_chunks_whose_number_nobody_knows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 15))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    assert list(track(["abc", "de", "f"], "reading", None, "letters", len)) == ["abc", "de", "f"]
    assert capsys.readouterr().err.splitlines() == [
        "reading: 5 letters, 0.2 a second",
        "reading: 6 letters in 60 s",
    ]


def test_with_stderr_closed_nothing_goes_among_the_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr", None)
    say("half done")
    assert capsys.readouterr().out == ""


def test_quick_work_is_not_worth_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 0)
    list(track(range(5), "reading", 5))
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert list(track(range(5), "reading", 5)) == [0, 1, 2, 3, 4]
    assert "reading: 100%" in terminal.getvalue()
