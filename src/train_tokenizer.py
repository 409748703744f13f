"""Stage 2: learn a WordPiece vocabulary from the unsupervised and train texts."""

import shutil

import pipeline
from receiptbert.corpus import read_corpus, strings
from receiptbert.files import atomic
from receiptbert.params import Params
from receiptbert.progress import track
from receiptbert.splits import SPLIT, TEXT, TRAIN, UNSUPERVISED
from receiptbert.tokenization import WordpieceTokenizer


def train_tokenizer(params: Params) -> str:
    p = params.tokenizer
    corpus = read_corpus(pipeline.CORPUS)
    # Never from val or test: their words must stay as unknown as those of tomorrow's receipts.
    texts = corpus.loc[corpus[SPLIT].isin([UNSUPERVISED, TRAIN]), TEXT]
    with atomic(pipeline.TOKENIZER) as folder:
        # Not in /tmp, where the texts of a killed stage would stay: the next run removes this folder.
        scratch = folder / "scratch"
        tokenizer = WordpieceTokenizer.from_corpus(
            track(strings(texts), "reading", len(texts), "texts"),
            corpus_save_path=scratch / "corpus.txt",
            tokenizer_save_path=scratch,
            tokenizer_name="receipts",
            vocab_size=p.vocab_size,
            min_frequency=p.min_frequency,
        )
        shutil.rmtree(scratch)
        tokenizer.save_pretrained(folder)
    fewer = (
        f", all that pairs seen {p.min_frequency} times give" if tokenizer.vocab_size < p.vocab_size else ""
    )
    return f"{tokenizer.vocab_size:,} of {p.vocab_size:,} tokens learned from {len(texts):,} texts{fewer}"


if __name__ == "__main__":
    pipeline.run_stage(train_tokenizer)
