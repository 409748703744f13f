"""Write metrics and plot data so that equal results give equal bytes."""

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from receiptbert.files import atomic
from receiptbert.json_files import read_json_object, write_json_object

Rounding = Callable[[float], float]
LINE_BREAK = re.compile(r"\s*[\r\n]\s*")


def five_decimals(value: float) -> float:
    """``value`` with enough decimals to tell experiments apart, and no more: the noise of the last bits stays
    out of `git diff`."""
    return round(value, 5)


def write_json(path: Path, values: Mapping[str, Any], rounding: Rounding = five_decimals) -> None:
    """Write ``values`` as JSON in their own order, floats rounded by ``rounding``."""
    with atomic(path) as partial:
        write_json_object(partial, _rounded(values, rounding))


def read_json(path: Path) -> dict[str, Any]:
    """Read what ``write_json`` wrote in an earlier stage.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    return read_json_object(path, "run `dvc repro`")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write the data of a plot as CSV: floats rounded to ``five_decimals``, texts in one line."""
    with atomic(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([_cell(value) for value in row] for row in rows)


def mean_curve(
    history: Sequence[Mapping[str, float]], columns: list[str], points: int = 200
) -> list[list[float]]:
    """The means of ``columns`` over runs of steps, each under its last step.

    There are ``points`` runs, whose lengths differ by a step at most; of fewer steps, each is a run.

    Losses of single batches are too noisy for a plot; TensorBoard has each of them.
    """
    ends = sorted({len(history) * run // points for run in range(points + 1)})
    return [
        [run[-1]["step"], *(sum(record[name] for record in run) / len(run) for name in columns)]
        for run in (history[start:end] for start, end in pairwise(ends))
    ]


def _cell(value: Any) -> Any:
    # A carriage return would end the row: Python before 3.13 does not quote it.
    return LINE_BREAK.sub(" ", value) if isinstance(value, str) else _rounded(value, five_decimals)


def _rounded(value: Any, rounding: Rounding) -> Any:
    if isinstance(value, float):
        return rounding(value)
    if isinstance(value, Mapping):
        return {key: _rounded(item, rounding) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item, rounding) for item in value]
    return value
