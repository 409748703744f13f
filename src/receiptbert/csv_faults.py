"""Say what is wrong with a CSV: its delimiter, a quote that opens and does not close, a row that is too wide.

``check_header`` and ``place_of_bad_quotes`` look at every corpus; the rest runs after a failure. The command
``predict``, too, takes from here which rows are blank, and how to allow fields of any length.
"""

import csv
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from receiptbert.errors import UserError

DELIMITER_NAMES = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def check_header(path: Path, called: str, columns: Sequence[str]) -> None:
    """Raise a ``UserError`` unless the header names each of ``columns`` once."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            header = next((row for row in csv.reader(file) if not is_blank(row)), [])
        except csv.Error:
            raise UserError(
                f"{called}: a name in its header is longer than {csv.field_size_limit():,} characters, or "
                f"its quote does not close; the header must name {','.join(columns)}"
            ) from None
    if not header:
        raise UserError(f"{called} is empty; it needs a header that names {','.join(columns)}")
    if doubled := [name for name in columns if header.count(name) > 1]:
        raise UserError(f"{called} has two columns named {doubled[0]}; keep one")
    if missing := [name for name in columns if name not in header]:
        raise UserError(f"{called} lacks the column {missing[0]}; {_mend_header(header, columns)}")


def _mend_header(header: list[str], columns: Sequence[str]) -> str:
    line = ",".join(header)
    for delimiter, name in DELIMITER_NAMES.items():
        if set(columns) <= {field.strip(' "') for field in line.split(delimiter)}:
            return f"its columns seem to be separated by {name}: save it with commas"
    shown = line if len(line) <= 100 else f"{line[:100]}..."
    return f"its header is {shown!r} and must name {','.join(columns)}"


def place(path: Path, index: int) -> str:
    """Where the data row ``index`` is: ``row 17``, the header being row 1; the line too if it differs.

    Blank lines, which are no data, count as rows, as they do in a spreadsheet.
    """
    data_rows = 0
    with _open(path) as reader:
        for row, line, fields in _numbered(reader):
            data_rows += not is_blank(fields)
            if data_rows == index + 2:
                return _shown(row, line)
    return f"row {index + 2}"


def place_of_bad_quotes(path: Path) -> str | None:
    """The first row with invalid quotes, worded as by ``place``; None if there is none."""
    with _open(path, strict=True) as reader:
        row = line = 1
        try:
            for _ in reader:
                row, line = row + 1, reader.line_num + 1
        except csv.Error:
            return _shown(row, line)
    return None


def too_wide(path: Path) -> str | None:
    """The first row with more fields than the header, and how many; None if there is none."""
    width = None
    with _open(path) as reader:
        for row, line, fields in _numbered(reader):
            if is_blank(fields):
                continue
            width = width or len(fields)
            if len(fields) > width:
                return f"{_shown(row, line)}: {len(fields)} fields, but the header has {width}"
    return None


def _numbered(reader: Any) -> Iterator[tuple[int, int, list[str]]]:
    """The number of each row, that of the line in which it begins, and its fields."""
    line = 1
    for row, fields in enumerate(reader, start=1):
        yield row, line, fields
        line = reader.line_num + 1


def _shown(row: int, line: int) -> str:
    return f"row {row}" if row == line else f"row {row} (line {line})"


def is_blank(fields: list[str]) -> bool:
    """Whether a row is an empty line or one of spaces, which is no row in a table of several columns.

    Spaces and tabs, as for pandas: a line with any other space in it has a field.
    """
    return not fields or (len(fields) == 1 and fields[0] != "" and not fields[0].strip(" \t"))


@contextmanager
def _open(path: Path, strict: bool = False) -> Iterator[Any]:
    # A file with two faults: bytes that are not UTF-8 must not keep a row from being found.
    with fields_of_any_length(), path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        yield csv.reader(file, strict=strict)


@contextmanager
def fields_of_any_length() -> Iterator[None]:
    """Lift the limit of 131,072 characters that the module ``csv`` sets for all its readers."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)
