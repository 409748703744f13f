"""Stage 2: learn a WordPiece vocabulary from the unsupervised and train texts."""

import tempfile
from pathlib import Path

import pipeline
from receiptbert.corpus import SPLIT, TEXT, TRAIN, UNSUPERVISED, read_corpus
from receiptbert.params import Params
from receiptbert.progress import track
from receiptbert.tokenization import WordpieceTokenizer


def train_tokenizer(params: Params) -> None:
    corpus = read_corpus(pipeline.CORPUS)
    # Never from val or test: their words must stay as unknown as tomorrow's receipts.
    texts = corpus.loc[corpus[SPLIT].isin([UNSUPERVISED, TRAIN]), TEXT]
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = WordpieceTokenizer.from_corpus(
            track(texts, "reading", len(texts), "texts"),
            corpus_save_path=Path(scratch) / "corpus.txt",
            tokenizer_save_path=scratch,
            tokenizer_name="receipts",
            vocab_size=params.tokenizer.vocab_size,
            min_frequency=params.tokenizer.min_frequency,
        )
        tokenizer.save_pretrained(pipeline.TOKENIZER)
    print(f"{tokenizer.vocab_size:,} tokens learned from {len(texts):,} texts")


if __name__ == "__main__":
    pipeline.run_stage(train_tokenizer)
