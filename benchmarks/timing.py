"""How long work takes, what memory a command takes, and contests in which all take turns."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from receiptbert.progress import say

Rates = list[float]  # of one contestant, one per round


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def rate_of(work: Callable[[], object], count: int) -> float:
    """How many things a second ``work`` does, which does ``count`` of them."""
    return count / seconds_of(work)


# The peak of a process includes what the process that starts it occupies; so a small one starts it.
STARTER = """
import json, os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss]))
"""


def measure(command: Sequence[str], folder: Path, stdin: Path | None = None) -> dict[str, float]:
    """Seconds and peak memory (resident, GiB) of a command that runs in ``folder``; its stdout is shown."""
    starter = [sys.executable, "-I", "-c", STARTER, *command]
    start = time.perf_counter()
    with (stdin or Path(os.devnull)).open("rb") as source:
        done = subprocess.run(starter, cwd=folder, stdin=source, stdout=subprocess.PIPE, check=True)
    seconds = time.perf_counter() - start
    status, peak = json.loads(done.stdout)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return {"seconds": seconds, "peak_gib": peak * unit / 1024**3}


def in_turns(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Rates]:
    """Let the contestants run one after another, round by round, so that a slow minute hits them all.

    Args:
        contestants: each runs once when called and returns its rate.
        rounds: how many count; one more comes first and does not.
    """
    rates: dict[str, Rates] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            rate = run()
            say(f"round {number} of {rounds}: {name} {rate:,.0f} a second")
            if number:
                rates[name].append(rate)
    return rates


def ratio(a: Rates, b: Rates) -> float:
    """How many times faster ``a`` is than ``b``: the median of the rounds' ratios."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def print_rates(unit: str, rates: Mapping[str, Rates], reference: str) -> None:
    """Print a table of medians, and how many times faster ``reference`` is than each."""
    width = max(map(len, rates))
    print(f"{unit:{width}}  {'median':>12}  {'min':>12}  {'max':>12}  {reference} is faster")
    for name, values in rates.items():
        cells = "  ".join(
            f"{value:12,.0f}" for value in (statistics.median(values), min(values), max(values))
        )
        print(f"{name:{width}}  {cells}  {ratio(rates[reference], values):.2f} times")
