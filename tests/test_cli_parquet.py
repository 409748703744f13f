"""``receiptbert predict``: Parquet in and out."""

import datetime
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.predict_runs import Run, read


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


def test_values_that_python_has_not_are_written_as_texts(run: Run) -> None:
    days = pa.array([20_454, 10**7, None], pa.int32()).cast(pa.date32())
    parquet.write_table(pa.table({"text": ["а", "б", "в"], "day": days}), "in.parquet")
    run("in.parquet", "-o", "out.csv")
    assert [row["day"] for row in read("out.csv")] == ["2026-01-01", "29349-01-26", ""]
    run("in.parquet", "-o", "out.parquet")
    assert parquet.read_table("out.parquet")["day"].combine_chunks() == days


def test_a_disk_that_fails_is_that_of_the_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    parquet.write_table(pa.table({"text": ["а"]}), "in.parquet")
    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", fail)
    with pytest.raises(SystemExit, match=r"^receiptbert: error: in\.parquet: Input/output error; the disk"):
        run("in.parquet", "-o", "out.csv")
