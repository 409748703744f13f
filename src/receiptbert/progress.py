"""Progress of long work: a bar in a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

# A log file wants few lines; a person who watches one wants to see that it still moves.
SECONDS_BETWEEN_LINES = 20.0
SECONDS_WORTH_A_LINE = 3.0


def track(items: Iterable[T], what: str, total: int, unit: str = "batches") -> Iterator[T]:
    """Yield ``items`` and report on stderr how far, how fast, and how long is left.

    ``total`` is the number of items.
    """
    if in_terminal():
        yield from tqdm(items, desc=what, total=total, unit=f" {unit}", smoothing=0.05)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            rate = done / (now - start)
            left = (total - done) / rate
            say(f"{what}: {done:,} of {total:,} {unit}, {rate:,.1f} a second, {left:,.0f} s left")
    if last > start or time.monotonic() - start > SECONDS_WORTH_A_LINE:
        say(f"{what}: {total:,} {unit} in {time.monotonic() - start:,.0f} s")


def in_terminal() -> bool:
    """Whether a person watches; a stage may run with stderr closed."""
    return sys.stderr is not None and sys.stderr.isatty()


def say(line: str) -> None:
    """Write one line to stderr, at once; if nobody reads any more, go on with the work."""
    with suppress(BrokenPipeError):
        print(line, file=sys.stderr, flush=True)
