"""Progress of long work: a bar in a terminal, a plain line now and then elsewhere."""

import atexit
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TypeVar

from tqdm import tqdm

from receiptbert.errors import discard, printable

T = TypeVar("T")

# A log file wants few lines; a person who watches one wants to see that it still moves.
SECONDS_BETWEEN_LINES = 20.0
SECONDS_WORTH_A_LINE = 3.0

# Of several processes that train together, one speaks.
quiet = False


def track(
    items: Iterable[T],
    what: str,
    total: int | None,
    unit: str = "batches",
    size: Callable[[T], int] = lambda _: 1,
    before: int = 0,
) -> Iterator[T]:
    """Yield ``items`` and report progress, rate and time left on stderr.

    Args:
        total: the number of units in all items; None if unknown.
        size: how many units an item is.
        before: how many of ``total`` were done earlier and are not among ``items``.
    """
    if in_terminal():
        with tqdm(desc=what, total=total, initial=before, unit=f" {unit}", smoothing=0.05) as bar:
            for item in items:
                yield item
                bar.update(size(item))
        return
    done = 0
    start = last = time.monotonic()
    for item in items:
        yield item
        done += size(item)
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            rate = done / (now - start)
            far = f"{before + done:,}" + (f" {unit}" if total is None else f" of {total:,} {unit}")
            left = "" if total is None else f", {(total - before - done) / rate:,.0f} s left"
            say(f"{what}: {far}, {rate:,.1f} a second{left}")
    if last > start or time.monotonic() - start > SECONDS_WORTH_A_LINE:
        say(f"{what}: {done:,} {unit} in {time.monotonic() - start:,.0f} s")


def in_terminal() -> bool:
    """Whether a person watches; a stage may run with stderr closed."""
    return not quiet and sys.stderr is not None and sys.stderr.isatty()


def say(line: str) -> None:
    """Write one line to stderr, at once, what cannot be printed escaped.

    A closed terminal or a full disk is no reason to end the work.
    """
    if quiet or sys.stderr is None:  # closed: print would use stdout instead, which is for answers
        return
    try:
        print(printable(line), file=sys.stderr, flush=True)
    except OSError:  # the next line tries again; the disk may have room by then
        _discard_the_rest_at_exit()


@cache
def _discard_the_rest_at_exit() -> None:
    atexit.register(discard, sys.stderr)


def readable(record: dict[str, float]) -> str:
    """``record`` in a line for a person."""
    return ", ".join(f"{name} {value:.4f}" for name, value in record.items())
