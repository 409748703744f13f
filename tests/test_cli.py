"""``receiptbert predict``: formats in and out, what is kept, and how it ends when something is wrong."""

import csv
import datetime
import inspect
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from receiptbert import Classifier, cli
from receiptbert.errors import UserError
from receiptbert.failures import explain
from receiptbert.onednn import KEPT_SHAPES
from tests.conftest import CATEGORIES, LABELS, ROOT

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
    monkeypatch.setattr("receiptbert.tables.CHUNK", 7)
    monkeypatch.setattr("receiptbert.parquet.CHUNK", 7)


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


@pytest.mark.usefixtures("small_chunks")
def test_every_format_gives_the_same_answers(
    run: Run, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [*texts[:20], 'а "б", в', "а; б"]
    write("in.csv", lines)
    run("in.csv", "-o", "expected.csv")
    quoted = ['"{}"'.format(text.replace('"', '""')) for text in ["text", *lines]]
    Path("windows.csv").write_text("\ufeff" + "\r\n".join(quoted) + "\r\n\r\n", encoding="utf-8", newline="")
    Path("in.tsv").write_text("\n".join(quoted), encoding="utf-8")
    Path("in.txt").write_text("\n".join(lines), encoding="utf-8")
    parquet.write_table(pa.table({"text": lines}), "in.parquet", row_group_size=9)
    for name in ("windows.csv", "in.tsv", "in.txt", "in.parquet"):
        run(name, "-o", "out.csv")
        assert Path("out.csv").read_bytes() == Path("expected.csv").read_bytes(), name
    give_stdin(monkeypatch, "\r\n".join(lines))
    run("-o", "out.csv")
    assert Path("out.csv").read_bytes() == Path("expected.csv").read_bytes()

    expected = read("expected.csv")
    run("in.csv", "-o", "out.tsv")
    assert read("out.tsv", "\t") == expected
    run("in.csv", "-o", "out.jsonl")
    run("in.csv", "-o", "out.parquet")
    objects = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert parquet.read_table("out.parquet").to_pylist() == objects
    assert [{key: str(value) for key, value in row.items()} for row in objects] == expected


def test_the_code_of_few_shapes_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEPT_SHAPES, "of before")  # so that it is put back afterwards
    monkeypatch.delenv(KEPT_SHAPES)
    write("in.csv", ["чай"])
    run("in.csv", "-o", "out.csv")
    assert os.environ[KEPT_SHAPES] == "16"


def test_the_delimiter_is_the_one_that_makes_the_column(run: Run) -> None:
    quoted = '"Наимено-\n\nвание, полное";text;Цена, руб, с НДС\n"чай, чёрный";чай;2,50\n'
    Path("in.csv").write_text(quoted, encoding="utf-8")
    run("in.csv", "-o", "out.csv")
    (row,) = read("out.csv", ";")
    assert list(row)[:3] == ["Наимено-\n\nвание, полное", "text", "Цена, руб, с НДС"]
    assert row["text"] == "чай"
    Path("in.csv").write_text("\n" * 150 + "id;text\n1;чай\n", encoding="utf-8")
    run("in.csv", "-o", "out.csv")
    assert [row["text"] for row in read("out.csv", ";")] == ["чай"]
    Path("in.csv").write_text("a,text\n1;2;3,чай\n", encoding="utf-8")
    run("in.csv", "-o", "out.csv")
    assert [row["text"] for row in read("out.csv")] == ["чай"]


def test_a_header_on_stdin_may_be_a_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    give_stdin(monkeypatch, "text\nчай\n")
    run("--from", "lines", "-o", "out.csv")
    assert [row["text"] for row in read("out.csv")] == ["text", "чай"]


def test_stdout_and_its_format(
    run: Run, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    give_stdin(monkeypatch, "text;id\nа б;1\n")
    run("--from", "csv", "--to", "jsonl")
    row = json.loads(capsysbinary.readouterr().out)
    assert (row["text"], row["id"], list(row)[2:]) == ("а б", "1", ["label", "category", "confidence"])


def test_all_columns_are_kept(run: Run) -> None:
    content = "\ufeff\r\nid;имя ;цена;;\r\n\r\n1;а б;99,90;;\r\n2;;\r\n3;'а\r\nб';=1;;;;\r\n".replace(
        "'", '"'
    )
    Path("odd.csv").write_text(content, encoding="utf-8", newline="")
    run("odd.csv", "--column", "имя ", "-o", "out.csv")
    with Path("out.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, delimiter=";")  # as it was
    assert header == ["id", "имя ", "цена", "", "", "label", "category", "confidence"]
    assert [row[:5] for row in rows] == [
        ["1", "а б", "99,90", "", ""],
        ["2", "", "", "", ""],
        ["3", "а\r\nб", "=1", "", ""],
    ]
    assert [bool(row[5]) for row in rows] == [True, False, True]


def test_types_of_parquet_are_kept(run: Run) -> None:
    day = pa.array([10**18 + 1, None], pa.timestamp("ns"))  # no Python datetime holds that nanosecond
    table = pa.table({"id": [1, None], "text": ["а б", None], "day": day, "tags": [["x"], []]})
    parquet.write_table(table, "in.parquet")
    run("in.parquet", "-o", "out.parquet")
    written = parquet.read_table("out.parquet")
    assert written.select(table.column_names) == table
    assert [written[name].type for name in ("label", "category", "confidence")] == [
        pa.string(),
        pa.string(),
        pa.float64(),
    ]
    assert written["label"].to_pylist()[1] == ""
    parquet.write_table(table.set_column(2, "day", [[datetime.date(2026, 1, 2)] * 2]), "in.parquet")
    run("in.parquet", "-o", "out.jsonl")
    first, second = Path("out.jsonl").read_text(encoding="utf-8").splitlines()
    assert first.startswith('{"id": 1, "text": "а б", "day": "2026-01-02", "tags": ["x"], "label": "')
    assert json.loads(second)["text"] is None


def test_json_has_no_nan(run: Run) -> None:
    prices = [float("nan"), float("-inf")]
    table = {"text": ["а", "б"], "price": prices, "more": [[price] for price in prices]}
    parquet.write_table(pa.table(table | {"deep": [{"x": [price]} for price in prices]}), "in.parquet")
    run("in.parquet", "-o", "out.jsonl")
    for line in map(json.loads, Path("out.jsonl").read_text(encoding="utf-8").splitlines()):
        assert (line["price"], line["more"], line["deep"]) == (None, [None], {"x": [None]})


def test_carriage_returns_are_quoted(run: Run) -> None:
    texts = ["а\rб", "=в\rг", "д"]
    Path("in.txt").write_bytes("\n".join(texts).encode())
    Path("in.csv").write_bytes('"text"\n"а\rб"\n"=в\rг"\n"д"\n'.encode())
    parquet.write_table(pa.table({"text": texts}), "in.parquet")
    for name in ("in.txt", "in.csv", "in.parquet"):
        run(name, "-o", "out.csv")
        assert [row["text"] for row in read("out.csv")] == texts, name
    assert Path("out.csv").read_bytes().startswith('text,label,category,confidence\n"а\rб","'.encode())
    run("in.csv", "--spreadsheet", "-o", "out.csv")
    assert [row["\ufefftext"] for row in read("out.csv")] == ["а\rб", "'=в\rг", "д"]


def test_values_that_python_has_not_are_written_as_texts(run: Run) -> None:
    days = pa.array([20_454, 10**7, None], pa.int32()).cast(pa.date32())
    parquet.write_table(pa.table({"text": ["а", "б", "в"], "day": days}), "in.parquet")
    run("in.parquet", "-o", "out.csv")
    assert [row["day"] for row in read("out.csv")] == ["2026-01-01", "29349-01-26", ""]
    run("in.parquet", "-o", "out.parquet")
    assert parquet.read_table("out.parquet")["day"].combine_chunks() == days


@pytest.mark.parametrize(
    ("column", "name", "message"),
    [
        (pa.array([0], pa.timestamp("s", "No/Where")), "when", "in.parquet, column when: a value of type "),
        (
            pa.array([b"\xff"]).view(pa.string()),
            "when",
            "in.parquet, column when: a value of type string cannot",
        ),
        (pa.array([b"\xff"]).view(pa.string()), "text", "in.parquet: the column of texts is string: "),
        (pa.array([[1]]), "text", "in.parquet: the column of texts is list<"),
    ],
)
def test_values_of_parquet_that_are_no_texts(run: Run, column: Any, name: str, message: str) -> None:
    parquet.write_table(pa.table({"text": ["а"], name: column}), "in.parquet")
    with pytest.raises(SystemExit) as end:
        run("in.parquet", "-o", "out.csv")
    assert message in str(end.value.code)


def test_parquet_whose_rows_are_damaged(run: Run) -> None:
    parquet.write_table(pa.table({"text": ["аб" * 300] * 9}), "in.parquet", use_dictionary=False)
    content = bytearray(Path("in.parquet").read_bytes())
    content[4:60] = b"\xff" * 56
    Path("in.parquet").write_bytes(content)
    with pytest.raises(
        SystemExit, match=r"error: in\.parquet is not a Parquet file, or is damaged \(.+\); ex"
    ):
        run("in.parquet", "-o", "out.csv")


LONG = "x" * 200_000
ODD_CSVS: list[tuple[str, dict[str, str]]] = [
    ("   \ntext,id\nа,1\n", {"text": "а", "id": "1"}),
    ("text,id\n  \nа,1\n \n", {"text": "а", "id": "1"}),
    ('"text, RU";text\n1;а\n', {"text, RU": "1", "text": "а"}),
    (f"text,{LONG}\nа,{LONG}\n", {"text": "а", LONG: LONG}),
    ("text\n  \n", {"text": "  "}),  # of one column, a row
]


@pytest.mark.parametrize(
    ("content", "expected"),
    ODD_CSVS,
    ids=["a blank line first", "blank lines", "a comma", "long", "a blank row"],
)
def test_odd_csvs_are_read(run: Run, content: str, expected: dict[str, str]) -> None:
    Path("in.csv").write_text(content, encoding="utf-8")
    run("in.csv", "-o", "out.jsonl")
    (line,) = Path("out.jsonl").read_text(encoding="utf-8").splitlines()
    assert dict(list(json.loads(line).items())[:-3]) == expected
    assert csv.field_size_limit() == 131_072


def test_columns_that_collide_with_ours_stay(run: Run) -> None:
    Path("in.csv").write_text("text,label,predicted_label\nа,5,6\n", encoding="utf-8")
    run("in.csv", "-o", "out.csv")
    (row,) = read("out.csv")
    assert (row["label"], row["predicted_label"]) == ("5", "6")
    assert row["predicted_predicted_label"] in LABELS
    assert row["predicted_predicted_category"] in CATEGORIES


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


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_shards_are_the_whole(
    run: Run, texts: list[str], monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr("receiptbert.tables.CHUNK", 7)
    monkeypatch.setattr("receiptbert.parquet.CHUNK", 7)
    write("in.csv", texts[:20])
    run("in.csv", "-o", f"in.{ending}", "--column", "text")
    run(f"in.{ending}", "-o", "whole.csv")
    parts: list[dict[str, str]] = []
    for number in (1, 2, 3):
        run(f"in.{ending}", "--shard", f"{number}/3", "-o", "part.csv")
        part = read("part.csv")
        assert 6 <= len(part) <= 7
        parts += part
    assert parts == read("whole.csv")


def test_a_link_to_itself_is_replaced(run: Run) -> None:
    write("in.csv", ["чай"])
    Path("out.csv").symlink_to("out.csv")
    run("in.csv", "-o", "out.csv")
    assert len(read("out.csv")) == 1


def test_formulas_are_made_harmless_for_spreadsheets_alone(run: Run) -> None:
    cells = ["=1+1", "-а", "@а", "+7 а", "\t=1", "-5,5", "+3", "а=1"]
    write("in.csv", cells)
    run("in.csv", "-o", "plain.csv")
    assert [row["text"] for row in read("plain.csv")] == cells
    run("in.csv", "--spreadsheet", "-o", "out.csv")
    assert Path("out.csv").read_bytes().startswith(b"\xef\xbb\xbftext,")
    harmless = [row["\ufefftext"] for row in read("out.csv")]
    assert harmless == ["'=1+1", "'-а", "'@а", "'+7 а", "'\t=1", "-5,5", "+3", "а=1"]


# --- When something is wrong ---


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir() if path.name != "model")


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError("x"), OSError(28, "No space left on device")])
def test_a_run_that_fails_leaves_what_was_there(
    run: Run, texts: list[str], monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    write("in.csv", texts)
    Path("out.csv").write_text("earlier")
    classify, calls = Classifier.__call__, []

    def fail_later(self: Classifier, lines: list[str], top_k: int) -> Any:
        calls.append(files())
        if len(calls) == 3:
            raise error
        return classify(self, lines, top_k)

    monkeypatch.setattr(Classifier, "__call__", fail_later)
    with pytest.raises(SystemExit) as end:
        run("in.csv", "-o", "out.csv")
    assert end.value.code == (130 if error is KeyboardInterrupt else f"receiptbert: error: {explain(error)}")
    assert calls[-1] == [f".out.csv.{os.getpid()}.part", "in.csv", "out.csv"]
    assert Path("out.csv").read_text() == "earlier"
    assert files() == ["in.csv", "out.csv"]


def test_with_stderr_closed_ctrl_c_says_nothing_among_the_answers(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    write("in.csv", ["а"])
    monkeypatch.setattr(Classifier, "__call__", interrupt)
    monkeypatch.setattr("sys.stderr", None)
    with pytest.raises(SystemExit) as end:
        run("in.csv")
    assert end.value.code == 130
    assert "interrupted" not in capfd.readouterr().out


def test_what_the_system_says_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write("in.csv", ["а"])
    monkeypatch.setattr("receiptbert.tables.open_binary", lambda _: Path("no\nfile").stat())
    with pytest.raises(SystemExit, match=r"^receiptbert: error: no\\nfile: No such file or directory$"):
        run("in.csv")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_kill_ends_it_as_a_kill_does(
    run: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    write("in.csv", ["а"])
    monkeypatch.setattr(Classifier, "__call__", lambda *_, **__: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as end:
        run("in.csv", "-o", "out.csv")
    assert end.value.code == 128 + number
    assert files() == ["in.csv"]


def test_the_input_may_be_replaced(run: Run) -> None:
    write("in.csv", ["а", "б"])
    Path("link.csv").symlink_to("in.csv")
    run("in.csv", "-o", "link.csv")
    assert Path("link.csv").is_symlink()
    assert [row["text"] for row in read("in.csv")] == ["а", "б"]
    assert "label" in read("in.csv")[0]


def test_the_permissions_of_what_is_replaced_stay(run: Run) -> None:
    write("in.csv", ["а"])
    Path("in.csv").chmod(0o600)
    run("in.csv", "-o", "in.csv")
    assert Path("in.csv").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("stdin", ["-o", "out.csv"], "stdin is closed; name a file"),
        ("stdout", ["in.csv"], "stdout is closed; name a file with --output"),
    ],
)
def test_closed_streams(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str, arguments: list[str], message: str
) -> None:
    write("in.csv", ["а"])
    monkeypatch.setattr(f"sys.{name}", None)
    with pytest.raises(SystemExit, match=f"error: {message}$"):
        run(*arguments)


BAD: list[tuple[bytes, list[str], str]] = [
    (b"a,b\n", ["in.csv"], "in.csv has no column 'text'; choose one with --column among 'a', 'b'"),
    (b"text,text\n", ["in.csv"], "in.csv has several columns 'text'; "),
    (b"", ["in.csv"], "in.csv is empty; its first line must name the columns"),
    (
        "text\nа\n".encode() + "Молоко".encode("cp1251"),
        ["in.csv"],
        "in.csv, line 3: not UTF-8, it seems to be windows",
    ),
    (
        "text\nМОЛОКО ПАСТ".encode("koi8-r"),
        ["in.csv"],
        "in.csv, line 2: not UTF-8, it seems to be koi8-r; save",
    ),
    ("text\nМОЛОКО ПАСТ".encode("utf-16"), ["in.csv"], "in.csv: not UTF-8, it seems to be utf-16; save it"),
    (
        "ЧАЙ\nСЫР\n".encode("utf-16-le"),
        ["in.csv", "--from", "lines"],
        "in.csv: not UTF-8, it seems to be utf-16;",
    ),
    (b"text\nab\0cdefg\n", ["in.csv"], "in.csv, line 2: a NUL byte, which no text has; export the"),
    (b"text,id\ra,1\r", ["in.csv"], "in.csv, line 1: a carriage return without a line feed; save"),
    (b"text,id\na,1\nb,c,2\n", ["in.csv"], "in.csv, line 3: 3 fields, the header has 2; quote texts that"),
    (b'text,id\n"a,1\nb,2\n', ["in.csv"], "in.csv, line 2: unexpected end of data; texts that have quotes"),
    (b'text\n"a" b\n', ["in.csv"], "in.csv, line 2: ',' expected after '\"'; texts that have quotes"),
    (b"text\n", ["in.csv", "-o", "no/out.csv"], "/no is not a folder; create it, or name another"),
    (
        b"text\n",
        ["in.csv", "-o", "model"],
        "model: unknown extension; known are .csv, .tsv, .tab, .parquet, .pq, .jsonl, .ndjson; if",
    ),
    (
        b"text\n",
        ["in.csv", "-o", "model", "--to", "csv"],
        "model is not a file; name one, or omit --output",
    ),
    (
        b"text\n",
        ["in.dat"],
        "in.dat: unknown extension; known are .csv, .tsv, .tab, .parquet, .pq, .txt; if the file is "
        "one of them under another name, give the format with --from",
    ),
    (b"text\n", ["none.csv"], "none.csv not found"),
    (b"text\n", ["in.csv", "--precision", "fp16"], "fp16"),
    (b"text\n", ["model", "--from", "csv"], "model is a folder; name a file in it"),
    (b"text\n", ["in.csv", "--from", "parquet"], "in.csv is not a Parquet file, or is damaged ("),
    (
        b"PAR1" + bytes(range(40)) + b"\x08\0\0\0PAR1",
        ["in.csv", "--from", "parquet"],
        "in.csv is not a Parquet file, or is damaged (Couldn't deserialize thrift",
    ),
    (b"text\n", ["-", "--from", "parquet"], "Parquet cannot be read from stdin; name a file"),
    (
        b"text,a,a\n",
        ["in.csv", "-o", "o.jsonl"],
        "the input has several columns 'a'; rename one, or write CSV",
    ),
    (
        b"text\n",
        ["in.csv", "-o", "o.jsonl", "--spreadsheet"],
        "--spreadsheet is for CSV and TSV, not for jsonl",
    ),
    (b"tea\n", ["-", "--shard", "1/2"], "--shard counts the lines first, but stdin can be read only once"),
    (
        "id;text;цена\n1;чай;2,50\n".encode(),
        ["-"],
        "stdin is read as plain lines, but the first of them names a column 'text'; give --from csv, or",
    ),
    (
        "id;имя\n1;чай\n".encode(),
        ["-", "--column", "имя"],
        "stdin is read as plain lines, which have no column 'имя'; give --from csv",
    ),
    (b"id,name\n1,a\n", ["-", "--from", "csv"], "stdin has no column 'text'; choose one with --column among"),
    (
        "Наименование;Цена, руб;Код, шт\nчай;2,5;1\n".encode(),
        ["in.csv"],
        "in.csv has no column 'text'; choose one with --column among 'Наименование', 'Цена, руб', 'Код, шт'",
    ),
    (b"PK\x03\x04\n\0", ["in.csv"], "in.csv is not text but a zip or an Excel workbook; unpack it, or"),
    (b"\x1f\x8b\x08\0\0\0", ["in.csv"], "in.csv is not text but gzip; unpack it, or export it as CSV"),
    (
        b"PK\x03\x04\x14\0\x06\0",
        ["in.csv"],
        "in.csv is not text but a zip or an Excel workbook; unpack it, or",
    ),
    (b"text\n", ["in.csv", "--model", "none"], "none is not a folder; name that of a finetuned model"),
    (b"text\n", ["in.csv", "--device", "abacus"], "device = abacus names no device; set auto"),
]


@pytest.mark.parametrize(("content", "arguments", "message"), BAD, ids=[message[:45] for *_, message in BAD])
def test_bad_input_ends_in_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, content: bytes, arguments: list[str], message: str
) -> None:
    for name in ("in.csv", "in.dat"):
        Path(name).write_bytes(content)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    line = str(end.value.code)
    assert line.startswith("receiptbert: error: ")
    assert message in line
    assert "\n" not in line
    assert files() == ["in.csv", "in.dat"]


def test_errors_late_in_a_file_are_found_before_any_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("in.csv").write_text("text\n" + "а\n" * 50_000 + "а,б\n", encoding="utf-8")
    monkeypatch.setattr(Classifier, "from_pretrained", pytest.fail)
    with pytest.raises(SystemExit, match="line 50002: 2 fields"):
        run("in.csv", "-o", "out.csv")


def test_an_error_leaves_nothing_on_stdout(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    write("in.csv", ["а"])
    with pytest.raises(SystemExit):
        run("in.csv", "--device", "abacus")
    assert not capfd.readouterr().out


def test_debugging_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECEIPTBERT_DEBUG", "1")
    with pytest.raises(UserError, match="not found"):
        run("none.csv")


def test_parquet_asks_for_its_library(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write("in.csv", ["а"])
    monkeypatch.delitem(sys.modules, "receiptbert.parquet", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        SystemExit, match=r"Parquet needs the library pyarrow: pip install 'receiptbert\[parquet\]'"
    ):
        run("in.csv", "-o", "out.parquet")
    run("in.csv", "-o", "out.csv")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (MemoryError(), "out of memory; give a smaller --batch-size, end other programs, or"),
        (RuntimeError("CUDA error: no kernel image is available"), "or set --device cpu"),
    ],
)
def test_what_the_device_refuses_is_told_in_terms_of_the_command(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, advice: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    write("in.csv", ["а"])
    monkeypatch.setattr(Classifier, "__call__", refuse)
    with pytest.raises(SystemExit, match=advice):
        run("in.csv", "-o", "out.csv")


def test_a_closed_pipe_is_the_end_and_no_error(
    run: Run, texts: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write("in.csv", texts)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        with pytest.raises(SystemExit) as end:
            run("in.csv")
    assert end.value.code == 141
    assert not capfd.readouterr().err


def test_a_full_stdout_ends_it_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("чай\n")
    command = [sys.executable, "-m", "receiptbert", "predict", "in.txt", "--model", str(checkpoint)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 1
    assert ended.stderr.startswith("receiptbert: error: No space left on device")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "--top-k", "0"], "--top-k: 0 is not a whole number from 1"),
        (["predict", "--shard", "0/2"], "--shard: 0/2 is not a part such as 1/4"),
        (["predict", "--shard", "half"], "--shard: half is not a part such as 1/4"),
        (["predict", "--min-confidence", "80"], "--min-confidence: 80 is not a number from 0 to 1"),
        (["predict", "--min-confidence", "1.5"], "--min-confidence: 1.5 is not a number from 0 to 1"),
        (["predict", "--min-confidence", "nan"], "--min-confidence: nan is not a number from 0 to 1"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_arguments_that_make_no_sense(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert message in capsys.readouterr().err
    assert f"bad arguments: {end.value.code}" in cli.EPILOG


def test_defaults_are_those_of_the_classifier() -> None:
    args = cli.make_parser().parse_args(["predict"])
    parameters = inspect.signature(Classifier.from_pretrained).parameters
    for name in ("device", "precision", "batch_size"):
        assert getattr(args, name) == parameters[name].default


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
