"""Bad input, arguments and circumstances, each with the line that ``receiptbert predict`` must end with."""

import io
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from receiptbert import Classifier, cli
from tests.predict_runs import Run, files, write


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


def test_parquet_in_a_pipe(run: Run) -> None:
    os.mkfifo("in.parquet")
    with pytest.raises(SystemExit, match=r"in\.parquet is a pipe, but Parquet is not read from its"):
        run("in.parquet", "-o", "out.csv")


def test_parquet_whose_rows_are_damaged(run: Run) -> None:
    parquet.write_table(pa.table({"text": ["аб" * 300] * 9}), "in.parquet", use_dictionary=False)
    content = bytearray(Path("in.parquet").read_bytes())
    content[4:60] = b"\xff" * 56
    Path("in.parquet").write_bytes(content)
    with pytest.raises(
        SystemExit, match=r"error: in\.parquet is not a Parquet file, or is damaged \(.+\); ex"
    ):
        run("in.parquet", "-o", "out.csv")


def test_what_the_system_says_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write("in.csv", ["а"])
    monkeypatch.setattr("receiptbert.tables.open_binary", lambda _: Path("no\nfile").stat())
    with pytest.raises(SystemExit, match=r"^receiptbert: error: no\\nfile: No such file or directory$"):
        run("in.csv")


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
    (b"tea\rcheese\r", ["in.csv", "--from", "lines"], "in.csv: a carriage return without a line feed; save"),
    (
        b'text\n"a" b\n',
        ["in.csv"],
        "in.csv, line 2: the end of the line expected after '\"'; texts that have",
    ),
    (b"text,id\na,1\nb,c,2\n", ["in.csv"], "in.csv, line 3: 3 fields, the header has 2; quote texts that"),
    (b'text,id\n"a,1\nb,2\n', ["in.csv"], "in.csv, line 2: unexpected end of data; texts that have quotes"),
    (b'text,id\n"a" b,1\n', ["in.csv"], "in.csv, line 2: ',' expected after '\"'; texts that have quotes"),
    (b"text\n", ["in.csv", "-o", "no/out.csv"], "no is not a folder; create it, or name another"),
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
        ["in.csv", "-o", "/dev/stdout", "--to", "csv"],
        "/dev/stdout is not a file; name one, or omit --output to write to stdout",
    ),
    (
        b"text\n",
        ["in.csv", "-o", "/dev/fd/1", "--to", "csv"],  # a name in /proc
        "/dev/fd/1 is not a file; name one, or omit --output to write to stdout",
    ),
    (
        b"text\n",
        ["in.dat"],
        "in.dat: unknown extension; known are .csv, .tsv, .tab, .parquet, .pq, .txt; if the file is "
        "one of them under another name, give the format with --from",
    ),
    (
        b"text\n",
        ["my in.csv.gz"],
        "my in.csv.gz is compressed; unpack it, into a pipe for example: zcat 'my in.csv.gz' | receiptbert "
        "predict --from csv",
    ),
    (
        b"text\n",
        ["in.txt.xz"],
        "in.txt.xz is compressed; unpack it, into a pipe for example: xzcat in.txt.xz | receiptbert "
        "predict --from lines",
    ),
    (b"text\n", ["in.parquet.gz"], "in.parquet.gz is compressed; unpack it"),
    (b"text\n\xff\n", ["in.csv", "--model", "nowhere"], "nowhere is not a folder in /"),
    (b"text\n", ["none.csv"], "none.csv not found"),
    (
        b"text\n",
        ["in.csv", "--precision", "fp16"],
        "precision = fp16, which this cpu does not support; set auto",
    ),
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
        ["in.csv", "-o", "o.jsonl", "--model", "none"],  # told before a model is loaded
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
        b"\n \ntext,id\ntea,1\n",
        ["-"],
        "stdin is read as plain lines, but the first of them names a column 'text'",
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
    (
        ",".join(f"column {number}" for number in range(3000)).encode() + b"," + b"x" * 99 + b"\n",
        ["in.csv"],
        "choose one with --column among " + ", ".join(f"'column {n}'" for n in range(20)) + " and 2,981 more",
    ),
    (
        "Код\ttext\n1\tчай\n".encode(),
        ["in.txt"],
        "in.txt is read as plain lines, but the first of them names a column 'text'; give --from csv, or",
    ),
    (
        "Код\tИмя\n1\tчай\n".encode(),
        ["in.txt", "--column", "Имя"],
        "in.txt is read as plain lines, which have no column 'Имя'; give --from csv",
    ),
    (b"", ["model"], "model is a folder; name a file in it"),
    (b"", ["none"], "none not found"),
    (b"PK\x03\x04\n\0", ["in.csv"], "in.csv is not text but a zip or an Excel workbook; unpack it, or"),
    (b"\x1f\x8b\x08\0\0\0", ["in.csv"], "in.csv is not text but gzip; unpack it, or export it as CSV"),
]


@pytest.mark.parametrize(("content", "arguments", "message"), BAD, ids=[message[:45] for *_, message in BAD])
def test_bad_input_ends_in_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, content: bytes, arguments: list[str], message: str
) -> None:
    for name in {"in.csv", arguments[0]} - {"-", "none", "none.csv", "model"}:
        Path(name).write_bytes(content)
    before = files()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    line = str(end.value.code)
    assert line.startswith("receiptbert: error: ")
    assert message in line
    assert "\n" not in line
    assert files() == before


def test_errors_late_in_a_file_are_found_before_any_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("in.csv").write_text("text,id\n" + "а,1\n" * 50_000 + "а,б,1\n", encoding="utf-8")
    monkeypatch.setattr(Classifier, "__call__", pytest.fail)
    with pytest.raises(SystemExit, match="line 50002: 3 fields"):
        run("in.csv", "-o", "out.csv")


def test_an_error_leaves_nothing_on_stdout(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    write("in.csv", ["а"])
    with pytest.raises(SystemExit, match="device = abacus names no device"):
        run("in.csv", "--device", "abacus")
    assert not capfd.readouterr().out


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "--top-k", "0"], "--top-k: 0 is not a whole number from 1 to 999"),
        (["predict", "--shard", "0/2"], "--shard: 0/2 is not a part such as 1/4"),
        (["predict", "--shard", "3/2"], "--shard: 3/2 is not a part such as 1/4"),
        (["predict", "--shard", "half"], "--shard: half is not a part such as 1/4"),
        (["predict", "--min-confidence", "80"], "--min-confidence: 80 is not a number from 0 to 1"),
        (["predict", "--min-confidence", "1.5"], "--min-confidence: 1.5 is not a number from 0 to 1"),
        (["predict", "--min-confidence", "nan"], "--min-confidence: nan is not a number from 0 to 1"),
        (["predict", "a.csv", "b.csv"], "unrecognized arguments: b.csv; a command takes one file"),
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
