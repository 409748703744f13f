"""``receiptbert predict``: what it answers, what it leaves when it is ended, and what it loads."""

import inspect
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from receiptbert import Classifier, cli
from receiptbert.classifier import Prediction
from receiptbert.errors import UserError
from receiptbert.onednn import KEPT_SHAPES
from receiptbert.predicting import answer_columns, rows_of
from receiptbert.tables import open_output
from tests.conftest import ROOT
from tests.predict_runs import Run, give_stdin, read, write

# --- What is written ---


@pytest.mark.usefixtures("small_chunks")
def test_answers_are_the_classifiers_in_the_order_of_the_input(
    run: Run, checkpoint: Path, texts: list[str]
) -> None:
    lines = [*texts[:30], "", *texts[:5]]
    write("in.csv", lines)
    run("in.csv", "--top-k", "2", "-o", "out.csv")
    classifier = Classifier.from_pretrained(checkpoint, device="cpu")
    assert list(read("out.csv")[0]) == [
        *("text", "label", "category", "confidence"),
        *("label_2", "category_2", "confidence_2"),
    ]
    for row, text, answer in zip(read("out.csv"), lines, classifier(lines, top_k=2), strict=True):
        assert (row["text"], row["label"], row["category"]) == (text, answer.label, answer.category)
        assert float(row["confidence"]) == pytest.approx(answer.confidence, abs=1e-4)
        second = answer.runners_up[0] if text else ("", "", 0.0)
        assert (row["label_2"], row["category_2"]) == second[:2]
        assert float(row["confidence_2"]) == pytest.approx(second[2], abs=1e-4)


def test_the_code_of_few_shapes_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEPT_SHAPES, "of before")  # so that it is put back afterwards
    monkeypatch.delenv(KEPT_SHAPES)
    write("in.csv", ["чай"])
    run("in.csv", "-o", "out.csv")
    assert os.environ[KEPT_SHAPES] == "16"


def test_what_is_shown_as_sure_enough_is_sure_enough() -> None:
    assert answer_columns([Prediction("7", "Чай", 0.69996)], 1, 0.7) == [["7"], ["Чай"], [0.7]]


def test_options_reach_the_classifier(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    make, given = Classifier.from_pretrained, []

    def note(model: str, *options: Any) -> Classifier:
        given.append(options)
        return make(model, *options)

    monkeypatch.setattr(Classifier, "from_pretrained", note)
    write("in.csv", ["чай"])
    run("in.csv", "--precision", "auto", "--batch-size", "3", "-o", "out.csv")
    assert given == [("cpu", "auto", 3)]


def test_doubtful_lines_are_left_to_a_person(
    run: Run, texts: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    write("in.csv", texts)
    run("in.csv", "--top-k", "2", "-o", "all.csv")
    assert not capfd.readouterr().err
    confidences = sorted(float(row["confidence"]) for row in read("all.csv"))
    threshold = confidences[len(texts) // 2]
    run("in.csv", "--top-k", "2", "--min-confidence", f"{threshold:.4f}", "-o", "out.csv")
    doubtful = 0
    for sure, row in zip(read("all.csv"), read("out.csv"), strict=True):
        if float(row["confidence"]) >= threshold:
            assert row == sure
        else:
            doubtful += 1
            names = {name: "" for name in row if name.startswith(("label", "category"))}
            assert len(names) == 4
            assert row == sure | names
    assert 0 < doubtful < len(texts)
    assert f"{doubtful} of {len(texts)} lines got no label" in capfd.readouterr().err


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_shards_are_the_whole(run: Run, texts: list[str], ending: str) -> None:
    write("in.csv", texts[:20])
    run("in.csv", "-o", f"in.{ending}", "--column", "text")
    run(f"in.{ending}", "-o", "whole.csv")
    parts: list[dict[str, str]] = []
    for number, rows in ((1, 6), (2, 7), (3, 7)):
        run(f"in.{ending}", "--shard", f"{number}/3", "-o", "part.csv")
        part = read("part.csv")
        assert len(part) == rows
        parts += part
    assert parts == read("whole.csv")


def test_nothing_is_read_behind_the_last_row_of_a_shard() -> None:
    def chunks() -> Iterator[list[list[str]]]:
        yield [["а", "б", "в"]]
        pytest.fail("the rest of a table of any size was read")

    assert list(rows_of(chunks(), range(1, 3))) == [[["б", "в"]]]


def test_a_link_to_itself_is_replaced(run: Run) -> None:
    write("in.csv", ["чай"])
    Path("out.csv").symlink_to("out.csv")
    run("in.csv", "-o", "out.csv")
    assert len(read("out.csv")) == 1


def test_a_link_is_replaced_and_not_what_it_stands_for(run: Run) -> None:
    """With ``cache.type symlink``, an output that DVC tracks is a link to its read-only cache."""
    write("in.csv", ["а", "б"])
    Path("cached").write_text("of an earlier run")
    Path("cached").chmod(0o444)
    Path("out.csv").symlink_to("cached")
    run("in.csv", "-o", "out.csv")
    assert Path("cached").read_text() == "of an earlier run"
    assert len(read("out.csv")) == 2
    assert Path("out.csv").stat().st_mode & 0o200


def test_the_input_may_be_replaced_and_keeps_its_permissions(run: Run) -> None:
    write("in.csv", ["а", "б"])
    Path("in.csv").chmod(0o600)
    run("in.csv", "-o", "in.csv")
    assert [row["text"] for row in read("in.csv") if row["label"]] == ["а", "б"]
    assert Path("in.csv").stat().st_mode & 0o777 == 0o600


def test_nobody_else_reads_what_is_being_written(tmp_path: Path) -> None:
    (tmp_path / "private.csv").touch(0o600)
    with open_output(tmp_path / "private.csv"):
        assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600, 0o600]


def test_a_write_protected_file_stays(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write("in.csv", ["а"])
    Path("out.csv").write_text("earlier")
    monkeypatch.setattr("os.access", lambda path, _: path != Path("out.csv"))  # root may write anything
    with pytest.raises(SystemExit, match=r"out\.csv: Permission denied"):
        run("in.csv", "-o", "out.csv")
    assert Path("out.csv").read_text() == "earlier"


def test_of_a_write_protected_folder_its_name_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write("in.csv", ["а"])
    Path("ours").mkdir()
    monkeypatch.setattr("os.access", lambda path, _: path.name != "ours")
    with pytest.raises(SystemExit, match=r"error: ours: Permission denied"):
        run("in.csv", "-o", "ours/out.csv")


@pytest.mark.parametrize("option", ["-o", "--model"])
def test_an_empty_name_is_none(run: Run, capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("in.csv", option, "")
    assert "the name is empty" in capsys.readouterr().err


def test_defaults_are_those_of_the_classifier() -> None:
    args = cli.make_parser().parse_args(["predict"])
    parameters = inspect.signature(Classifier.from_pretrained).parameters
    for name in ("device", "precision", "batch_size"):
        assert getattr(args, name) == parameters[name].default


# --- What it loads and reads ---


def test_prediction_takes_no_package_of_training(checkpoint: Path, tmp_path: Path) -> None:
    absent = [
        "dvc",
        "filelock",
        "onnxruntime",
        "pandas",
        "pyarrow",
        "ruamel",
        "scipy",
        "sklearn",
        "tensorboard",
    ]
    absent += ["accelerate", "onnx", "onnxscript", "transformers", "yaml"]
    (tmp_path / "in.txt").write_text("чай\nсыр\n")
    arguments = ["predict", "in.txt", "--model", str(checkpoint), "--device", "cpu", "-o", "out.csv"]
    script = f"""
import sys
sys.modules.update(dict.fromkeys({absent}))
from receiptbert.cli import main
main({arguments})
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 3


@pytest.mark.usefixtures("small_chunks")
def test_lines_are_read_as_they_are_needed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    content = "чай\n" * 100_000
    give_stdin(monkeypatch, content)
    read = []

    def note(*_: Any) -> None:
        read.append(sys.stdin.buffer.tell())
        raise UserError("that is enough")

    monkeypatch.setattr(Classifier, "__call__", note)
    with pytest.raises(SystemExit, match="that is enough"):
        run("-o", "out.csv")
    assert 0 < read[0] < len(content.encode()) / 2


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(["--version"])
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    assert capsys.readouterr().out == f"{project['name']} {project['version']}\n"


def test_help_does_not_wait_for_torch() -> None:
    script = (
        "import sys, atexit; from receiptbert.cli import main; "
        "atexit.register(lambda: print(sorted({'torch', 'numpy', 'pyarrow'} & set(sys.modules)))); "
        "main(['predict', '--help'])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "COLUMNS": "100"}
    shown = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert shown.endswith("[]\n")
    assert "--min-confidence P" in shown
