"""Do apex and torch train alike in fp16? The losses of a short pretraining with each, from one seed.

    python benchmarks/apex_check.py [--corpus ZIP] [--size mini] [--steps 200] [--json OUT]

Needs a GPU and an apex that has amp (docs/training.md says which). The same training in fp32 is the
yardstick: two correct engines differ from each other no more than from it. Apex comes last, since its O1
replaces functions of torch for the whole process.
"""

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from common import argument_parser, positive, run_main, write_result
from receiptbert.amp import check_amp_backend
from receiptbert.checkpoints import Checkpoints
from receiptbert.devices import choose_device, device_name
from receiptbert.sizes import SIZES
from setting import Setting, read_setting

LAST = 50  # steps whose mean is shown


class Run(NamedTuple):
    """What came out of a training."""

    losses: npt.NDArray[np.float64]  # MLM, of each step
    skipped: int  # steps


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--size", choices=SIZES, default="mini", help="shape of the model")
    parser.add_argument("--steps", type=positive, default=200)
    parser.add_argument("--device", default="auto")
    parser.set_defaults(vocab_size=None, overrides=[])  # as many entries as the corpus fills
    args = parser.parse_args()
    check_amp_backend("apex", "fp16", choose_device(args.device, key="--device"))

    setting = read_setting(args)
    runs = {
        "fp32": pretrain(setting, args.steps, "fp32", "torch"),
        "torch": pretrain(setting, args.steps, "fp16", "torch"),
        "apex": pretrain(setting, args.steps, "fp16", "apex"),
    }
    figures = {
        name: {
            f"mean_of_last_{LAST}": float(run.losses[-LAST:].mean()),
            "largest_difference_to_torch": float(np.abs(run.losses - runs["torch"].losses).max()),
            "skipped_steps": run.skipped,
        }
        for name, run in runs.items()
    }
    for name, values in figures.items():
        print(f"{name:5}  " + "  ".join(f"{key} {value:.5g}" for key, value in values.items()))
    facts = {"steps": args.steps, "size": args.size, "device": device_name(setting.device)}
    write_result(args.json, {**figures, **facts})


def pretrain(setting: Setting, steps: int, precision: str, amp_backend: str) -> Run:
    """Pretrain with the size's settings; the batches and masks are the same whatever the engine."""
    params = replace(
        setting.params,
        pretrain=replace(setting.params.pretrain, precision=precision, max_steps=steps, epochs=steps),
        runtime=replace(setting.params.runtime, amp_backend=amp_backend),
    )
    pretraining = replace(setting, params=params).pretraining()
    with (
        tempfile.TemporaryDirectory() as folder,
        Checkpoints(Path(folder, "pretrain"), "parameters", math.inf) as checkpoints,
    ):
        _, trainer = pretraining.train(folder, checkpoints)
    losses = np.array([record["MLM"] for record in trainer.history])
    return Run(losses, trainer.skipped_steps.get("skipped_steps", 0))


if __name__ == "__main__":
    run_main(main)
