"""How close pretraining of each size of model comes to what the device's matrix products would allow.

    python benchmarks/sizes.py [--sizes mini,small,base] [--precisions fp32,bf16,fp16]
        [--batch-sizes 256,2048] [--rounds 3] [--seconds 1.0] [--warm-up 1.5] [--device auto]
        [--corpus ZIP] [--json OUT]

Real tokens per second of our pretraining, as in throughput.py; the operations per second of the matrix
products that these tokens need at the least; and their share of the rate of one large matrix product in the
same precision, measured in the same rounds. Medians over rounds in which all take turns, in one process that
keeps freed memory, as the stages do. No size has dropout, though `auto` of params.yaml pretrains some with
it, so that sizes differ only in shape.
"""

import argparse
import gc
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

import ours
from common import argument_parser, positive, run_main, seconds, some_of, write_result
from receiptbert.choices import PRECISIONS
from receiptbert.devices import choose_device, device_name, keep_freed_memory
from receiptbert.precision import choose_precision
from receiptbert.sizes import SIZES
from setting import Setting, Task, read_setting, shape_of
from throughput import Contestant, matrix_rate, operations
from timing import Rates, in_turns, ratio


class Row(NamedTuple):
    """What is pretrained."""

    size: str
    precision: str
    batch_size: int  # texts, on average

    @property
    def name(self) -> str:
        """The row's key among the figures."""
        return f"{self.size}, {self.precision}, {self.batch_size}"


def main() -> None:
    """The command line."""
    args = parse_arguments()
    device = choose_device(args.device, key="--device")
    precisions = [choose_precision(name, device, "--precisions") for name in args.precisions]
    keep_freed_memory(device, "bf16" if "bf16" in precisions else "fp32")
    settings = read_settings(args, dict.fromkeys(precisions))
    rows = {
        Row(*key, batch_size): setting for key, setting in settings.items() for batch_size in args.batch_sizes
    }
    rates = take_turns(rows, args)
    figures = {row.name: figures_of(row, setting, rates) for row, setting in rows.items()}
    matrix_rates = {name: statistics.median(rates[matrix_of(name)]) for name in dict.fromkeys(precisions)}
    print_table(rows, figures)
    print("; ".join(f"matrix product, {name}: {rate / 1e12:.4g} T" for name, rate in matrix_rates.items()))
    facts = {"device": device_name(device), "rows": figures, "matrix_rates": matrix_rates}
    write_result(args.json, facts)


def parse_arguments() -> argparse.Namespace:
    """What the command line says; names and numbers as lists without repetitions."""
    parser = argument_parser(__doc__)
    parser.add_argument("--sizes", type=partial(some_of, SIZES), default="mini,small,base")
    parser.add_argument(
        "--precisions",
        type=partial(some_of, PRECISIONS),
        default="auto",
        help=f"some of {','.join(PRECISIONS)}; auto is what the hardware has",
    )
    parser.add_argument("--batch-sizes", type=_numbers, default="256,2048", help="in texts")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--seconds", type=seconds, default=1.0, help="of each pretraining in each round")
    parser.add_argument("--warm-up", type=seconds, default=1.5, help="seconds before that")
    parser.add_argument("--device", default="auto")
    # As a corpus of millions of lines fills it.
    parser.set_defaults(vocab_size=30_000, overrides=["pretrain.dropout=0"])
    return parser.parse_args()


def read_settings(args: argparse.Namespace, precisions: Iterable[str]) -> dict[tuple[str, str], Setting]:
    """The setting of each size in each precision; they share what is made of the corpus."""
    one = read_setting(argparse.Namespace(**vars(args), size=args.sizes[0]), "fp32")
    return {
        (size, precision): replace(one, shape=replace(one.shape, **shape_of(size)), precision=precision)
        for size in args.sizes
        for precision in precisions
    }


def take_turns(rows: Mapping[Row, Setting], args: argparse.Namespace) -> dict[str, Rates]:
    """Tokens per second of each row, and operations per second of a matrix product in each precision."""

    def turn(contestant: Contestant, setting: Setting, batch_size: int = 0) -> Callable[[], float]:
        return partial(alone, contestant, setting, Task(batch_size, args.seconds, args.warm_up))

    products = {matrix_of(row.precision): turn(matrix_rate, setting) for row, setting in rows.items()}
    trainings = {row.name: turn(ours.pretrain, setting, row.batch_size) for row, setting in rows.items()}
    return in_turns(products | trainings, args.rounds)


def alone(contestant: Contestant, setting: Setting, task: Task) -> float:
    """Run a contestant; the memory that it took is then free for the next one."""
    rate = contestant(setting, task)
    gc.collect()  # else reference cycles, which a training may have, stay for a while
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
    return rate


def matrix_of(precision: str) -> str:
    """The name of the contestant that is a matrix product."""
    return f"matrix product, {precision}"


def figures_of(row: Row, setting: Setting, rates: Mapping[str, Rates]) -> dict[str, float]:
    """The medians of a row."""
    tokens = rates[row.name]
    performed = [rate * float(operations(setting, "pretrain")) for rate in tokens]
    return {
        "tokens_per_second": statistics.median(tokens),
        "operations_per_second": statistics.median(performed),
        "share_of_matrix_rate": ratio(performed, rates[matrix_of(row.precision)]),
    }


def print_table(rows: Iterable[Row], figures: Mapping[str, Mapping[str, float]]) -> None:
    """Print a line for each row."""
    print("size    precision  texts a batch      tokens/s  operations/s  of a matrix product")
    for row in rows:
        tokens, performed, share = figures[row.name].values()
        print(
            f"{row.size:6}  {row.precision:9}  {row.batch_size:13,}  {tokens:12,.0f}"
            f"  {performed / 1e12:10.4g} T  {share:19.1%}"
        )


def _numbers(listed: str) -> list[int]:
    names = dict.fromkeys(listed.split(","))
    if not all(name.isdecimal() and int(name) > 0 for name in names):
        raise argparse.ArgumentTypeError(f"{listed!r} is not a list of numbers such as 256,2048")
    return [int(name) for name in names]


if __name__ == "__main__":
    run_main(main)
