"""Stage 1: take the corpus out of the archive and check it."""

from pathlib import Path

import pipeline
from receiptbert.archive import extract_corpus
from receiptbert.corpus import describe, label_list, read_categories, read_corpus
from receiptbert.params import Params
from receiptbert.progress import say
from receiptbert.reports import write_json


def unzip(params: Params) -> None:
    say(f"unpacking {params.data.archive}")
    extract_corpus(Path(params.data.archive), pipeline.RAW)
    say("checking the rows")
    corpus = read_corpus(pipeline.CORPUS)
    categories = read_categories(pipeline.CATEGORIES)
    counts = describe(corpus)
    write_json(pipeline.METRICS / "data.json", counts)

    rows = ", ".join(f"{count:,} {split}" for split, count in counts["rows"].items())
    print(f"rows: {rows}; classes: {counts['classes']['train']}")
    if counts["texts_in_several_splits"]:
        _warn(
            f"{counts['texts_in_several_splits']:,} texts stand in several splits; "
            f"{counts['test_rows_seen_elsewhere']:,} test rows are among them, so test scores may flatter"
        )
    if counts["classes_absent_from_train"]:
        _warn(f"{counts['classes_absent_from_train']} classes have no train row and cannot be learned")
    if categories and (unnamed := [label for label in label_list(corpus) if label not in categories]):
        _warn(f"{pipeline.CATEGORIES} has no name for label {unnamed[0]} and {len(unnamed) - 1} others")


def _warn(message: str) -> None:
    say(f"unzip: warning: {message}")


if __name__ == "__main__":
    pipeline.run_stage(unzip)
