"""Say what is wrong with a CSV: its encoding, its delimiter, a quote that opens and does not close.

``check_bytes``, ``check_header`` and ``place_of_bad_quotes`` look at every corpus; the rest runs after a
failure. ``receiptbert predict``, too, takes from here how to decode text and which rows are blank.
"""

import csv
import re
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from receiptbert.errors import UserError

CHUNK = 1 << 20
DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
RUSSIAN_ENCODINGS = {"cp1251": "windows-1251", "cp866": "cp866 (DOS)", "koi8-r": "koi8-r"}
FREQUENT_LETTERS = set("оеаинтсрвлкмпОЕАИНТСРВЛКМП")
# The encoding of Russian Windows and Excel; on short samples others may seem to fit as well.
LIKELIEST, MARGIN = "windows-1251", 0.1
BYTE_ORDER_MARK = "\ufeff"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
ZIP = b"PK\x03\x04"  # no text either, though the line that it begins may be decodable
# How files that are not text begin.
OTHER_KINDS = {
    ZIP: "a zip or an Excel workbook",
    b"\x1f\x8b": "gzip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"PAR1": "Parquet",
}


def utf8_lines(stream: BinaryIO, called: str) -> Iterator[str]:
    """The lines of a text, with their line endings and without a byte order mark.

    Raises:
        UserError: a line is not UTF-8 or has NUL bytes, which no text has; the message names the line, and
            what the text seems to be instead.
    """
    # Decoded line by line: the error can name the line.
    for number, line in enumerate(stream, start=1):
        try:
            text = line.decode()
        except UnicodeDecodeError:
            text = "\0"  # as bad as that
        if "\0" in text or line.startswith(ZIP):
            raise _no_text(called, number, line, stream.read(CHUNK))
        yield text.removeprefix(BYTE_ORDER_MARK) if number == 1 else text


def _no_text(called: str, number: int, line: bytes, following: bytes) -> UserError:
    sample = line + following
    if number == 1 and (kind := kind_of(line)):
        return UserError(f"{called} is not text but {kind}; unpack it, or export it as CSV")
    if (number == 1 and line.startswith(UTF16_MARKS)) or _seems_utf16(sample):
        return UserError(f"{called}: not UTF-8, it seems to be utf-16; save it as UTF-8")
    try:
        line.decode()
    except UnicodeDecodeError as error:
        encoding = guess_encoding(sample[error.start :])
        seems = f", it seems to be {encoding}" if encoding else ""
        return UserError(f"{called}, line {number}: not UTF-8{seems}; save it as UTF-8")
    return UserError(f"{called}, line {number}: a NUL byte, which no text has; export the file again")


def kind_of(beginning: bytes) -> str | None:
    """What a file that begins like this is, if it is one of ``OTHER_KINDS``."""
    return next((kind for mark, kind in OTHER_KINDS.items() if beginning.startswith(mark)), None)


def _seems_utf16(sample: bytes) -> bool:
    """Whether every other byte is 0 or 4, as in English and Russian text in UTF-16."""
    halves = [sum(map(half.count, (0, 4))) for half in (sample[::2], sample[1::2])]
    return len(sample) > 3 and max(halves) > 0.4 * len(sample) and min(halves) < 0.1 * len(sample)


def not_utf8(path: Path, called: str) -> UserError:
    """The error for a file that ``utf8_lines`` refuses."""
    try:
        with path.open("rb") as file:
            deque(utf8_lines(file, called), maxlen=0)
    except UserError as error:
        return error
    return UserError(f"{called} was changed while it was read; try again")


def check_bytes(path: Path, called: str) -> None:
    """Raise a ``UserError`` if the file has NUL bytes, which no text has."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            if b"\0" in chunk:
                raise not_utf8(path, called)


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


def guess_encoding(sample: bytes) -> str | None:
    """What text that is not UTF-8 seems to be; None if nothing fits well."""
    runs = re.findall(rb"[\x80-\xff]+", sample)
    foreign = b"".join(runs)
    if len(sample.decode(errors="ignore").encode()) - (len(sample) - len(foreign)) > 0.8 * len(foreign):
        return "utf-8 with a few damaged bytes"
    if len(foreign) < 1.5 * len(runs):  # alone between plain letters, as in "crème"
        return "latin-1 or windows-1252"
    fits = {
        name: _likeness_to_russian(sample.decode(codec, "replace"), len(foreign))
        for codec, name in RUSSIAN_ENCODINGS.items()
    }
    best = max(fits, key=fits.__getitem__)
    if fits[LIKELIEST] > fits[best] - MARGIN:
        best = LIKELIEST
    return best if fits[best] > 0.4 else None


def _likeness_to_russian(text: str, foreign: int) -> float:
    """The share of frequent letters among ``foreign`` bytes; capitals after small letters count against it.

    The bytes of "Чай" in windows-1251 are "вЮИ" in koi8-r, and the other way round.
    """
    frequent = sum(letter in FREQUENT_LETTERS for letter in text)
    return (frequent - 2 * len(re.findall("[а-яё][А-ЯЁ]", text))) / foreign


def place(path: Path, index: int) -> str:
    """Where the data row ``index`` is: ``row 17``, the header being row 1; the line too if it differs.

    Blank lines, which are no data, count as rows, as they do in a spreadsheet.
    """
    data_rows = 0
    with _open(path) as reader:
        row = line = 1
        for row, fields in enumerate(reader, start=1):
            data_rows += not is_blank(fields)
            if data_rows == index + 2:
                return _shown(row, line)
            line = reader.line_num + 1
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
        for row, fields in enumerate(reader, start=1):
            if is_blank(fields):
                continue
            width = width or len(fields)
            if len(fields) > width:
                return f"row {row}: {len(fields)} fields, but the header has {width}"
    return None


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
