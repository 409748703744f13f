"""Decode text, and say what is no UTF-8: another encoding, or another kind of file."""

import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from receiptbert.errors import UserError

BYTES_AT_ONCE = 1 << 20
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
            raise _no_text(called, number, line, stream.read(BYTES_AT_ONCE))
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
        while chunk := file.read(BYTES_AT_ONCE):
            if b"\0" in chunk:
                raise not_utf8(path, called)


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
