"""Tokenizing: lines per second of pretokenize and of tokenizer training.

    python benchmarks/tokenization.py [--json OUT]

Pretokenizing is ``TokenStore.from_texts``, raw lines to arrays, each word tokenized once; for comparison, one
bare call of the library's ``encode_batch_fast`` with the lines, whose results stay its own objects, and a
loop over ``encode``. The lines are those of unsupervised and train, with any duplicates. Training has a
yardstick too: the library's trainer fed with the same lines, whose vocabulary differs from run to run.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tokenizers import BertWordPieceTokenizer

from common import (
    argument_parser,
    positive,
    read_archive,
    run_main,
    shipped_params,
    tokenizer_texts,
    train_tokenizer,
    write_result,
)
from receiptbert.params import TokenizerParams
from receiptbert.token_store import TokenStore
from timing import in_turns, print_rates, rate_of, ratio


def main() -> None:
    """The command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=positive, default=5)
    args = parser.parse_args()
    corpus = read_archive(args.corpus)
    texts = tokenizer_texts(corpus)
    settings = shipped_params().tokenizer
    tokenizer = train_tokenizer(corpus, settings)
    backend = tokenizer._backend

    works: dict[str, Callable[[], object]] = {
        "pretokenize": lambda: TokenStore.from_texts(texts, tokenizer),
        "encode_batch_fast": lambda: backend.encode_batch_fast(texts, add_special_tokens=False),
        "loop over encode": lambda: [backend.encode(text, add_special_tokens=False).ids for text in texts],
        "training: ours": lambda: train_tokenizer(corpus, settings),
        "training: library": lambda: _train_barely(texts, settings),
    }
    rates = in_turns({name: partial(rate_of, work, len(texts)) for name, work in works.items()}, args.rounds)
    training = {name: rates.pop(name) for name in list(rates) if name.startswith("training")}
    print_rates("lines per second", rates, "pretokenize")
    print_rates("lines per second", training, "training: ours")
    write_result(
        args.json,
        {
            "pretokenize_vs_encode_batch_fast": ratio(rates["pretokenize"], rates["encode_batch_fast"]),
            "pretokenize_vs_loop": ratio(rates["pretokenize"], rates["loop over encode"]),
            "training_vs_library": ratio(training["training: ours"], training["training: library"]),
        },
        rates | training,
    )


def _train_barely(texts: list[str], settings: TokenizerParams) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "corpus.txt"
        path.write_text("\n".join(texts), encoding="utf-8")
        BertWordPieceTokenizer(strip_accents=True, lowercase=True).train(
            str(path),
            vocab_size=settings.vocab_size,
            min_frequency=settings.min_frequency,
            show_progress=False,
        )


if __name__ == "__main__":
    run_main(main)
