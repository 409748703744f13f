"""Parquet tables, read and written a chunk at a time; needs the library ``pyarrow``."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from receiptbert.errors import UserError
from receiptbert.files import naming
from receiptbert.tables import ROWS_AT_ONCE, Column, Table, Write

TYPES = {str: pa.string(), float: pa.float64()}
PANDAS = b"pandas"  # the key under which it notes how to make its table from the file
# Under these, Spark and Avro note the columns, and then read no others.
COLUMNS_NOTED = [b"org.apache.spark.sql.parquet.row.metadata", b"parquet.avro.schema", b"avro.schema"]


class ParquetTable:
    """A table in a Parquet file.

    Raises:
        UserError: it is not one, or damaged; damage to rows shows when they are read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = str(path)
        if path.is_fifo():
            raise UserError(f"{path} is a pipe, but Parquet is not read from its beginning; name a file")
        try:
            with _damage_named(path):
                # Spark's INT96, in nanoseconds as pyarrow has it by default: the year 9999 would become 1816.
                self._file = parquet.ParquetFile(path, coerce_int96_timestamp_unit="us")
        except UnicodeEncodeError:
            raise UserError(f"{path}: its name is not in UTF-8, as Parquet needs it; rename it") from None
        self.schema: pa.Schema = self._file.schema_arrow
        self.columns: list[str] = self.schema.names

    def count(self) -> int:
        """The number of rows, as the file records it."""
        return int(self._file.metadata.num_rows)

    def chunks(self) -> Iterator[list[Column]]:
        """The rows, ``ROWS_AT_ONCE`` at a time, as arrow arrays."""
        with naming(self._path), _damage_named(self._path):
            for row_groups in self._row_groups():
                for batch in self._file.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=row_groups):
                    yield batch.columns

    def _row_groups(self) -> list[list[int] | None]:
        """What to read at once: everything, unless a column has a dictionary inside of lists or structs,
        which pyarrow cannot join from several row groups."""
        types = [field.type for field in self.schema]
        if any("dictionary<" in str(kind) and not pa.types.is_dictionary(kind) for kind in types):
            return [[number] for number in range(self._file.num_row_groups)]
        return [None]

    def texts(self, column: Column) -> list[str]:
        """The column as strings, missing ones (in a column of numbers NaN, too) empty."""
        assert isinstance(column, pa.Array)
        known = pc.if_else(pc.is_nan(column), None, column) if pa.types.is_floating(column.type) else column
        try:
            return ["" if text is None else text for text in known.cast(pa.string()).to_pylist()]
        except (ValueError, pa.ArrowException) as error:
            raise UserError(
                f"{self._path}: the column of texts is {column.type}: {error}; make it one of texts in UTF-8"
            ) from None

    def values(self, chunk: list[Column]) -> list[Column]:
        """The columns as Python values; what these cannot hold, such as the year 10,000, as a string."""
        return [self._values(name, column) for name, column in zip(self.columns, chunk, strict=True)]

    def _values(self, name: str, column: Column) -> list[Any]:
        assert isinstance(column, pa.Array)
        try:
            return list(map(_value, column))
        except (ValueError, pa.ArrowException) as error:
            raise UserError(
                f"{self._path}, column {name}: a value of type {column.type} cannot be written as text "
                f"({error}); make it a column of texts, or write Parquet"
            ) from None


def _value(scalar: pa.Scalar) -> Any:
    if scalar.is_valid and pa.types.is_struct(scalar.type):
        if len({field.name for field in scalar.type}) < scalar.type.num_fields:
            raise ValueError("two of its fields have one name")
        return {name: _value(item) for name, item in scalar.items()}
    if scalar.is_valid and pa.types.is_map(scalar.type):
        return [[_value(entry[name]) for name in entry] for entry in scalar.values]
    if scalar.is_valid and isinstance(scalar, pa.ListScalar):  # of any of the list types
        return list(map(_value, scalar.values))
    try:
        value = scalar.as_py()
    except (ValueError, OverflowError, pa.ArrowException):
        return scalar.cast(pa.string()).as_py()
    if isinstance(value, float) and scalar.type == pa.float32():
        return float(scalar.cast(pa.string()).as_py())  # 9.99, where as a float of 64 bits it is 9.98999977
    # Some programs write texts without saying that they are texts.
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Name the file in errors about its content, which the library reports without it."""
    try:
        yield
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).strip()
        raise UserError(f"{path} is not a Parquet file, or is damaged ({reason}); export it again") from None


def _about_any_columns(metadata: dict[bytes, bytes] | None) -> dict[bytes, bytes]:
    """``metadata`` of a file, without what hides further columns or makes it unreadable with them."""
    kept = {key: value for key, value in (metadata or {}).items() if key not in COLUMNS_NOTED}
    if PANDAS in kept:  # which notes there if the names of all columns are numbers, say; ours are not
        try:
            kept[PANDAS] = json.dumps(json.loads(kept[PANDAS]) | {"column_indexes": []}).encode()
        except (ValueError, TypeError):  # not written by pandas
            del kept[PANDAS]
    return kept


@contextmanager
def parquet_writer(stream: BinaryIO, table: Table, answers: dict[str, type]) -> Iterator[Write]:
    """Write rows as Parquet: the columns of ``table``, of the same types if it is Parquet, and ``answers``.

    Args:
        answers: the type, str or float, of each further column.
    """
    if isinstance(table, ParquetTable):
        fields, metadata = list(table.schema), _about_any_columns(table.schema.metadata)
    else:
        fields, metadata = [pa.field(name, pa.string()) for name in table.columns], {}
    fields += [pa.field(name, TYPES[kind]) for name, kind in answers.items()]
    schema = pa.schema(fields, metadata)

    def write(chunk: Sequence[Column]) -> None:
        arrays = [
            pa.array(column, field.type) if not isinstance(column, pa.Array) else column
            for column, field in zip(chunk, fields, strict=True)
        ]
        writer.write_batch(pa.record_batch(arrays, schema))

    with parquet.ParquetWriter(stream, schema) as writer:
        yield write
