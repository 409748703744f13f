"""Parquet tables, read and written a chunk at a time; needs the library ``pyarrow``."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from pyarrow import parquet

from receiptbert.errors import UserError
from receiptbert.tables import CHUNK, Column, Table, Write

TYPES = {str: pa.string(), float: pa.float64()}


class ParquetTable:
    """A table in a Parquet file.

    Raises:
        UserError: it is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = parquet.ParquetFile(path)
        except pa.ArrowInvalid as error:
            raise UserError(f"{path} is no Parquet file: {error}") from None
        self.schema: pa.Schema = self._file.schema_arrow
        self.columns: list[str] = self.schema.names

    def count(self) -> int:
        """The number of rows, which the file tells."""
        return int(self._file.metadata.num_rows)

    def chunks(self) -> Iterator[list[Column]]:
        """The rows, ``CHUNK`` at a time, as arrow arrays."""
        for batch in self._file.iter_batches(batch_size=CHUNK):
            yield batch.columns

    def texts(self, column: Column) -> list[str]:
        """The column as strings, missing ones empty."""
        assert isinstance(column, pa.Array)
        try:
            return ["" if text is None else text for text in column.cast(pa.string()).to_pylist()]
        except pa.ArrowException as error:
            raise UserError(f"{self._path}: the column of texts is {column.type}: {error}") from None


@contextmanager
def parquet_writer(stream: BinaryIO, table: Table, answers: dict[str, type]) -> Iterator[Write]:
    """Write rows as Parquet: the columns of ``table``, of the same types if it is Parquet, and ``answers``.

    Args:
        answers: the type, str or float, of each further column.
    """
    if isinstance(table, ParquetTable):
        fields, metadata = list(table.schema), table.schema.metadata
    else:
        fields, metadata = [pa.field(name, pa.string()) for name in table.columns], None
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
