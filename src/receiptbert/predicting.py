"""``receiptbert predict``: label the lines of a table of any length, a chunk at a time."""

import argparse
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from itertools import chain, islice, repeat
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO

import receiptbert
from receiptbert.csv_faults import fields_of_any_length
from receiptbert.errors import UserError
from receiptbert.onednn import keep_shapes
from receiptbert.progress import say, track
from receiptbert.splits import TEXT
from receiptbert.tables import (
    DELIMITERS,
    Column,
    Table,
    TextTable,
    Write,
    delimited_writer,
    header_fields,
    json_writer,
    open_output,
)

if TYPE_CHECKING:
    from receiptbert.classifier import Prediction

TABLES = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet", ".pq": "parquet"}
INPUTS = {**TABLES, ".txt": "lines"}
UNPACKERS = {".gz": "zcat", ".bz2": "bzcat", ".xz": "xzcat", ".zst": "zstdcat"}
OUTPUTS = {**TABLES, ".jsonl": "jsonl", ".ndjson": "jsonl"}

# Decimals of a confidence: more than are meaningful, few enough not to depend on the rest of a batch.
DECIMALS = 4
NAMES_SHOWN, NAME_SHOWN = 20, 50  # columns in an error, and characters of each
NO_CANDIDATE = ("", "", 0.0)  # for an empty text, or a model with fewer classes than were asked for


@fields_of_any_length()
def predict(args: argparse.Namespace) -> None:
    """Run the command; ``args`` are those of ``cli``.

    Raises:
        UserError: bad input.
    """
    keep_shapes(args.precision)
    source = None if args.input == "-" else Path(args.input)
    target = None if args.output == "-" else Path(args.output)
    source_format = args.source_format or _format(source, INPUTS, "lines", "--from")
    table = open_table(source, source_format, args.column)
    if source_format == "lines" and args.source_format is None:
        _require_lines(table, args.column)
    kind = args.target_format or _format(target, OUTPUTS, "csv", "--to")
    text_column = _place(args.column, table)
    answers = answer_types(table.columns, args.top_k)
    with open_output(target) as stream:
        writer = _writer(kind, stream, table, answers, args.spreadsheet)
        # Loaded first: counting reads the whole input, which may take minutes.
        classifier = receiptbert.Classifier.from_pretrained(
            args.model, args.device, args.precision, args.batch_size
        )
        chunks, total = _part(table, args.shard)
        lines = unlabelled = 0
        with writer as write:
            for chunk in track(chunks, "predicting", total, "lines", lambda chunk: len(chunk[0])):
                predictions = classifier(table.texts(chunk[text_column]), args.top_k)
                columns = answer_columns(predictions, args.top_k, args.min_confidence)
                write([*(chunk if kind == "parquet" else table.values(chunk)), *columns])
                lines += len(predictions)
                unlabelled += columns[0].count("")
    if unlabelled:
        or_doubtful = ", or below --min-confidence" if args.min_confidence else ""
        say(f"{unlabelled:,} of {lines:,} lines got no label: empty{or_doubtful}")


def _part(table: Table, shard: tuple[int, int] | None) -> tuple[Iterator[list[Column]], int | None]:
    """The rows to label, in chunks, and how many there are, if that is known."""
    total, chunks = table.count(), table.chunks()
    if shard is None:
        return chunks, total
    if total is None:
        raise UserError(
            f"--shard counts the lines first, but {table.name} can be read only once; name a file"
        )
    number, shards = shard
    rows = range(total * (number - 1) // shards, total * number // shards)
    return rows_of(chunks, rows), len(rows)


def rows_of(chunks: Iterable[list[Column]], rows: range) -> Iterator[list[Column]]:
    """The rows of a table whose numbers are in ``rows``, in chunks."""
    before = 0
    for chunk in chunks:
        own = slice(max(rows.start - before, 0), max(rows.stop - before, 0))
        before += len(chunk[0])
        part = [column[own] for column in chunk]
        if len(part[0]):
            yield part
        if before >= rows.stop:
            return


def answer_types(columns: Sequence[str], top_k: int) -> dict[str, type]:
    """The names of the columns that are added, and whether they hold str or float.

    No name is taken twice: where the table has one of ours already, all of ours begin with ``predicted_``.
    Case does not matter: to Spark and Hive, ``Label`` and ``label`` are one.
    """
    ranks = ["", *(f"_{rank}" for rank in range(2, top_k + 1))]
    kinds = {"label": str, "category": str, "confidence": float}
    types = {f"{name}{rank}": kind for rank in ranks for name, kind in kinds.items()}
    taken = {column.casefold() for column in columns}
    while types.keys() & taken:
        types = {f"predicted_{name}": kind for name, kind in types.items()}
    return types


def answer_columns(
    predictions: Sequence["Prediction"], top_k: int, min_confidence: float
) -> list[list[str | float]]:
    """The columns that are added, as ``answer_types`` names them; too low a confidence empties the labels."""
    rows = []
    for prediction in predictions:
        sure = round(prediction.confidence, DECIMALS) >= min_confidence
        ranked = chain([prediction[:3]], prediction.runners_up, repeat(NO_CANDIDATE))
        row: list[str | float] = []
        for label, category, confidence in islice(ranked, top_k):
            row += [label if sure else "", category if sure else "", round(confidence, DECIMALS)]
        rows.append(row)
    return [list(column) for column in zip(*rows, strict=True)]


def _format(path: Path | None, known: dict[str, str], default: str, option: str) -> str:
    """The format that the file's extension names; for stdin and stdout, ``default``."""
    if path is None:
        return default
    ending = path.suffix.lower()
    if ending in known:
        return known[ending]
    if option == "--from":
        require_file(path)  # a folder, too, may have no extension that we know
        if ending in UNPACKERS:
            inner = known.get(Path(path.stem).suffix.lower(), default)
            pipe = f"{UNPACKERS[ending]} {shlex.quote(str(path))} | receiptbert predict --from {inner}"
            into_a_pipe = "" if inner == "parquet" else f", into a pipe for example: {pipe}"
            raise UserError(f"{path} is compressed; unpack it{into_a_pipe}")
    raise UserError(
        f"{path}: unknown extension; known are {', '.join(known)}; if the file is one of them "
        f"under another name, give the format with {option}"
    )


def open_table(path: Path | None, kind: str, column: str = TEXT) -> Table:
    """A table to read, in the format ``kind``; stdin for None.

    Raises:
        UserError: there is no such file, it cannot be read, or it is no such table.
    """
    if path is not None:
        require_file(path)
    if path is None and sys.stdin is None:
        raise UserError("stdin is closed; name a file")
    if path is None and sys.stdin.isatty():
        say(f"reading {kind} from the terminal; Ctrl-D ends it")
    if kind != "parquet":
        return TextTable(path, kind, column)
    if path is None:
        raise UserError("Parquet cannot be read from stdin; name a file")
    return _parquet().ParquetTable(path)


def require_file(path: Path) -> None:
    """Raise a ``UserError`` if there is none, or a folder."""
    if not path.exists():
        raise UserError(f"{path} not found")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it")


def _require_lines(table: Table, column: str) -> None:
    """Refuse a table that would be labelled as plain lines, its header among them."""
    if column != TEXT:
        raise UserError(
            f"{table.name} is read as plain lines, which have no column {column!r}; give --from csv"
        )
    assert isinstance(table, TextTable)
    first = table.peek()
    if any(column in header_fields(first, delimiter) for delimiter in DELIMITERS["csv"]):
        raise UserError(
            f"{table.name} is read as plain lines, but the first of them names a column {column!r}; give "
            "--from csv, or --from lines if it is not a header"
        )


def _place(name: str, table: Table) -> int:
    """Which column holds the texts."""
    if table.columns.count(name) != 1:
        number = "no column" if name not in table.columns else "several columns"
        present = ", ".join(repr(column[:NAME_SHOWN]) for column in table.columns[:NAMES_SHOWN])
        more = len(table.columns) - NAMES_SHOWN
        others = f" and {more:,} more" if more > 0 else ""
        raise UserError(
            f"{table.name} has {number} {name!r}; choose one with --column among {present}{others}"
        )
    return table.columns.index(name)


def _writer(
    kind: str, stream: BinaryIO, table: Table, answers: dict[str, type], spreadsheet: bool
) -> AbstractContextManager[Write]:
    """What writes the rows.

    Raises:
        UserError: they cannot be written in the format ``kind``.
    """
    names = [*table.columns, *answers]
    if spreadsheet and kind not in DELIMITERS:
        raise UserError(f"--spreadsheet is for CSV and TSV, not for {kind}")
    if kind in DELIMITERS:
        delimiter = DELIMITERS[kind][0]
        if isinstance(table, TextTable) and table.kind == kind:
            delimiter = table.delimiter
        return delimited_writer(stream, names, delimiter, spreadsheet)
    if doubled := [name for name in table.columns if table.columns.count(name) > 1]:
        raise UserError(f"the input has several columns {doubled[0]!r}; rename one, or write CSV")
    if kind == "jsonl":
        return json_writer(stream, names)
    return _parquet().parquet_writer(stream, table, answers)


def _parquet() -> ModuleType:
    """The module for Parquet, imported only when it is needed."""
    try:
        return import_module("receiptbert.parquet")
    except ModuleNotFoundError:
        raise UserError("Parquet needs the library pyarrow: pip install 'receiptbert[parquet]'") from None
