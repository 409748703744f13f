"""Prediction: lines per second of ``Classifier`` and ``transformers.pipeline``, on one checkpoint, in fp32.

    python benchmarks/inference.py [--json OUT]

From raw lines to labels, other lines in each round, as far as the corpus has them. Each occurs once, since
ours computes equal lines once, and has tokens, since ours gives no label to a line without. The checkpoint is
finetuned for three epochs from random weights: it gives dozens of labels, which rounding does not decide.
"same precision" runs the pipeline in batches as large as ours, of lines as they come; "sorted" hands it the
lines in the order of their tokens' number, as ours has them, so that little is padded; it is given these
numbers, ours has to count. "defaults" (fp32, too) takes one line at a time, so it is timed on a tenth of the
lines. On a GPU the pipeline does without cuDNN's attention, as ours does.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import torch
from transformers import pipeline

from common import argument_parser, positive, run_main, write_result
from ours import finetuning
from receiptbert.choices import PREDICTION_BATCH_SIZE
from receiptbert.classifier import Classifier
from receiptbert.hf_format import save_pretrained
from receiptbert.modeling import BertFinetuneModel
from receiptbert.token_store import TokenStore
from setting import Setting, add_setting_options, read_setting
from timing import in_turns, print_rates, rate_of, ratio


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--lines", type=positive, default=2_000, help="predicted in each round")
    add_setting_options(parser)
    args = parser.parse_args()
    setting = read_setting(args)
    distinct = distinct_lines(setting)
    names = [f"class {number}" for number in range(setting.num_classes)]
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(_finetuned(setting), setting.tokenizer, Path(folder), names)
        ours = _ours(setting, folder)
        theirs = pipeline("text-classification", folder, device=setting.device)

    agreed = True
    labels: list[str] = []  # that ours gave in this round

    def contestant(classify: Callable[[list[str]], list[str]], count: int) -> Callable[[], float]:
        texts = cycle(distinct)  # the same lines for every contestant, other ones each round

        def run() -> float:
            nonlocal agreed
            lines = list(islice(texts, args.lines))[:count]
            # If the corpus has not so many, in parts: no line twice among what is given at once.
            parts = [lines[first : first + len(distinct)] for first in range(0, len(lines), len(distinct))]
            answers: list[str] = []
            rate = rate_of(lambda: answers.extend(chain.from_iterable(map(classify, parts))), len(lines))
            if classify is ours:
                labels[:] = answers
            agreed &= answers == labels[:count]
            return rate

        return run

    def pipe(**arguments: Any) -> Callable[[list[str]], list[str]]:
        return lambda lines: [
            answer["label"] for answer in theirs(_stream(lines), truncation=True, **arguments)
        ]

    def pipe_sorted(lines: list[str]) -> list[str]:
        order = sorted(range(len(lines)), key=lambda number: distinct[lines[number]])
        answers = pipe(batch_size=PREDICTION_BATCH_SIZE)([lines[number] for number in order])
        return [answer for _, answer in sorted(zip(order, answers, strict=True))]

    rates = in_turns(
        {
            "ours": contestant(ours, args.lines),
            "pipeline, same precision": contestant(pipe(batch_size=PREDICTION_BATCH_SIZE), args.lines),
            "pipeline, sorted": contestant(pipe_sorted, args.lines),
            "pipeline, defaults": contestant(pipe(), -(-args.lines // 10)),
        },
        args.rounds,
    )
    print_rates("lines per second", rates, "ours")
    print(f"labels equal: {agreed}")
    write_result(
        args.json,
        {
            "lines": args.lines * args.rounds,
            "predict_vs_pipeline_same_precision": ratio(rates["ours"], rates["pipeline, same precision"]),
            "predict_vs_pipeline_sorted": ratio(rates["ours"], rates["pipeline, sorted"]),
            "predict_vs_pipeline_defaults": ratio(rates["ours"], rates["pipeline, defaults"]),
            "labels_equal": agreed,
        },
        rates,
    )
    if not agreed:
        sys.exit("the labels differ")


def distinct_lines(setting: Setting) -> dict[str, int]:
    """The lines that have tokens, each once, and how many."""
    lines = list(dict.fromkeys(setting.lines))
    lengths = TokenStore.from_texts(lines, setting.tokenizer).lengths
    return {line: length for line, length in zip(lines, lengths.tolist(), strict=True) if length}


def _finetuned(setting: Setting) -> BertFinetuneModel:
    torch.manual_seed(0)
    batch_size = setting.params.finetune.batch_size
    with finetuning(setting, batch_size, seed=0, rate=3e-4) as (model, trainer, batches):
        trainer.train({"train": batches, "eval": []}, n_epochs=3)
    return model.cpu()


def _ours(setting: Setting, folder: str) -> Callable[[list[str]], list[str]]:
    classify = Classifier.from_pretrained(folder, str(setting.device))
    return lambda lines: [answer.category for answer in classify(lines)]


def _stream(lines: list[str]) -> Iterator[str]:
    """A generator: given a list, the pipeline would do the same but warn on a GPU."""
    yield from lines


if __name__ == "__main__":
    run_main(main)
