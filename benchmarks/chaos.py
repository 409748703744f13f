"""Kill pretraining and finetuning at random moments, resume, and compare the outputs byte by byte.

    python benchmarks/chaos.py --kills 50 [-S KEY=VALUE ...] [--json OUT]

Each of the two stages gets half of the kills, on a small corpus. ``killed`` counts those that came before
the end of the stage, ``equal`` those of them after which the outputs were those of an uninterrupted
training, ``resumed`` those that left a checkpoint to resume from.
``overhead`` is the share of the training time that checkpoints take with the shipped settings: the time to
write one of a model as large as the shipped one, over that from one to the next.
"""

import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import torch

from common import (
    ROOT,
    add_overrides,
    argument_parser,
    positive,
    print_figures,
    run_main,
    shipped_params,
    stage_command,
    stage_environment,
    write_params,
    write_result,
)
from project import generate_corpus
from receiptbert.checkpoints import REST, Checkpoints, State
from receiptbert.encoder import parameter_counts
from receiptbert.pretraining import model_shape
from receiptbert.progress import say
from receiptbert.reports import read_json
from timing import seconds_of

CORPUS = ["--unlabelled", "3000", "--train", "600", "--val", "100", "--test", "60"]
SETTINGS = [
    "data.archive=corpus.zip",
    "tokenizer.vocab_size=2000",
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.intermediate_size=64",
    "pretrain.max_steps=400",
    "finetune.epochs=8",
    "finetune.min_steps=0",
    "finetune.teachers=1",
    "runtime.device=cpu",
    "runtime.checkpoint_seconds=0",
]
OUTPUTS = {
    "pretrain": ["models/pretrained", "metrics/pretrain.json", "metrics/plots/pretrain.csv"],
    "finetune": ["models/finetuned", "metrics/finetune.json", "metrics/plots/finetune.csv"],
}


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__, corpus=False)
    parser.add_argument("--kills", type=positive, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    add_overrides(parser)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        write_params(Path(folder), [*SETTINGS, *args.overrides])
        counts = _kill_often(Path(folder), args.kills, random.Random(args.seed))
        figures = {"kills": args.kills, **counts, **_overhead(Path(folder))}
    print_figures(figures)
    write_result(args.json, figures)
    if counts["equal"] < counts["killed"]:
        sys.exit("some outputs differ")


def _kill_often(folder: Path, kills: int, moments: random.Random) -> Counter[str]:
    """How often a stage was killed, the outputs were equal, and there was a checkpoint."""
    generate_corpus(folder / "corpus.zip", *CORPUS)
    for stage in ("unzip", "train_tokenizer", "pretokenize"):
        _run(stage, folder)
    seconds, whole = {}, {}
    for stage in OUTPUTS:  # finetuning needs what pretraining gives
        seconds[stage] = seconds_of(partial(_run, stage, folder))
        whole[stage] = _read(folder, stage)
    counts = Counter(killed=0, equal=0, resumed=0)
    for number in range(kills):
        stage = list(OUTPUTS)[number % 2]
        _remove(folder, stage)  # as DVC does
        moment = moments.uniform(0, seconds[stage])
        if not _run(stage, folder, kill_after=moment):
            say(f"{number + 1} of {kills}: {stage} had ended before {moment:.1f} s")
            continue
        has_checkpoint = any((folder / ".checkpoints").glob(f"{stage}*/*/*.safetensors"))
        _run(stage, folder)
        same = _read(folder, stage) == whole[stage]
        counts.update(killed=1, equal=same, resumed=has_checkpoint)
        how = f"{'a' if has_checkpoint else 'no'} checkpoint, {'equal' if same else 'DIFFERENT'}"
        say(f"{number + 1} of {kills}: {stage} at {moment:.1f} s, {how}")
    return counts


def _run(stage: str, folder: Path, kill_after: float | None = None) -> bool:
    """Run a stage until it ends or is killed; return whether it was killed."""
    process = subprocess.Popen(
        stage_command(stage),
        cwd=folder,
        env=stage_environment(stage),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _, errors = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return True
    if process.returncode:
        sys.exit(f"{stage} failed: {errors.decode()}")
    return False


def _read(folder: Path, stage: str) -> dict[str, bytes]:
    """The bytes of the stage's outputs."""
    tops = [folder / output for output in OUTPUTS[stage]]
    files = [path for top in tops for path in (sorted(top.iterdir()) if top.is_dir() else [top])]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _remove(folder: Path, stage: str) -> None:
    for output in OUTPUTS[stage]:
        path = folder / output
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _overhead(folder: Path) -> dict[str, float]:
    """What checkpoints of the shipped model cost on this disk."""
    params, sample = shipped_params(), read_json(ROOT / "metrics/tokens.json")
    shape = model_shape(params.model, sample["vocab_size"], sample["max_length"])
    weights = sum(parameter_counts(shape, None).values())
    state = State({name: torch.rand(weights) for name in ("weights", "first", "second")}, {})
    with Checkpoints(folder / "overhead", "parameters", 0) as checkpoints:
        seconds = [seconds_of(partial(checkpoints.save, step, state)) for step in range(5)]
        checkpoints.remove()
    write = statistics.median(seconds)
    between = max(params.runtime.checkpoint_seconds, REST * write)
    return {
        "checkpoint_mib": 3 * 4 * weights / 2**20,
        "write_seconds": write,
        "overhead": write / (between + write),
    }


if __name__ == "__main__":
    run_main(main)
