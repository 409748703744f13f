"""One epoch of pretraining over generated lines, timed: what a corpus of millions of lines takes.

    python benchmarks/epoch.py [--lines N] [--batch-size N] [-S KEY=VALUE] [--work DIR] [--json OUT]

The lines come from the generator of the sample and go through the stages up to pretokenize; then pretraining
runs as in its stage, from random weights to the end of the first epoch. On a GPU the time to record passes
counts as part of the epoch; the start of the program does not, nor torch's import of its compiler for the
first optimizer. With ``--work DIR`` the prepared lines stay in DIR, for the next run with as many lines and
the same settings of the stages that prepare them.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from common import (
    STAGES,
    add_overrides,
    argument_parser,
    positive,
    print_figures,
    run_main,
    shipped_params,
    write_result,
)
from project import generate_corpus
from receiptbert.checkpoints import Checkpoints, conditions
from receiptbert.corpus_facts import load_longest
from receiptbert.devices import choose_device, keep_freed_memory
from receiptbert.params import Params
from receiptbert.pretraining import Pretraining
from receiptbert.progress import say
from receiptbert.splits import UNSUPERVISED
from receiptbert.token_store import TokenStore, store_path
from receiptbert.tokenization import WordpieceTokenizer
from runs import digest, make

NO_LIMIT = 10**9  # steps


def prepare(work: Path, lines: int, overrides: Sequence[str]) -> Path:
    """The folder in ``work`` of so many generated lines, after the stages before pretraining."""
    params = shipped_params(overrides)
    known = {
        "lines": lines,
        "held_out": params.data.train_on_held_out_texts,
        "tokenizer": asdict(params.tokenizer),
        "pretokenize": asdict(params.pretokenize),
    }
    folder = work / digest(known)

    def generate(archive: Path) -> None:
        say(f"generating {lines:,} lines")
        generate_corpus(archive, "--unlabelled", str(lines))

    make(folder, STAGES[: STAGES.index("pretrain")], overrides, corpus=generate)
    return folder


def pretrain(folder: Path, params: Params) -> dict[str, float | str]:
    """Pretrain on the lines in ``folder``; what it took, and the loss on the texts held out."""
    device = choose_device(params.runtime.device, params.runtime.deterministic)
    keep_freed_memory(device, params.pretrain.precision)
    tokenizer = WordpieceTokenizer.from_pretrained(folder / "models/tokenizer")
    texts = TokenStore.load(store_path(folder / "data/tokenized", UNSUPERVISED), tokenizer)
    longest = load_longest(folder / "data/tokenized/lengths.json")
    pretraining = Pretraining(params, texts, tokenizer, longest, device)
    pretraining.require_memory()
    torch.optim.AdamW([torch.zeros(1)])  # the first one imports torch's compiler, which takes seconds
    with (
        tempfile.TemporaryDirectory() as scratch,
        Checkpoints(Path(scratch) / "pretrain", "epoch", params.runtime.checkpoint_seconds) as checkpoints,
    ):
        start = time.perf_counter()
        _, trainer = pretraining.train(f"{scratch}/runs", checkpoints)
        seconds = time.perf_counter() - start
    rate = trainer.tokens_seen / seconds
    memory = torch.cuda.max_memory_reserved(device) / 2**30 if device.type == "cuda" else None
    return {
        "lines": len(texts),
        "seconds": seconds,
        "steps": pretraining.steps,
        "tokens_per_second": rate,
        "operations_per_second": rate * pretraining.plan.operations_per_token,
        "vocab_size": tokenizer.vocab_size,
        **({"gpu_gib": memory} if memory is not None else {}),
        **pretraining.evaluate(trainer),
        **{
            key: str(value)
            for key, value in conditions(device, pretraining.precision, params.runtime.amp_backend).items()
        },
    }


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__, corpus=False)
    parser.add_argument("--lines", type=positive, default=3_100_000)
    parser.add_argument("--batch-size", type=positive, default=256)
    add_overrides(parser)
    parser.add_argument("--work", type=Path, help="keep the prepared lines there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        one_epoch = ["pretrain.epochs=1", f"pretrain.max_steps={NO_LIMIT}"]
        overrides = [*one_epoch, f"pretrain.batch_size={args.batch_size}", *args.overrides]
        folder = prepare(args.work or Path(scratch), args.lines, overrides)
        figures = pretrain(folder, shipped_params(overrides))
    print_figures(figures)
    write_result(args.json, figures)


if __name__ == "__main__":
    run_main(main)
