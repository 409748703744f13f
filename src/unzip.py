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
            # Quoted whole, so that line breaks within texts come back as they were.
            corpus.to_csv(folder / DATA_NAME, index=False, quoting=csv.QUOTE_ALL, lineterminator="\n")
    write_json(pipeline.METRICS / "data.json", counts)

    rows = ", ".join(f"{count:,} {split}" for split, count in counts["rows"].items())
    print(f"rows: {rows}; classes: {counts['classes']['train']}")
    for message in warnings(counts):
        say(f"unzip: warning: {message}")
    for message in warnings_of_labels(label_list(corpus), categories, called.get(CATEGORIES_NAME)):
        say(f"unzip: warning: {message}")


def warnings(counts: dict[str, Any]) -> list[str]:
    """What may be amiss in a corpus that can be used, one line each."""
    left_out = counts["rows_left_out"]
    kept = (
        ""
        if any(left_out.values()) or not counts["test_rows_seen_elsewhere"]
        else ", so test scores may flatter"
    )
    many = left_out[TRAIN] > counts["rows"][TRAIN] / 10
    how_to_split = ", but better split texts than rows (data/README.md)" if many else ""
    shared, seen = counts["texts_in_several_splits"], counts["test_rows_seen_elsewhere"]
    several, blank = counts["texts_with_several_labels"], counts["blank_texts"]
    ignored, unlearnable = counts[IGNORED_LABELS], counts["classes_absent_from_train"]
    found = [
        (shared, f"{shared:,} texts stand in several splits; {seen:,} test rows are among them{kept}"),
        (
            any(left_out.values()),
            f"{left_out[TRAIN]:,} train, {left_out[VAL]:,} val and {left_out[UNSUPERVISED]:,} unsupervised "
            "rows are left out: val or test has their texts; data.train_on_held_out_texts=true keeps them"
            f"{how_to_split}",
        ),
        (several, f"{several:,} texts have rows of several labels, of which one at the most can be right"),
        (
            ignored,
            f"{ignored:,} unsupervised rows have a label, which is ignored; train rows are learned from",
        ),
        (blank, f"{blank:,} texts are blank"),
        (unlearnable, f"{unlearnable} classes have no train row and cannot be learned"),
    ]
    return [message for applies, message in found if applies]


def warnings_of_labels(labels: list[str], categories: dict[str, str], file: str | None) -> list[str]:
    """What may be amiss in them; ``file`` is what the categories are from, if they are from any."""
    found = []
    spellings = pd.Series(labels)
    if (alike := spellings[fold(spellings).duplicated(keep=False)]).size:
        first = alike[fold(alike) == fold(alike[:1]).item()]
        others = f"; so do {alike.size - 2} more" if alike.size > 2 else ""
        found.append(
            f"labels {first.iloc[0]!r} and {first.iloc[1]!r} are two classes, and differ in case, spaces or "
            f"accents alone{others}"
        )
    unnamed = [label for label in labels if not categories.get(label)]
    if unnamed and file is not None:
        others = f" and {len(unnamed) - 1} more" if len(unnamed) > 1 else ""
        found.append(f"{file} has no name for label {unnamed[0]}{others}")
    return found


if __name__ == "__main__":
    pipeline.run_stage(unzip)
