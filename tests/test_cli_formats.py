"""``receiptbert predict``: formats in and out, and what of a table is kept."""

import csv
import datetime
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
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


def test_types_of_parquet_are_kept(run: Run) -> None:
    day = pa.array([10**18 + 1, None], pa.timestamp("ns"))  # no Python datetime holds that nanosecond
    table = pa.table({"id": [1, None], "text": ["а б", None], "day": day, "tags": [["x"], []]})
    noted = dict.fromkeys(["org.apache.spark.sql.parquet.row.metadata", "parquet.avro.schema"], "id, text")
    table = table.replace_schema_metadata({"made by": "us", **noted})  # with those, ours would not be seen
    parquet.write_table(table, "in.parquet")
    run("in.parquet", "-o", "out.parquet")
    written = parquet.read_table("out.parquet")
    assert written.select(table.column_names) == table
    assert written.schema.metadata == {b"made by": b"us"}
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


def test_times_of_spark_are_kept(run: Run) -> None:
    """Its INT96 reaches further than the nanoseconds of pyarrow, which wrap without a word."""
    times = [datetime.datetime(9999, 12, 31), datetime.datetime(1600, 1, 1, 2, 3, 4, 500_000), None]
    table = pa.table({"text": ["а", "б", "в"], "until": pa.array(times, pa.timestamp("us"))})
    parquet.write_table(table, "in.parquet", use_deprecated_int96_timestamps=True, store_schema=False)
    run("in.parquet", "-o", "out.parquet")
    assert parquet.read_table("out.parquet")["until"].to_pylist() == times
    run("in.parquet", "-o", "out.csv")
    assert [row["until"] for row in read("out.csv")] == [
        "9999-12-31 00:00:00",
        "1600-01-01 02:03:04.500000",
        "",
    ]


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


def test_pandas_reads_what_it_wrote_with_numbers_for_names(run: Run) -> None:
    pd.DataFrame([["а", 1.5], ["б", 2.5]]).to_parquet("in.parquet")
    run("in.parquet", "--column", "0", "-o", "out.parquet")
    written = pd.read_parquet("out.parquet")
    assert list(written.columns) == ["0", "1", "label", "category", "confidence"]
    assert written["1"].tolist() == [1.5, 2.5]


def test_parquet_with_a_name_that_is_no_text_is_refused(run: Run) -> None:
    parquet.write_table(pa.table({"text": ["а"], "name": ["б"]}), "in.parquet")
    Path("in.parquet").write_bytes(Path("in.parquet").read_bytes().replace(b"name", b"n\xffme"))
    with pytest.raises(SystemExit, match=r"in\.parquet is not a Parquet file, or is damaged \("):
        run("in.parquet", "-o", "out.csv")


def test_texts_that_parquet_has_as_bytes_are_written_as_texts(run: Run) -> None:
    """As Impala and old versions of Spark and Hive write them."""
    for of in (pa.binary(), pa.large_binary()):
        parquet.write_table(pa.table({"text": pa.array(["а б".encode()], of)}), "in.parquet")
        run("in.parquet", "-o", "out.csv")
        assert Path("out.csv").read_text(encoding="utf-8").splitlines()[1].startswith("а б,")
        run("in.parquet", "-o", "out.jsonl")
        assert json.loads(Path("out.jsonl").read_text(encoding="utf-8").splitlines()[0])["text"] == "а б"


def test_numbers_of_parquet_are_written_in_as_few_digits_as_they_need(run: Run) -> None:
    prices = pa.array([9.99, float("nan"), None], pa.float32())
    parquet.write_table(pa.table({"text": ["а", "б", "в"], "price": prices}), "in.parquet")
    run("in.parquet", "-o", "out.csv")
    assert [row.split(",")[1] for row in Path("out.csv").read_text().splitlines()[1:]] == ["9.99", "nan", ""]
    run("in.parquet", "--column", "price", "-o", "out.jsonl")
    labels = [json.loads(row)["label"] for row in Path("out.jsonl").read_text().splitlines()]
    assert [label != "" for label in labels] == [True, False, False]


def test_values_within_columns_of_parquet_are_written_like_those_of_columns(run: Run) -> None:
    kind = pa.list_(pa.struct({"name": pa.binary(), "price": pa.float32()}))
    items = [[{"name": "сыр".encode(), "price": 9.99}, None], [], None]
    parquet.write_table(pa.table({"text": ["а", "б", "в"], "items": pa.array(items, kind)}), "in.parquet")
    run("in.parquet", "-o", "out.jsonl")
    written = [json.loads(line)["items"] for line in Path("out.jsonl").read_text("utf-8").splitlines()]
    assert written == [[{"name": "сыр", "price": 9.99}, None], [], None]


@pytest.mark.parametrize(
    ("kind", "value", "written"),
    [
        (pa.list_(pa.float32(), 1), [9.99], [9.99]),
        (pa.large_list(pa.float32()), [9.99], [9.99]),
        (pa.map_(pa.string(), pa.binary()), [("k", b"x")], [["k", "x"]]),
    ],
    ids=str,
)
def test_so_are_those_of_other_nested_types(run: Run, kind: Any, value: Any, written: Any) -> None:
    table = pa.table({"text": ["а", "б"], "more": pa.array([value, None], kind)})
    parquet.write_table(table, "in.parquet")
    run("in.parquet", "-o", "out.jsonl")
    lines = Path("out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["more"] for line in lines] == [written, None]


@pytest.mark.parametrize("kind", [pa.list_, lambda inner: pa.struct({"x": inner})], ids=["list", "struct"])
def test_a_dictionary_within_a_column_is_read_from_several_row_groups(
    run: Run, kind: Callable[[pa.DataType], pa.DataType]
) -> None:
    """As polars writes a list of categories."""
    of = kind(pa.dictionary(pa.int32(), pa.string()))
    values = [["a"], ["b"], ["a"]] if pa.types.is_list(of) else [{"x": "a"}, {"x": "b"}, {"x": "a"}]
    parquet.write_table(
        pa.table({"text": ["а", "б", "в"], "more": pa.array(values, of)}), "in.parquet", row_group_size=2
    )
    run("in.parquet", "-o", "out.jsonl")
    lines = Path("out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["more"] for line in lines] == values


def test_an_object_with_two_fields_of_one_name_loses_neither(run: Run) -> None:
    fields = pa.StructArray.from_arrays([pa.array([1]), pa.array([3])], names=["a", "a"])
    parquet.write_table(pa.table({"text": ["а"], "more": fields}), "in.parquet")
    with pytest.raises(SystemExit, match=r"in\.parquet, column more: .* \(two of its fields have one name\)"):
        run("in.parquet", "-o", "out.jsonl")
    run("in.parquet", "-o", "out.parquet")
    assert parquet.read_table("out.parquet")["more"].chunk(0).field(1).to_pylist() == [3]


def test_lists_and_objects_are_json_in_a_csv_and_harmless_in_a_spreadsheet(run: Run) -> None:
    items = [[{"day": datetime.date(2026, 1, 2), "note": "сыр;=1+1"}], None]
    parquet.write_table(pa.table({"text": ["а", "б"], "items": items}), "in.parquet")
    run("in.parquet", "-o", "out.csv")
    assert [row["items"] for row in read("out.csv")] == ['[{"day": "2026-01-02", "note": "сыр;=1+1"}]', ""]
    run("in.parquet", "--spreadsheet", "-o", "out.csv")
    assert read("out.csv")[0]["items"] == """[{"day": "2026-01-02", "note": "сыр;'=1+1"}]"""


@pytest.mark.parametrize("noted", ["null", "[]", "not json"])
def test_notes_for_pandas_that_pandas_has_not_written_are_left_out(run: Run, noted: str) -> None:
    table = pa.table({"text": ["а"]}).replace_schema_metadata({"pandas": noted, "other": "kept"})
    parquet.write_table(table, "in.parquet")
    run("in.parquet", "-o", "out.parquet")
    assert parquet.read_schema("out.parquet").metadata == {b"other": b"kept"}


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
