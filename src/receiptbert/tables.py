"""Tables as text, read and written a chunk at a time: CSV, TSV, plain lines, JSON lines.

A chunk is a list of columns. Parquet, which needs a library of its own, is in ``parquet``.
"""

import csv
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias

from receiptbert.errors import UserError

# Rows in a chunk: enough for texts of like length to find each other, little enough to be no load for memory.
CHUNK = 20_000

Column: TypeAlias = Sequence[Any]
Write: TypeAlias = Callable[[Sequence[Column]], None]

TEXT = "text"  # the one column of plain lines
BYTE_ORDER_MARK = "\ufeff"
DELIMITERS = {"csv": ",;\t", "tsv": "\t"}  # which one a CSV has, its header tells

# A spreadsheet runs a cell that begins so; a number may.
FORMULA = re.compile(r"[=+\-@\t\r\n](?!\d+([.,]\d+)?$)")


class Table(Protocol):
    """A table that can be read."""

    columns: list[str]

    def count(self) -> int | None:
        """The number of rows, after a look at all of them for errors; None if they can be read but once."""

    def chunks(self) -> Iterator[list[Column]]:
        """The rows, ``CHUNK`` at a time."""

    def texts(self, column: Column) -> list[str]:
        """A column of texts as such."""


class TextTable:
    """A table that is text, in a file or on stdin.

    Args:
        path: the file; None for stdin.
        kind: csv, tsv or lines.

    Raises:
        UserError: not UTF-8, or no table; the message names the line.
    """

    def __init__(self, path: Path | None, kind: str) -> None:
        self._path = path
        self.kind = kind
        self.delimiter = ","  # of a CSV or TSV its own, once the header is read
        self._rows = self._parse()
        self.columns = next(self._rows)

    def count(self) -> int | None:
        """The number of rows, after a look at all of them; None for stdin."""
        if self._path is None or not self._path.is_file():
            return None
        return sum(1 for _ in self._parse()) - 1

    def chunks(self) -> Iterator[list[Column]]:
        """The rows, ``CHUNK`` at a time."""
        while rows := list(islice(self._rows, CHUNK)):
            yield [list(column) for column in zip(*rows, strict=True)]

    def texts(self, column: Column) -> list[str]:
        """The column as it is."""
        return list(column)

    @property
    def _name(self) -> str:
        return "stdin" if self._path is None else str(self._path)

    def _parse(self) -> Iterator[list[str]]:
        """The names of the columns, then the rows."""
        lines = self._lines()
        if self.kind == "lines":
            yield [TEXT]
            yield from ([line.rstrip("\r\n")] for line in lines)
        else:
            yield from self._parse_delimited(lines)

    def _parse_delimited(self, lines: Iterator[str]) -> Iterator[list[str]]:
        head = []
        for line in lines:
            head.append(line)
            if line.strip():
                break
        self.delimiter = max(DELIMITERS[self.kind], key="".join(head).count)
        # Not strict, it would take a quote left open at its word and swallow the rest of the file.
        rows = csv.reader(chain(head, lines), delimiter=self.delimiter, strict=True)
        try:
            width = 0
            for row in rows:
                if not row:
                    continue  # an empty line; an empty text is "" there
                width = width or len(row)
                if any(row[width:]):
                    raise UserError(
                        f"{self._name}, line {rows.line_num}: {len(row)} fields, the header has {width}; "
                        f"quote texts that have {self.delimiter!r} in them"
                    )
                yield row[:width] + [""] * (width - len(row))
        except csv.Error as error:
            raise UserError(
                f"{self._name}, line {rows.line_num}: {error}; texts that have quotes in them "
                'must be quoted, and each such quote doubled ("")'
            ) from None
        if not width:
            raise UserError(f"{self._name} is empty; its first line must name the columns")

    def _lines(self) -> Iterator[str]:
        # Decoded line by line: the error can name the line.
        with open_binary(self._path) as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{self._name}, line {number} is not UTF-8 ({error.reason}); convert the file, "
                        "as with iconv -f cp1251 -t utf-8"
                    ) from None
                yield text.removeprefix(BYTE_ORDER_MARK) if number == 1 else text


@contextmanager
def open_binary(path: Path | None) -> Iterator[BinaryIO]:
    """The file to read; stdin, which stays open, for None."""
    if path is None:
        yield sys.stdin.buffer
    else:
        with path.open("rb") as stream:
            yield stream


@contextmanager
def open_output(path: Path | None) -> Iterator[BinaryIO]:
    """What to write to: stdout for None, else a file that appears under its name only when it is whole.

    The rows go to a temporary file beside it, which takes the name at the end; if anything fails, it is
    removed, and what had the name before stays as it was.
    """
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = path.resolve()  # of a link, the file behind it
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no file; name one, or leave --output out to write to stdout")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is no folder; make it, or name another")
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def delimited_writer(
    stream: BinaryIO, columns: Sequence[str], delimiter: str, spreadsheet: bool
) -> Iterator[Write]:
    """Write rows as CSV or TSV.

    Args:
        spreadsheet: begin with a byte order mark, by which Excel knows UTF-8, and put an apostrophe before
            texts that a spreadsheet would take for a formula.
    """
    with _as_text(stream, "utf-8-sig" if spreadsheet else "utf-8") as text:
        writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")

        def write(chunk: Sequence[Column]) -> None:
            rows = _rows(chunk)
            writer.writerows(map(_harmless, rows) if spreadsheet else rows)

        write([[name] for name in columns])
        yield write


@contextmanager
def json_writer(stream: BinaryIO, columns: Sequence[str]) -> Iterator[Write]:
    """Write rows as JSON lines: one object a row."""

    def write(chunk: Sequence[Column]) -> None:
        for row in _rows(chunk):
            values = dict(zip(columns, map(_json_value, row), strict=True))
            text.write(json.dumps(values, ensure_ascii=False, default=str) + "\n")

    with _as_text(stream, "utf-8") as text:
        yield write


@contextmanager
def _as_text(stream: BinaryIO, encoding: str) -> Iterator[io.TextIOWrapper]:
    text = io.TextIOWrapper(stream, encoding=encoding, newline="")
    try:
        yield text
    finally:
        text.detach()  # or it would close the stream, stdout perhaps


def _rows(chunk: Sequence[Column]) -> Iterator[tuple[Any, ...]]:
    """The rows of a chunk, whose columns may be arrow arrays."""
    columns = (column.to_pylist() if hasattr(column, "to_pylist") else column for column in chunk)
    return zip(*columns, strict=True)


def _json_value(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _harmless(row: tuple[Any, ...]) -> list[Any]:
    return [f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) else cell for cell in row]
