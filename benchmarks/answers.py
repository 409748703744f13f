"""The numbers behind docs/answers.md.

    python benchmarks/answers.py [--json OUT]

Runs in seconds. Some figures need the finetuned model and the lines of the last ``make repro``.
"""

import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from common import ROOT, argument_parser, print_figures, run_main, write_result
from receiptbert.corpus import read_corpus
from receiptbert.datasets import InferenceDataset
from receiptbert.encoder import BertShape, parameter_counts
from receiptbert.modeling import BertFinetuneModel
from receiptbert.pretraining import EPS
from receiptbert.saved_classifier import load_classifier
from receiptbert.splits import SPLIT, TEST, TEXT
from receiptbert.tokenization import WordpieceTokenizer
from setting import shape_of
from timing import in_turns, rate_of, ratio

MINI = BertShape(**shape_of("mini"), vocab_size=30_000, max_seqlen=24, act_func="gelu", eps=EPS)
KEYS = 11  # tokens of a receipt line, marks included
STUCK = 0.01
PADDING = 5
PASSES = 50  # forward and backward, timed together


def attention_weights(scaled: bool) -> dict[str, float]:
    """Softmax over scores of random queries and keys of unit variance: how sharp, and how well it can learn.

    The derivative of a weight p by its own dot product is p (1 - p), times the scale. A query is called stuck
    where it is small for all keys.
    """
    generator = torch.Generator().manual_seed(0)
    size = MINI.hidden_size // MINI.num_attention_heads
    scale = 1 / math.sqrt(size) if scaled else 1.0
    queries, keys = (torch.randn(1000, KEYS, size, generator=generator) for _ in range(2))
    scores = queries @ keys.transpose(1, 2) * scale
    weights = scores.softmax(dim=-1)
    largest = weights.max(dim=-1).values
    derivatives = weights * (1 - weights) * scale
    return {
        "deviation_of_scores": float(scores.std()),
        "largest_weight": float(largest.mean()),
        "queries_with_a_weight_above_0.99": float((largest > 0.99).float().mean()),
        "queries_stuck": float((derivatives.max(dim=-1).values < STUCK).float().mean()),
    }


def wide_projection() -> float:
    """How many times faster one d x 3d product is than three d x d, forward and backward."""
    x = torch.randn(64 * KEYS, MINI.hidden_size, requires_grad=True)  # of a layer below, which learns too
    wide = nn.Linear(MINI.hidden_size, 3 * MINI.hidden_size)
    narrow = nn.ModuleList(nn.Linear(MINI.hidden_size, MINI.hidden_size) for _ in range(3))

    def train(layers: list[nn.Module]) -> None:
        for _ in range(PASSES):
            sum(layer(x).sum() for layer in layers).backward()

    works = {"wide": partial(train, [wide]), "narrow": partial(train, list(narrow))}
    rates = in_turns({name: partial(rate_of, work, PASSES) for name, work in works.items()}, rounds=5)
    return ratio(rates["wide"], rates["narrow"])


def unmasked_padding(model: BertFinetuneModel, tokenizer: WordpieceTokenizer, corpus: Path) -> float:
    """Share of test lines that get another class when padded by ``PADDING`` tokens that are not masked."""
    rows = read_corpus(corpus)
    texts = rows.loc[rows[SPLIT] == TEST, TEXT].tolist()
    dataset = InferenceDataset(texts, model.shape.maxlen - PADDING, tokenizer)
    padding = torch.full((PADDING,), tokenizer.pad_token_id)

    def predict(input_ids: Tensor) -> int:
        return int(model(input_ids[None]).argmax())

    with torch.inference_mode():
        inputs = [dataset[i] for i in range(len(dataset))]
        changed = sum(predict(ids) != predict(torch.cat([ids, padding])) for ids in inputs)
    return changed / len(texts)


def multiplications(tokens: int) -> dict[str, int]:
    """Multiplications of one layer of bert-mini for a text of that many ``tokens``."""
    d = MINI.hidden_size
    return {
        "attention_projections": 4 * tokens * d**2,
        "attention_scores_and_sums": 2 * tokens**2 * d,
        "feed_forward": 2 * tokens * d * MINI.intermediate_size,
    }


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__, corpus=False, model=True)
    parser.add_argument("--data", type=Path, default=ROOT / "data/raw/data.csv")
    args = parser.parse_args()
    model, tokenizer, *_ = load_classifier(args.model)
    figures = {
        "scaled": attention_weights(scaled=True),
        "not_scaled": attention_weights(scaled=False),
        "rate_of_a_wide_projection": wide_projection(),
        "share_of_lines_with_another_class_if_padding_is_not_masked": unmasked_padding(
            model, tokenizer, args.data
        ),
        f"multiplications_{KEYS}_tokens": multiplications(KEYS),
        "multiplications_512_tokens": multiplications(512),
        "parameters": {
            **parameter_counts(MINI, None),
            "second_matrix_if_not_tied": MINI.vocab_size * MINI.hidden_size,
        },
        f"parameters_with_{model.shape.vocab_size}_entries": parameter_counts(model.shape, None),
    }
    print_figures(figures)
    write_result(args.json, figures)


if __name__ == "__main__":
    run_main(main)
