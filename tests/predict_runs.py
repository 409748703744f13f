"""Runs of ``receiptbert predict``, in the process of the test, and the tables that they read and write."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from receiptbert import cli

Run = Callable[..., None]
Rows = list[dict[str, str]]


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``receiptbert predict`` in ``tmp_path`` with the small model."""
    monkeypatch.chdir(tmp_path)

    def predict(*arguments: str) -> None:
        cli.main(["predict", "--model", str(checkpoint), "--device", "cpu", *arguments])

    return predict


def read(path: str, delimiter: str = ",") -> Rows:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def write(path: str, texts: list[str]) -> None:
    """A table of one column, ``text``."""
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])


def give_stdin(monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content.encode())))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("receiptbert.tables.ROWS_AT_ONCE", 7)
    monkeypatch.setattr("receiptbert.parquet.ROWS_AT_ONCE", 7)


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir() if path.name != "model")
