"""``receiptbert predict``: formats in and out, and what of a table is kept."""

import csv
import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.conftest import CATEGORIES, LABELS
from tests.predict_runs import Run, give_stdin, read, write


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
    Path("in.csv").write_text("id|text\n1|чай, 2;5\n", encoding="utf-8")
    run("in.csv", "-o", "out.csv")
    assert [row["text"] for row in read("out.csv", "|")] == ["чай, 2;5"]
    Path("in.csv").write_text("a,text\n1;2;3,чай\n", encoding="utf-8")
    run("in.csv", "-o", "out.csv")
    assert [row["text"] for row in read("out.csv")] == ["чай"]


def test_what_can_be_read_only_once_is_read_once(run: Run) -> None:
    """As the shell's ``<(zcat receipts.csv.gz)``."""
    reading, writing = os.pipe()
    os.write(writing, "text\nчай\nсыр\n".encode())
    os.close(writing)
    run(f"/dev/fd/{reading}", "--from", "csv", "-o", "out.csv")
    os.close(reading)
    assert [row["text"] for row in read("out.csv")] == ["чай", "сыр"]


def test_a_header_on_stdin_may_be_a_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    give_stdin(monkeypatch, "text\nчай\n")
    run("--from", "lines", "-o", "out.csv")
    assert [row["text"] for row in read("out.csv")] == ["text", "чай"]


def test_extensions_may_be_in_capitals(run: Run) -> None:
    write("IN.CSV", ["чай"])
    run("IN.CSV", "-o", "OUT.TSV")
    assert [row["text"] for row in read("OUT.TSV", "\t")] == ["чай"]


def test_plain_lines_keep_their_spaces(run: Run) -> None:
    Path("in.txt").write_bytes(" чай \t\r\nсыр\n".encode())
    run("in.txt", "-o", "out.csv")
    assert [row["text"] for row in read("out.csv")] == [" чай \t", "сыр"]


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


def test_a_quote_that_may_have_swallowed_rows_is_told(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    told = "a quote opens here and closes lines later; if these are several rows, double"
    for content, line in (
        ('id;text\n1;"чай\n2;сок\n3;пицца 12"\n4;хлеб\n', 2),
        ('text\nхлеб\n"чай\nсок 12"\n', 3),
    ):
        Path("in.csv").write_text(content, encoding="utf-8")
        run("in.csv", "-o", "out.csv")
        assert capsys.readouterr().err.count(f"in.csv, line {line}: {told}") == 1  # though it is read twice
    Path("in.csv").write_text('id;text\n1;"чай\nчёрный"\n', encoding="utf-8")
    run("in.csv", "-o", "out.csv")
    assert "a quote" not in capsys.readouterr().err


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


@pytest.mark.parametrize("name", ["in.csv", "in.tsv", "in.parquet", "in.txt"])
def test_a_table_without_rows_is_labelled(run: Run, name: str) -> None:
    own = ["text"] if name == "in.txt" else ["id", "text"]
    Path("in.csv").write_text("id,text\n")
    Path("in.tsv").write_text("id\ttext\n")
    Path("in.txt").write_text("")
    parquet.write_table(
        pa.table({"id": pa.array([], pa.int64()), "text": pa.array([], pa.string())}), "in.parquet"
    )
    run(name, "-o", "out.csv")
    assert Path("out.csv").read_text() == ",".join([*own, "label", "category", "confidence"]) + "\n"
    run(name, "-o", "out.parquet")
    written = parquet.read_table("out.parquet")
    kinds = {"label": pa.string(), "category": pa.string(), "confidence": pa.float64()}
    kinds = dict.fromkeys(own, pa.string()) | kinds
    if name == "in.parquet":
        kinds["id"] = pa.int64()
    assert written.schema.equals(pa.schema(kinds))
    assert len(written) == 0


def test_texts_of_the_only_column_may_have_delimiters(run: Run) -> None:
    texts = ["СОК 0,2; 6 ШТ,", "\tа;", '"б",', "в"]
    Path("in.csv").write_text('text\nСОК 0,2; 6 ШТ,\n\tа;\n"""б"","\nв\n', encoding="utf-8")
    run("in.csv", "-o", "out.csv")
    assert [row["text"] for row in read("out.csv")] == texts
    assert Path("out.csv").read_text(encoding="utf-8").startswith("text,label,category,confidence\n")


def test_columns_that_collide_with_ours_stay(run: Run) -> None:
    Path("in.csv").write_text("text,Label\nа,5\n", encoding="utf-8")  # to Spark and Hive one name
    run("in.csv", "-o", "out.csv")
    assert list(read("out.csv")[0])[:3] == ["text", "Label", "predicted_label"]
    Path("in.csv").write_text("text,label,predicted_label\nа,5,6\n", encoding="utf-8")
    run("in.csv", "-o", "out.csv")
    (row,) = read("out.csv")
    assert (row["label"], row["predicted_label"]) == ("5", "6")
    assert row["predicted_predicted_label"] in LABELS
    assert row["predicted_predicted_category"] in CATEGORIES


def test_formulas_are_made_harmless_for_spreadsheets_alone(run: Run) -> None:
    cells = ["=1+1", "-а", "@а", "+7 а", "\t=1", "-5,5", "+3", "а=1"]
    write("in.csv", cells)
    run("in.csv", "-o", "plain.csv")
    assert [row["text"] for row in read("plain.csv")] == cells
    run("in.csv", "--spreadsheet", "-o", "out.csv")
    assert Path("out.csv").read_bytes().startswith(b"\xef\xbb\xbftext,")
    harmless = [row["\ufefftext"] for row in read("out.csv")]
    assert harmless == ["'=1+1", "'-а", "'@а", "'+7 а", "'\t=1", "-5,5", "+3", "а=1"]
    # A line break in front hides nothing, and a name is a cell, too.
    Path("in.csv").write_bytes(b'text,=1+1\n"\r=1","\n=1"\n')
    run("in.csv", "--spreadsheet", "-o", "out.csv")
    (row,) = read("out.csv")
    assert (row["\ufefftext"], row["'=1+1"]) == ("'\r=1", "'\n=1")
    # Nor does another delimiter, at which a spreadsheet may begin a new cell.
    write("in.csv", ["а;=А1", "а;-5;б", "а|+1+1", "а,@а", "а; =1", "а;+7,5", "а\n-б", 'а;"=1+1;б'])
    run("in.csv", "--spreadsheet", "-o", "out.csv")
    harmless = [row["\ufefftext"] for row in read("out.csv")]
    assert harmless == ["а;'=А1", "а;-5;б", "а|'+1+1", "а,'@а", "а; =1", "а;+7,5", "а\n'-б", "а;'\"=1+1;б"]
