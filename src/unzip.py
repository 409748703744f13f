"""Stage 1: take the corpus out of the archive and check it."""

import csv
from pathlib import Path
from typing import Any

import pandas as pd

import pipeline
from receiptbert.archive import CATEGORIES_NAME, DATA_NAME, extract_corpus
from receiptbert.corpus import (
    IGNORED_LABELS,
    SPLIT,
    TEXT,
    TRAIN,
    UNSUPERVISED,
    VAL,
    describe,
    describe_classes,
    fold,
    held_out_too,
    label_list,
    read_categories,
    read_corpus,
    require_quotes,
    require_splits,
)
from receiptbert.files import whole
from receiptbert.params import Params
from receiptbert.progress import say
from receiptbert.reports import write_json


def unzip(params: Params) -> None:
    archive = Path(params.data.archive)
    say(f"unpacking {archive}")
    with whole(pipeline.RAW) as folder:
        # The user knows the file by its name in the archive.
        called = {name: f"{archive}: {member}" for name, member in extract_corpus(archive, folder).items()}
        say("checking the rows")
        corpus = read_corpus(folder / DATA_NAME, called[DATA_NAME])
        require_quotes(folder / DATA_NAME, called[DATA_NAME])
        categories = read_categories(folder / CATEGORIES_NAME, called.get(CATEGORIES_NAME))
        folded = fold(corpus[TEXT])
        counts = describe(corpus, folded)
        leaked = held_out_too(corpus, folded)
        if params.data.train_on_held_out_texts:
            leaked[:] = False
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

    rows = ", ".join(f"{count:,} {split}" for split, count in counts["rows"].items())
    print(f"rows: {rows}; classes: {counts['classes']['train']}")
    for message in warnings(counts):
        say(f"unzip: warning: {message}")
    for message in warnings_of_labels(label_list(corpus), categories, called.get(CATEGORIES_NAME)):
        say(f"unzip: warning: {message}")


def warnings(counts: dict[str, Any]) -> list[str]:
    """What may be wrong with a corpus that can be used, one line each."""
    left_out = counts["rows_left_out"]
    kept = (
        ""
        if any(left_out.values()) or not counts["test_rows_seen_elsewhere"]
        else ", so test scores may flatter"
    )
    many = left_out[TRAIN] > counts["rows"][TRAIN] / 10
    how_to_split = "; split texts, not rows (data/README.md)" if many else ""
    shared, seen = counts["texts_in_several_splits"], counts["test_rows_seen_elsewhere"]
    several, blank = counts["texts_with_several_labels"], counts["blank_texts"]
    ignored, unlearnable = counts[IGNORED_LABELS], counts["classes_absent_from_train"]
    found = [
        (shared, f"texts in several splits: {shared:,}; test rows among them: {seen:,}{kept}"),
        (
            any(left_out.values()),
            f"rows left out because their text is held out in val or test: {left_out[TRAIN]:,} train, "
            f"{left_out[VAL]:,} val, {left_out[UNSUPERVISED]:,} unsupervised "
            f"(data.train_on_held_out_texts=true keeps them){how_to_split}",
        ),
        (several, f"texts with several labels, at most one of which can be right: {several:,}"),
        (
            ignored,
            f"unsupervised rows with a label, which is ignored: {ignored:,}; to learn from them, make them "
            "train rows",
        ),
        (blank, f"blank texts: {blank:,}"),
        (unlearnable, f"classes without a train row, which cannot be learned: {unlearnable}"),
    ]
    return [message for applies, message in found if applies]


def warnings_of_labels(labels: list[str], categories: dict[str, str], file: str | None) -> list[str]:
    """What may be wrong with the labels; ``file`` is where the categories are from, if there is one."""
    found = []
    spellings = pd.Series(labels)
    if (alike := spellings[fold(spellings).duplicated(keep=False)]).size:
        first = alike[fold(alike) == fold(alike[:1]).item()]
        others = f"; so do {alike.size - 2} more" if alike.size > 2 else ""
        found.append(
            f"labels {first.iloc[0]!r} and {first.iloc[1]!r} are two classes, but differ only in case, "
            f"spaces or accents{others}"
        )
    unnamed = [label for label in labels if not categories.get(label)]
    if unnamed and file is not None:
        others = f" and {len(unnamed) - 1} more" if len(unnamed) > 1 else ""
        found.append(f"{file} has no name for label {unnamed[0]!r}{others}")
    return found


if __name__ == "__main__":
    pipeline.run_stage(unzip)
