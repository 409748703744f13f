"""Tables as text, read and written a chunk at a time: CSV, TSV, plain lines, JSON lines.

A chunk is a list of columns. Parquet, which needs a library of its own, is in ``parquet``.
"""

import csv
import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias

from receiptbert.csv_faults import is_blank
from receiptbert.decoding import utf8_lines
from receiptbert.errors import UserError
from receiptbert.files import atomic_file, naming
from receiptbert.progress import say
from receiptbert.splits import TEXT

# Rows in a chunk: enough to batch texts of similar length, few enough to take little memory.
ROWS_AT_ONCE = 20_000

Column: TypeAlias = Sequence[Any]
Write: TypeAlias = Callable[[Sequence[Column]], None]

DELIMITERS = {"csv": ",;\t|", "tsv": "\t"}  # a CSV's header tells which one it has

UNIT_SEPARATOR = "\x1f"  # a control character that no text has
BARE_CARRIAGE_RETURN = "a carriage return without a line feed; save the file with line feeds"
MAX_HEAD = 100  # lines that a header has at the most

# Where a spreadsheet would see a formula: at the start of a cell, and after what it may take for a delimiter,
# whatever ours is (Excel's depends on the country). Numbers are harmless.
ENDS = r",;|\t\r\n"
FORMULA = re.compile(
    rf"^(?=[\t\r\n])|(?:^|(?<=[{ENDS}]))"  # at the start, or after a delimiter
    rf'(?="*[=+\-@](?!\d+([.,]\d+)?(?:$|[{ENDS}])))'  # what may be quoted and is no number
)


class Table(Protocol):
    """A table that can be read."""

    columns: list[str]
    name: str  # of the file, or ``stdin``

    def count(self) -> int | None:
        """The number of rows; None if they can be read only once. Text is checked for errors in all rows."""

    def chunks(self) -> Iterator[list[Column]]:
        """The rows, ``ROWS_AT_ONCE`` at a time."""

    def texts(self, column: Column) -> list[str]:
        """A column of texts as strings."""

    def values(self, chunk: list[Column]) -> list[Column]:
        """The columns of a chunk as Python's values."""


class TextTable:
    """A table that is text, in a file or on stdin.

    Args:
        path: the file; None for stdin.
        kind: csv, tsv or lines.
        column: the one that will be used; it helps to find the delimiter of a CSV.

    Raises:
        UserError: not UTF-8, or no table; the message names the line.
    """

    def __init__(self, path: Path | None, kind: str, column: str) -> None:
        self._path = path
        self.name = "stdin" if path is None else str(path)
        self.kind = kind
        self._column = column
        self.delimiter = ","  # replaced by that of the CSV or TSV when its header is read
        self._warned = False  # of swallowed rows: `count` reads them, too
        self._rows: Iterator[list[str]] = self._parse()
        self.columns = next(self._rows)

    def peek(self) -> list[str]:
        """The first row that is not blank, which is still to be read; empty if ``MAX_HEAD`` are blank."""
        first = list(islice(self._rows, MAX_HEAD))
        self._rows = chain(first, self._rows)
        return next((row for row in first if "".join(row).strip()), [])

    def count(self) -> int | None:
        """The number of rows, after checking all of them for errors; None for stdin."""
        if self._path is None or not self._path.is_file():
            return None
        return sum(1 for _ in self._parse()) - 1

    def chunks(self) -> Iterator[list[Column]]:
        """The rows, ``ROWS_AT_ONCE`` at a time."""
        while rows := list(islice(self._rows, ROWS_AT_ONCE)):
            yield [list(column) for column in zip(*rows, strict=True)]

    def texts(self, column: Column) -> list[str]:
        """The column as it is."""
        return list(column)

    def values(self, chunk: list[Column]) -> list[Column]:
        """The chunk as it is."""
        return chunk

    def _parse(self) -> Iterator[list[str]]:
        """The names of the columns, then the rows."""
        lines = self._lines()
        if self.kind == "lines":
            yield [TEXT]
            for number, line in enumerate(lines):
                text = line.rstrip("\r\n")
                if number == 0 and "\r" in text and not line.endswith("\n"):  # all lines end in that alone
                    raise UserError(f"{self.name}: {BARE_CARRIAGE_RETURN}")
                yield [text]
        else:
            yield from self._parse_delimited(lines)

    def _parse_delimited(self, lines: Iterator[str]) -> Iterator[list[str]]:
        head = _read_head(lines)
        self.delimiter = _find_delimiter(head, DELIMITERS[self.kind], self._column)
        # A table of one column needs none, so its texts may have any of them.
        alone = len(header_fields(head, self.delimiter)) == 1
        between = UNIT_SEPARATOR if alone else self.delimiter
        # If not strict, it would accept a quote left open and swallow the rest of the file.
        rows = csv.reader(chain(head, lines), delimiter=between, strict=True)
        width = 0
        start = 1  # the line in which the row begins that is read next
        try:
            for row in rows:
                begun, start = start, rows.line_num + 1
                # In a table of one column, a line of spaces is a row, whose text is blank.
                if not row or (width != 1 and is_blank(row)):
                    continue
                width = width or len(row)
                if rows.line_num > begun and not self._warned and _may_be_rows(row, between):
                    self._warned = True
                    say(
                        f"{self.name}, line {begun}: a quote opens here and closes lines later; if these are"
                        " several rows, double the quotes within texts, and quote those texts"
                    )
                yield self._padded(row, width, begun, between)
        except csv.Error as error:
            raise UserError(f"{self.name}, line {start}: {_explained(error)}") from None
        if not width:
            raise UserError(f"{self.name} is empty; its first line must name the columns")

    def _padded(self, row: list[str], width: int, line: int, between: str) -> list[str]:
        if any(row[width:]):
            raise UserError(
                f"{self.name}, line {line}: {len(row)} fields, the header has {width}; "
                f"quote texts that have {between!r} in them"
            )
        return row[:width] + [""] * (width - len(row))

    def _lines(self) -> Iterator[str]:
        with open_binary(self._path) as stream:
            yield from utf8_lines(stream, self.name)


def _read_head(lines: Iterator[str]) -> list[str]:
    """The lines of the header, and blank ones before it."""
    head: list[str] = []
    own = 0  # those of the header itself
    for line in lines:
        head.append(line)
        own += 1 if own or line.strip() else 0
        if own and ("".join(head).count('"') % 2 == 0 or own == MAX_HEAD):
            break
    return head


def _find_delimiter(head: Sequence[str], candidates: str, column: str) -> str:
    """The one of the ``candidates`` that a table seems to have in whose header there should be ``column``."""

    def likelihood(delimiter: str) -> tuple[bool, int, bool]:
        fields = header_fields(head, delimiter)
        # A comma may stand within a name (``Price, EUR``), hardly another delimiter.
        return column in fields, len(fields), len(fields) > 1 and delimiter != ","

    return max(candidates, key=likelihood)


def header_fields(head: Sequence[str], delimiter: str) -> list[str]:
    """The fields of the first row that is not blank, if ``delimiter`` separates them."""
    rows = csv.reader(io.StringIO("".join(head), newline=""), delimiter=delimiter)
    return next((row for row in rows if not is_blank(row)), [])


def _may_be_rows(row: list[str], between: str) -> bool:
    """Whether the lines of a field may be rows that a quote, opened by mistake, has swallowed."""
    rests = [rest for field in row if (rest := field.partition("\n")[2])]
    return any(between in rest or between == UNIT_SEPARATOR for rest in rests)


def _explained(error: csv.Error) -> str:
    if "new-line character" in str(error):
        return f"{BARE_CARRIAGE_RETURN}, or quote the text"
    expected = str(error).replace(f"'{UNIT_SEPARATOR}'", "the end of the line")
    return f'{expected}; texts that have quotes in them must be quoted, and each such quote doubled ("")'


@contextmanager
def open_binary(path: Path | None) -> Iterator[BinaryIO]:
    """The file to read; stdin, which stays open, for None."""
    if path is None:
        with naming(Path("stdin")):
            yield sys.stdin.buffer
    else:
        with naming(path), path.open("rb") as stream:
            yield stream


@contextmanager
def open_output(path: Path | None) -> Iterator[BinaryIO]:
    """What to write to: stdout for None, else a file that appears under its name only when it is whole."""
    if path is None:
        if sys.stdout is None:
            raise UserError("stdout is closed; name a file with --output")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    instead = ", or omit --output to write to stdout"
    with atomic_file(path, instead) as partial, partial.open("wb") as stream:
        yield stream


@contextmanager
def delimited_writer(
    stream: BinaryIO, columns: Sequence[str], delimiter: str, spreadsheet: bool
) -> Iterator[Write]:
    """Write rows as CSV or TSV; lists and objects, which Parquet may hold, as JSON.

    Args:
        spreadsheet: begin with a byte order mark, by which Excel detects UTF-8, and put an apostrophe before
            what a spreadsheet would take for a formula.
    """
    with _as_text(stream, "utf-8-sig" if spreadsheet else "utf-8") as text:
        writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
        # Python before 3.13 does not quote a carriage return, at which readers would end the row.
        quoting = csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)

        def write(chunk: Sequence[Column]) -> None:
            rows = zip(*map(_cells, chunk), strict=True)
            for row in map(_harmless, rows) if spreadsheet else rows:
                broken = any("\r" in cell for cell in row if isinstance(cell, str))
                (quoting if broken else writer).writerow(row)

        write([[name] for name in columns])
        yield write


@contextmanager
def json_writer(stream: BinaryIO, columns: Sequence[str]) -> Iterator[Write]:
    """Write rows as JSON lines: one object a row."""

    def write(chunk: Sequence[Column]) -> None:
        for row in zip(*chunk, strict=True):
            text.write(_json(dict(zip(columns, row, strict=True))) + "\n")

    with _as_text(stream, "utf-8") as text:
        yield write


@contextmanager
def _as_text(stream: BinaryIO, encoding: str) -> Iterator[io.TextIOWrapper]:
    text = io.TextIOWrapper(stream, encoding=encoding, newline="")
    try:
        yield text
    finally:
        text.detach()  # or it would close the stream, stdout perhaps


def _json(value: Any) -> str:
    return json.dumps(_json_value(value), ensure_ascii=False, allow_nan=False, default=str)


def _json_value(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    return value


def _cells(column: Column) -> list[Any]:
    return [_json(value) if isinstance(value, list | dict) else value for value in column]


def _harmless(row: tuple[Any, ...]) -> list[Any]:
    return [FORMULA.sub("'", cell) if isinstance(cell, str) else cell for cell in row]
