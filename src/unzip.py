"""Stage 1: take the corpus out of the archive and check it."""

import csv
import os
from pathlib import Path

import pipeline
from receiptbert.archive import CATEGORIES_NAME, DATA_NAME, extract_corpus
from receiptbert.corpus import read_categories, read_corpus, require_quotes, require_splits
from receiptbert.corpus_report import (
    describe,
    describe_classes,
    warnings_of_counts,
    warnings_of_labels,
)
from receiptbert.equal_texts import held_out_too, number_texts
from receiptbert.errors import UserError
from receiptbert.files import atomic
from receiptbert.params import Params
from receiptbert.progress import say
from receiptbert.reports import write_json
from receiptbert.splits import SPLIT, TEXT, TRAIN, UNSUPERVISED, VAL


def unzip(params: Params) -> str:
    archive = Path(params.data.archive)
    if Path(os.path.realpath(archive)).is_relative_to(os.path.realpath(pipeline.RAW)):
        raise UserError(f"{archive} is in {pipeline.RAW}, which this stage replaces; move it, to data/ say")
    say(f"unpacking {archive}")
    with atomic(pipeline.RAW) as folder:
        # The user knows the file by its name in the archive.
        called = {name: f"{archive}: {member}" for name, member in extract_corpus(archive, folder).items()}
        say("checking the rows")
        corpus = read_corpus(folder / DATA_NAME, called[DATA_NAME])
        require_quotes(folder / DATA_NAME, called[DATA_NAME])
        categories = read_categories(folder / CATEGORIES_NAME, called.get(CATEGORIES_NAME))
        texts = number_texts(corpus[TEXT])
        counts = describe(corpus, texts)
        leaked = held_out_too(corpus, texts) & (not params.data.train_on_held_out_texts)
        counts["rows_left_out"] = {
            split: int((leaked & (corpus[SPLIT] == split)).sum()) for split in (TRAIN, VAL, UNSUPERVISED)
        }
        if leaked.any():
            corpus = corpus[~leaked]
            require_splits(corpus, f"{called[DATA_NAME]}, without the texts that are held out too,")
            counts |= describe_classes(corpus)
            # With all fields quoted, so that line breaks within texts come back as they were.
            corpus.to_csv(folder / DATA_NAME, index=False, quoting=csv.QUOTE_ALL, lineterminator="\n")
    write_json(pipeline.METRICS / "data.json", counts)

    of_labels = warnings_of_labels(corpus, categories, called.get(CATEGORIES_NAME))
    for message in warnings_of_counts(counts) + of_labels:
        say(f"unzip: warning: {message}")
    rows = ", ".join(f"{count:,} {split}" for split, count in counts["rows"].items())
    return f"rows: {rows}; classes: {counts['classes']['train']}"


if __name__ == "__main__":
    pipeline.run_stage(unzip)
