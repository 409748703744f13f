"""Say what is wrong with a CSV: its encoding, its delimiter, a quote that opens and does not close.

``check_bytes`` and ``check_header`` run before a file is read, ``place_of_bad_quotes`` once it could be read;
the rest only after a failure.
"""

import csv
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from receiptbert.errors import UserError

CHUNK = 1 << 20
DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
RUSSIAN_ENCODINGS = {"cp1251": "windows-1251", "cp866": "cp866 (DOS)", "koi8-r": "koi8-r"}
FREQUENT_LETTERS = set("оеаинтсрвлкмпОЕАИНТСРВЛКМП")


def check_bytes(path: Path, called: str) -> int:
    """The number of line feeds in the file.

    Raises:
        UserError: NUL bytes, which no text has.
    """
    line_feeds = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            if b"\0" in chunk:
                raise UserError(
                    _nul_bytes(path, called, line_feeds + chunk[: chunk.index(0)].count(b"\n") + 1)
                )
            line_feeds += chunk.count(b"\n")
    return line_feeds


def check_header(path: Path, called: str, columns: Sequence[str]) -> None:
    """Raise a ``UserError`` unless the header names each of ``columns`` once."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            header = next((row for row in csv.reader(file) if not _is_blank(row)), [])
        except csv.Error:  # a field without end
            raise UserError(f"{called} is not a CSV; its header must name {','.join(columns)}") from None
    if not header:
        raise UserError(f"{called} is empty; it needs a header that names {','.join(columns)}")
    if doubled := [name for name in columns if header.count(name) > 1]:
        raise UserError(f"{called} has two columns named {doubled[0]}; leave one")
    if missing := [name for name in columns if name not in header]:
        raise UserError(f"{called} lacks the column {missing[0]}; {_mend_header(header, columns)}")


def _mend_header(header: list[str], columns: Sequence[str]) -> str:
    line = ",".join(header)
    for delimiter, name in DELIMITERS.items():
        if set(columns) <= {field.strip(' "') for field in line.split(delimiter)}:
            return f"its columns seem to be separated by {name}: save it with commas"
    shown = line if len(line) <= 100 else f"{line[:100]}..."
    return f"its header is {shown!r} and must name {','.join(columns)}"


def not_utf8(path: Path, called: str) -> UserError:
    """What to say of a file that is not UTF-8: where that shows first, and what it seems to be instead."""
    number, line, sample = 0, b"", b""
    with path.open("rb") as file:
        while not sample:
            number, line = number + 1, file.readline()
            try:
                line.decode()
            except UnicodeDecodeError as error:
                sample = line[error.start :] + file.read(CHUNK)
    encoding = "utf-16" if number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff") else guess_encoding(sample)
    return UserError(f"{called}, line {number}: not UTF-8{_seems(encoding)}; save it as UTF-8")


def guess_encoding(sample: bytes) -> str | None:
    """What text that is not UTF-8 seems to be; None if nothing fits well."""
    runs = re.findall(rb"[\x80-\xff]+", sample)
    foreign = b"".join(runs)
    if len(sample.decode(errors="ignore").encode()) - (len(sample) - len(foreign)) > 0.8 * len(foreign):
        return "utf-8 with a few damaged bytes"
    if len(foreign) < 1.5 * len(runs):  # alone between plain letters, as in "crème"
        return "latin-1 or windows-1252"
    shares = {
        name: sum(letter in FREQUENT_LETTERS for letter in foreign.decode(codec, errors="replace"))
        / len(foreign)
        for codec, name in RUSSIAN_ENCODINGS.items()
    }
    best = max(shares, key=shares.__getitem__)
    return best if shares[best] > 0.5 else None


def _seems(encoding: str | None) -> str:
    return f", it seems to be {encoding}" if encoding else ""


def _nul_bytes(path: Path, called: str, line: int) -> str:
    with path.open("rb") as file:
        sample = file.read(CHUNK)
    utf16 = sample.count(0) > len(sample) / 4 or sample[:2] in (b"\xff\xfe", b"\xfe\xff")
    if utf16:
        return f"{called}: not UTF-8, it seems to be utf-16; save it as UTF-8"
    return f"{called}, line {line}: a NUL byte, which no text has; export the file anew"


def place(path: Path, index: int) -> str:
    """Where the data row ``index`` is: ``row 17``, the header being row 1; the line too where it is another.

    Blank lines, which are no data, count as rows, as they do in a spreadsheet.
    """
    data_rows = 0
    with _open(path) as reader:
        row = line = 1
        for row, fields in enumerate(reader, start=1):
            data_rows += not _is_blank(fields)
            if data_rows == index + 2:
                return _shown(row, line)
            line = reader.line_num + 1
    return f"row {index + 2}"


def place_of_bad_quotes(path: Path) -> str | None:
    """The first row whose quotes are not as they must be, as ``place`` says it; None if all are."""
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
        for row, fields in enumerate(reader, start=1):
            if _is_blank(fields):
                continue
            width = width or len(fields)
            if len(fields) > width:
                return f"row {row}: {len(fields)} fields, but the header has {width}"
    return None


def _shown(row: int, line: int) -> str:
    return f"row {row}" if row == line else f"row {row} (line {line})"


def _is_blank(fields: list[str]) -> bool:
    return not fields or (len(fields) == 1 and fields[0] != "" and not fields[0].strip())


@contextmanager
def _open(path: Path, strict: bool = False) -> Iterator[Any]:
    """A ``csv.reader`` that takes fields of any length."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield csv.reader(file, strict=strict)
    finally:
        csv.field_size_limit(limit)
