"""Training throughput: ours, Hugging Face's Trainer, the assignment read literally, and the floor.

    python benchmarks/throughput.py [-S KEY=VALUE ...] [--json OUT]

Real tokens per second (special tokens counted, padding not): medians of rounds in which all take turns. All
contestants have one shape, corpus, batch size, masking and dropout. Ours is timed with BERT's 15% of tokens
masked, too: that spares it logits, and the others, which compute all of them, nothing. The Trainer gets texts
tokenized beforehand; it learns masked tokens alone, ours the order of segments as well. "defaults" leaves the
rest of the Trainer's settings at their defaults (fp32, texts of any length in a batch); "same precision" has
our precision and groups texts by length, its batches shuffled, since its own order begins with the longest;
all else, its kernel of attention, too, is at its defaults. "read literally" groups them too, in fp32.
Finetuning is that of a teacher: labelled texts alone, and ours trains no embeddings but those of their
tokens. Each round has other batches. Each contestant has a process of its own; ours keeps freed memory, as
`dvc repro` has it. The floor is derived from one large matrix product in each round: the rate of tokens if
ours did only the matrix products that it must, at that speed, and nothing else.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import torch

import literal
import ours
from common import argument_parser, positive, run_main, seconds, shipped_params, write_result
from receiptbert.choices import PRECISIONS
from receiptbert.devices import choose_device, device_name, keep_freed_memory
from receiptbert.flat_texts import SPECIAL_TOKENS_PER_TEXT
from receiptbert.plan import operations_per_token
from receiptbert.precision import DTYPES
from setting import (
    Setting,
    Task,
    add_setting_options,
    read_setting,
)
from timing import Rates, in_turns, print_rates, ratio

MATRIX = {"cpu": 2048, "cuda": 8192}  # rows and columns, enough to keep the device busy

BERT_MASK_PROB = 0.15  # Devlin et al. 2019, the assignment, and by default Hugging Face's collator
AS_BERT = f", {BERT_MASK_PROB:.0%} masked"  # in the names of what is measured so


def matrix_rate(setting: Setting, task: Task) -> float:
    """Operations per second of one large matrix product, at the precision of ours."""
    dtype = DTYPES[setting.precision]
    size = MATRIX[setting.device.type]
    a, b = (torch.randn(size, size, device=setting.device, dtype=dtype) for _ in range(2))
    (a @ b)[0, 0].item()
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < task.seconds / 3:
        for _ in range(4):
            c = a @ b
        c[0, 0].item()  # waits until a GPU has finished
        products += 4
    return products * 2.0 * size**3 / (time.perf_counter() - start)


Contestant = Callable[[Setting, Task], float]
_contestant: partial[float]  # of a contestant's process


def prepare(contestant: Contestant, setting: Setting, task: Task, is_ours: bool) -> None:
    """Set up the process of a contestant."""
    global _contestant
    _contestant = partial(contestant, setting, task)
    if is_ours:  # for the others torch stays as it is
        keep_freed_memory(choose_device(str(setting.device)), setting.precision)


def pretrain_as_bert(setting: Setting, task: Task) -> float:
    """Our pretraining with BERT's share of tokens masked; tokens per second."""
    return ours.pretrain(masked_as_bert(setting), task)


def masked_as_bert(setting: Setting) -> Setting:
    """``setting`` with the same texts, but BERT's share of tokens masked."""
    pretrain = replace(setting.params.pretrain, mask_prob=BERT_MASK_PROB)
    return replace(setting, params=replace(setting.params, pretrain=pretrain))


def perform() -> float:
    """What a contestant does in its process when it is its turn."""
    return _contestant()


def take_turns(setting: Setting, args: argparse.Namespace) -> dict[str, Rates]:
    """The rates of all contestants, round by round."""
    import huggingface  # noqa: PLC0415 - it takes seconds, and the process of each contestant imports this module

    pretraining, finetuning = (
        Task(batch_size, args.seconds, args.warm_up)
        for batch_size in (args.batch_size, args.finetune_batch_size)
    )
    processes = []

    def turn(contestant: Contestant, task: Task, is_ours: bool = False) -> Callable[[], float]:
        process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        processes.append(process)
        # Not its `initargs`, which would keep us waiting: all get ready side by side.
        ready = process.submit(prepare, contestant, setting, task, is_ours)

        def run() -> float:
            ready.result()
            return process.submit(perform).result()

        return run

    same_pretrain = partial(huggingface.pretrain, same=True)
    same_finetune = partial(huggingface.finetune, same=True)
    contestants = {
        "pretrain: ours": turn(ours.pretrain, pretraining, is_ours=True),
        f"pretrain: ours{AS_BERT}": turn(pretrain_as_bert, pretraining, is_ours=True),
        "pretrain: Trainer, same precision": turn(same_pretrain, pretraining),
        "pretrain: Trainer, defaults": turn(huggingface.pretrain, pretraining),
        "pretrain: read literally": turn(literal.pretrain, pretraining),
        "finetune: ours": turn(ours.finetune, finetuning, is_ours=True),
        "finetune: Trainer, same precision": turn(same_finetune, finetuning),
        "finetune: Trainer, defaults": turn(huggingface.finetune, finetuning),
        "matrix product": turn(matrix_rate, pretraining),
    }
    try:
        return in_turns(contestants, args.rounds)
    finally:
        for process in processes:
            process.shutdown(wait=False)  # they end side by side, too


def operations(setting: Setting, stage: str) -> float:
    """Operations per token of the matrix products that ours needs in ``stage``."""
    pretraining = stage == "pretrain"
    store = setting.unlabelled if pretraining else setting.train
    lengths = store.lengths.clip(max=setting.shape.maxlen) + SPECIAL_TOKENS_PER_TEXT
    of_cls = 1 / lengths.mean()
    targets = setting.params.pretrain.mask_prob * (1 - SPECIAL_TOKENS_PER_TEXT * of_cls)
    return operations_per_token(
        setting.shape,
        length=float((lengths**2).sum() / lengths.sum()),
        of_cls=of_cls,
        targets=targets if pretraining else 0.0,
        outputs=setting.shape.vocab_size if pretraining else setting.num_classes,
    )


def compare(rates: dict[str, Rates], key: str, stage: str, masking: str) -> dict[str, float]:
    """Print a table of ours beside all others; return the ratios, their names beginning with ``key``."""
    ours = f"{stage}: ours{masking}"
    others = {
        "vs_trainer_same_precision": f"{stage}: Trainer, same precision",
        "vs_trainer_defaults": f"{stage}: Trainer, defaults",
        "vs_literal": f"{stage}: read literally",
        "share_of_floor": f"{stage}: floor{masking}",
    }
    others = {name: other for name, other in others.items() if other in rates}  # nobody finetunes literally
    print_rates("tokens per second", {name: rates[name] for name in (ours, *others.values())}, ours)
    return {f"{key}_{name}": ratio(rates[ours], rates[other]) for name, other in others.items()}


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    add_setting_options(parser)
    parser.set_defaults(vocab_size=30_000)  # as a corpus of millions of lines fills it
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    shipped = shipped_params().pretrain.batch_size
    parser.add_argument("--batch-size", type=positive, default=shipped, help="of pretraining")
    parser.add_argument("--finetune-batch-size", type=positive, default=64)
    parser.add_argument("--seconds", type=seconds, default=1.5, help="of each contestant in each round")
    # In bf16 on a CPU all shapes of batches have to be compiled, seconds that no real training notices.
    parser.add_argument("--warm-up", type=seconds, default=1.0, help="seconds before that")
    args = parser.parse_args()
    if torch.cuda.device_count() > 1:
        parser.error("the Trainer would take all GPUs, and ours one; set CUDA_VISIBLE_DEVICES to one of them")
    setting = read_setting(args, args.precision)
    rates = take_turns(setting, args)
    matrix = rates.pop("matrix product")
    device = device_name(setting.device)
    figures: dict[str, float | str] = {"device": device, "precision": setting.precision, "size": args.size}
    figures |= {"batch_size": args.batch_size, "finetune_batch_size": args.finetune_batch_size}
    figures["vocab_size"] = setting.shape.vocab_size
    for key, stage, masking, as_ours in (
        ("pretrain", "pretrain", "", setting),
        ("pretrain_15_percent", "pretrain", AS_BERT, masked_as_bert(setting)),
        ("finetune", "finetune", "", setting),
    ):
        rates[f"{stage}: floor{masking}"] = [rate / operations(as_ours, stage) for rate in matrix]
        figures |= compare(rates, key, stage, masking)
    write_result(args.json, figures, rates)


if __name__ == "__main__":
    run_main(main)
