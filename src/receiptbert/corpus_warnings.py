"""What may be wrong with a corpus that can be used."""

from typing import Any

import pandas as pd

from receiptbert.corpus import IGNORED_LABELS, TRAIN, UNSUPERVISED, VAL, fold


def warnings_of_counts(counts: dict[str, Any]) -> list[str]:
    """What the counts of a corpus (``describe``, and ``rows_left_out`` of each split) show, one line each."""
    left_out = counts["rows_left_out"]
    shared, seen = counts["texts_in_several_splits"], counts["test_rows_seen_elsewhere"]
    flatter = ", so test scores may flatter" if seen and not any(left_out.values()) else ""
    many = left_out[TRAIN] > counts["rows"][TRAIN] / 10
    how_to_split = "; split texts, not rows (data/README.md)" if many else ""
    several, blank = counts["texts_with_several_labels"], counts["blank_texts"]
    ignored, unlearnable = counts[IGNORED_LABELS], counts["classes_absent_from_train"]
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
