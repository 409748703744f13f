"""The memory that pretraining takes at its peak, compared with its plan.

    python benchmarks/memory.py [--precision auto] [--device auto] [--corpus ZIP] [--json OUT]

For each row a process of its own takes 150 steps and writes a checkpoint, as the stage does. Measured: on a
CPU, how much its resident memory grew, without torch's compiler, which the first optimizer imports (0.07 GiB
in every training); on a GPU, what torch reserved there.
"""

import argparse
import ctypes
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from common import argument_parser, run_main, write_result
from receiptbert.checkpoints import Checkpoints
from receiptbert.choices import PRECISIONS
from receiptbert.devices import choose_device, device_name, keep_freed_memory
from receiptbert.plan import GIB
from receiptbert.precision import choose_precision
from setting import Setting, read_setting

STEPS = 150  # the heap grows while shapes of batches are new
SETTINGS = [
    "tokenizer.vocab_size=8000",
    f"pretrain.max_steps={STEPS}",
    f"pretrain.epochs={STEPS}",
    # As many targets, whatever the texts are.
    "pretrain.whole_words=false",
    "pretrain.letters_only=false",
]


class Row(NamedTuple):
    """What is pretrained."""

    size: str
    entries: int
    batch_size: int
    dropout: float
    activation_checkpointing: bool = False

    @property
    def overrides(self) -> list[str]:
        """What it changes in ``params.yaml``."""
        return [
            f"pretrain.batch_size={self.batch_size}",
            f"pretrain.dropout={self.dropout}",
            f"runtime.activation_checkpointing={str(self.activation_checkpointing).lower()}",
        ]

    @property
    def name(self) -> str:
        """The row's key among the figures."""
        name = f"{self.size}, {self.entries} entries, {self.batch_size} texts, dropout {self.dropout}"
        return name + (", activation checkpointing" if self.activation_checkpointing else "")


ROWS = [
    Row("mini", 30_000, 64, 0.0),
    Row("mini", 30_000, 256, 0.0),
    Row("mini", 8_000, 512, 0.1),
    Row("mini", 8_000, 512, 0.1, activation_checkpointing=True),
    Row("medium", 8_000, 32, 0.1),
    Row("base", 8_000, 4, 0.1),
]


def measure(row: Row, setting: Setting) -> tuple[float, float]:
    """What the plan says and what is measured, in bytes; in a process that has done nothing else."""
    # Here too: it settles which attention this process takes on a GPU.
    keep_freed_memory(choose_device(str(setting.device), key="--device"), setting.params.pretrain.precision)
    torch.optim.AdamW([torch.zeros(1)])
    _forget()
    before = _resident("VmRSS")
    pretraining = setting.pretraining()
    with (
        tempfile.TemporaryDirectory() as folder,
        Checkpoints(Path(folder, "pretrain"), "parameters", 0) as checkpoints,
    ):
        pretraining.train(f"{folder}/runs", checkpoints)
    measured = _resident("VmHWM") - before
    if setting.device.type == "cuda":
        measured = torch.cuda.max_memory_reserved(setting.device)
    # As many texts as the row names: the batches of the sample may have fewer, 508 instead of 512.
    return replace(pretraining.plan, texts=row.batch_size).total_memory, measured


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    args = parser.parse_args()
    device = choose_device(args.device, key="--device")
    precision = choose_precision(args.precision, device, "--precision")
    figures: dict[str, dict[str, float]] = {}
    print(f"{'GiB':66}      plan  measured")
    for row in ROWS:
        overrides = [*SETTINGS, f"pretrain.precision={precision}", *row.overrides]
        options = {"size": row.size, "vocab_size": row.entries, "overrides": overrides}
        # Read here, since the stage reads no corpus: what reading frees would be reused by the training.
        setting = read_setting(argparse.Namespace(**vars(args) | options))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            plan, measured = process.submit(measure, row, setting).result()
        figures[row.name] = {"plan_gib": round(plan / GIB, 3), "measured_gib": round(measured / GIB, 3)}
        print(f"{row.name:66}{plan / GIB:10.2f}{measured / GIB:10.2f}", flush=True)
    facts = {"device": device_name(device), "precision": precision}
    write_result(args.json, {**facts, "rows": figures})


def _forget() -> None:
    """Give back what has been freed so far, and count the peak from here on (Linux)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # see proc(5)


def _resident(field: str) -> int:
    """Bytes of memory that this process has, or had at its peak (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    run_main(main)
