"""What a corpus is like, and what may be wrong with it although it can be used."""

from typing import Any

import pandas as pd

from receiptbert.corpus import IGNORED_LABELS, label_list
from receiptbert.equal_texts import BLANK, fold
from receiptbert.splits import LABEL, LABELLED, SPLIT, SPLITS, TEST, TRAIN, UNSUPERVISED, VAL


def describe(corpus: pd.DataFrame, texts: "pd.Series[int]") -> dict[str, Any]:
    """Counts that tell whether the corpus is what its owner thinks it is (``metrics/data.json``).

    Args:
        corpus: as ``read_corpus`` gives it.
        texts: what ``number_texts`` makes of the texts; those of one number count as one text.
    """
    split, labels, blank = corpus[SPLIT], corpus[LABEL], texts == BLANK
    splits_per_text = split[~blank].groupby(texts).nunique()
    shared = splits_per_text.index[splits_per_text > 1]
    labels_per_text = labels[(labels != "") & ~blank].groupby(texts).nunique()
    return {
        "rows": {name: int((split == name).sum()) for name in SPLITS},
        "distinct_texts": {name: int(texts[split == name].nunique()) for name in SPLITS},
        "blank_texts": int(blank.sum()),
        "texts_in_several_splits": len(shared),
        "test_rows_seen_elsewhere": int(texts[split == TEST].isin(shared).sum()),
        "texts_with_several_labels": int((labels_per_text > 1).sum()),
        IGNORED_LABELS: corpus.attrs[IGNORED_LABELS],
        **describe_classes(corpus),
    }


def describe_classes(corpus: pd.DataFrame) -> dict[str, Any]:
    """What ``describe`` says about the classes of ``corpus``."""
    split = corpus[SPLIT]
    train_labels = corpus.loc[split == TRAIN, LABEL]
    counts = train_labels.value_counts()
    return {
        "classes": {name: int(corpus.loc[split == name, LABEL].nunique()) for name in LABELLED},
        "classes_absent_from_train": len(absent_from_train(corpus)),
        "train_rows_per_class": {
            "largest": int(counts.max()),
            "median": float(counts.median()),
            "smallest": int(counts.min()),
        },
        "largest_class_share": float(counts.max() / counts.sum()),
    }


def absent_from_train(corpus: pd.DataFrame) -> list[str]:
    """Labels that only val or test has, in the order of ``label_list``."""
    known = set(corpus.loc[corpus[SPLIT] == TRAIN, LABEL])
    return [label for label in label_list(corpus) if label not in known]


def warnings_of_counts(counts: dict[str, Any]) -> list[str]:
    """What the counts of a corpus (``describe``, and ``rows_left_out`` of each split) show, one line each."""
    left_out = counts["rows_left_out"]
    shared, seen = counts["texts_in_several_splits"], counts["test_rows_seen_elsewhere"]
    flatter = ", so test scores may flatter" if seen and not any(left_out.values()) else ""
    many = left_out[TRAIN] > counts["rows"][TRAIN] / 10
    how_to_split = "; split texts, not rows (data/README.md)" if many else ""
    several, blank = counts["texts_with_several_labels"], counts["blank_texts"]
    ignored = counts[IGNORED_LABELS]
    found = [
        (shared, f"texts in several splits: {shared:,}; test rows among them: {seen:,}{flatter}"),
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
    ]
    return [message for applies, message in found if applies]


def warnings_of_labels(corpus: pd.DataFrame, categories: dict[str, str], file: str | None) -> list[str]:
    """What may be wrong with the labels; ``file`` is where the categories are from, if there is one."""
    found, labels = [], label_list(corpus)
    if absent := absent_from_train(corpus):
        found.append(
            f"classes without a train row, which cannot be learned: {len(absent)} "
            f"(label {absent[0]!r}{_and_more(absent)})"
        )
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
        found.append(f"{file} has no name for label {unnamed[0]!r}{_and_more(unnamed)}")
    return found


def _and_more(labels: list[str]) -> str:
    """How many there are beside the first."""
    return f" and {len(labels) - 1} more" if len(labels) > 1 else ""
