"""Weighted F1 on test after finetuning in fp32, bf16 and fp16, over several seeds.

    python benchmarks/half_precision.py [--project DIR] [--seeds N] [-S KEY=VALUE] [--device D] [--json OUT]

All begin with the pretrained model in DIR, where ``make repro`` or ``quality.py --work`` have left one, and
learn from the train texts alone, without teachers. Where the processor lacks a precision, its matrix products
are emulated: the factors are rounded to it, as mixed precision always does; the product is computed in fp32,
in which the hardware accumulates too; and the result is rounded. So this measures what the rounding costs,
not how fast it is.
"""

import statistics
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from common import (
    ROOT,
    add_overrides,
    argument_parser,
    deviation,
    positive,
    run_main,
    shipped_params,
    shown,
    write_result,
)
from receiptbert.checkpoints import Checkpoints
from receiptbert.corpus_facts import Classes
from receiptbert.devices import choose_device
from receiptbert.finetuning import Finetuning, Run
from receiptbert.labelled import Labelled, load_labelled, training_set
from receiptbert.metrics import f1
from receiptbert.params import Params
from receiptbert.precision import DTYPES, has_bf16
from receiptbert.progress import say
from receiptbert.splits import TEST, TRAIN, VAL

aten = torch.ops.aten
PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default}
HALF = (torch.bfloat16, torch.float16)


class ProductsInFp32(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it a matrix product of half precision is computed in fp32, backward passes included."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch in place of each of its functions."""
        if function not in PRODUCTS or args[-1].dtype not in HALF:
            return function(*args, **(kwargs or {}))
        return function(*map(Tensor.float, args), **(kwargs or {})).to(args[-1].dtype)


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """What emulates ``precision`` where ``device`` lacks it."""
    native = device.type == "cuda" or precision == "fp32" or (precision == "bf16" and has_bf16(device))
    return nullcontext() if native else ProductsInFp32()  # type: ignore[no-untyped-call]


def finetune(
    project: Path, params: Params, precision: str, seed: int, device: torch.device
) -> dict[str, float]:
    """Weighted F1 on test and val of one finetuning, and the steps that fp16 skipped."""
    p = params.finetune
    num_classes = len(Classes.load(project / "data/tokenized/classes.json").labels)
    finetuning = Finetuning(p, project / "models/pretrained", num_classes, device, params.runtime)
    finetuning.precision = precision  # which the setting would refuse where it has to be emulated

    def texts_of(split: str) -> Labelled:
        return load_labelled(project / "data/tokenized", split, finetuning.tokenizer)

    train = training_set(*texts_of(TRAIN), p)
    with tempfile.TemporaryDirectory() as name:
        checkpoints = Checkpoints(Path(name) / "finetune", f"{precision}-{seed}", 1e9)
        with checkpoints, arithmetic(precision, device):
            tuned = finetuning.train(train, texts_of(VAL), seed, Run(checkpoints, f"{name}/runs"))
    test, true = texts_of(TEST)
    return {
        "weighted_f1": f1(true, finetuning.logits(tuned.model, test).argmax(axis=1), "weighted"),
        "val_weighted_f1": tuned.best["f1"],
        **tuned.skipped_steps,
    }


def summaries(runs: dict[str, list[dict[str, float]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each precision with the mean and the deviation of its runs, and its difference from fp32."""
    for precision, of_it in runs.items():
        scores = [run["weighted_f1"] for run in of_it]
        differences = np.subtract(scores, [run["weighted_f1"] for run in runs["fp32"]])
        yield (
            precision,
            {
                "mean": statistics.fmean(scores),
                "std": deviation(scores),
                "difference_from_fp32": float(differences.mean()),
                "runs": of_it,
            },
        )


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__, corpus=False)
    parser.add_argument("--project", type=Path, default=ROOT, help="where the stages up to pretrain have run")
    parser.add_argument("--seeds", type=positive, default=3, help="runs of each, with seeds from 0 on")
    parser.add_argument("--device", default="auto")
    add_overrides(parser)
    args = parser.parse_args()
    device = choose_device(args.device, key="--device")
    params = shipped_params([*args.overrides, "finetune.precision=fp32"])
    runs: dict[str, list[dict[str, float]]] = {precision: [] for precision in DTYPES}
    for seed in range(args.seeds):
        for precision, of_it in runs.items():
            of_it.append(finetune(args.project, params, precision, seed, device))
            say(f"{precision}, seed {seed}: weighted F1 on test {of_it[-1]['weighted_f1']:.4f}")
        rows = dict(summaries(runs))
        write_result(args.json, {"device": str(device), **rows})
    for precision, row in rows.items():
        score = shown(row["mean"], row["std"], len(row["runs"]), decimals=4)
        print(f"{precision}  {score}  {row['difference_from_fp32']:+.4f}")


if __name__ == "__main__":
    run_main(main)
