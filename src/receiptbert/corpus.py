"""Read and check the corpus: one CSV with the columns ``text``, ``label`` and ``split``."""

import re
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from receiptbert.errors import UserError

TEXT, LABEL, SPLIT = COLUMNS = ["text", "label", "split"]
TRAIN, VAL, TEST, UNSUPERVISED = SPLITS = ["train", "val", "test", "unsupervised"]
LABELLED = [TRAIN, VAL, TEST]


def read_corpus(path: Path) -> pd.DataFrame:
    """Read the CSV with the columns ``text``, ``label`` and ``split``, all of them strings.

    Nothing is dropped and no text is read as a missing value: a product may be called "NA". Labels keep
    their spelling but for two habits of tables: surrounding spaces and the ``.0`` of whole numbers that a
    column with gaps grows (``12.0`` is ``12``). Unsupervised rows get the empty label.

    Raises:
        UserError: not UTF-8, not a CSV, a column missing, no rows, an unknown split, a labelled row
            without a label, or a labelled split without rows. Row numbers count the header as row 1.
    """
    corpus = _read_table(path, COLUMNS)
    if corpus.empty:
        raise UserError(f"{path} has a header and no rows; it needs rows of text,label,split")
    corpus[SPLIT] = corpus[SPLIT].str.strip()
    corpus[LABEL] = _canonical(corpus[LABEL])
    unsupervised = corpus[SPLIT] == UNSUPERVISED
    corpus.loc[unsupervised, LABEL] = ""
    _refuse_first(path, corpus, ~corpus[SPLIT].isin(SPLITS), SPLIT, f"must be one of {', '.join(SPLITS)}")
    _refuse_first(path, corpus, ~unsupervised & (corpus[LABEL] == ""), LABEL, "is needed in a labelled split")
    for split in LABELLED:
        if not (corpus[SPLIT] == split).any():
            raise UserError(f"{path} has no rows with split={split}; train, val and test are all needed")
    if (corpus.loc[corpus[SPLIT] == TRAIN, LABEL].nunique()) < 2:
        raise UserError(f"{path} has train rows of one label only; there is nothing to tell apart")
    return corpus


def read_categories(path: Path) -> dict[str, str]:
    """Read ``label,name`` into a map from label to name; an absent file is an empty map.

    Raises:
        UserError: not a CSV with these columns, or a label named twice.
    """
    if not path.exists():
        return {}
    table = _read_table(path, ["label", "name"])
    labels = _canonical(table["label"])
    _refuse_first(path, table.assign(label=labels), labels.duplicated(), "label", "is named twice")
    return dict(zip(labels, table["name"].str.strip(), strict=True))


def label_list(corpus: pd.DataFrame) -> list[str]:
    """All labels of the labelled splits; a label's place in the list is its class id, 0 to n - 1.

    Whole numbers are ordered as numbers, anything else as text. A class that only val or test has
    keeps its id: nothing can learn it, and the scores must show that.
    """
    labels = corpus.loc[corpus[LABEL] != "", LABEL].unique().tolist()
    numeric = all(re.fullmatch(r"-?\d+", label) for label in labels)
    return sorted(labels, key=int) if numeric else sorted(labels)


def majority_class(corpus: pd.DataFrame) -> int:
    """The id of the most frequent class of train."""
    most_frequent = corpus.loc[corpus[SPLIT] == TRAIN, LABEL].mode().iloc[0]
    return label_list(corpus).index(most_frequent)


def label_names(labels: list[str], categories: dict[str, str]) -> list[str]:
    """A distinct name for each label: its category's, or the label itself where there is none."""
    names = [categories.get(label) or label for label in labels]
    # Two labels of one name would be one class to whoever reads the model's answer.
    while len(set(names)) < len(names):
        names = [
            f"{name} ({label})" if names.count(name) > 1 else name
            for name, label in zip(names, labels, strict=True)
        ]
    return names


def describe(corpus: pd.DataFrame) -> dict[str, Any]:
    """Counts that tell whether the corpus is what its owner thinks it is (``metrics/data.json``).

    Two texts are the same here if they are alike in lower case with spaces folded.
    """
    folded = corpus[TEXT].str.lower().str.replace(r"\s+", " ", regex=True).str.strip()
    split = corpus[SPLIT]
    splits_per_text = split.groupby(folded).nunique()
    shared = set(splits_per_text.index[splits_per_text > 1])
    train_labels = corpus.loc[split == TRAIN, LABEL]
    counts = train_labels.value_counts()
    unseen = set(corpus.loc[corpus[LABEL] != "", LABEL]) - set(train_labels)
    return {
        "rows": {name: int((split == name).sum()) for name in SPLITS},
        "distinct_texts": {name: int(folded[split == name].nunique()) for name in SPLITS},
        "blank_texts": int((folded == "").sum()),
        "texts_in_several_splits": len(shared),
        "test_rows_seen_elsewhere": int(folded[split == TEST].isin(shared).sum()),
        "classes": {name: int(corpus.loc[split == name, LABEL].nunique()) for name in LABELLED},
        "classes_absent_from_train": len(unseen),
        "train_rows_per_class": {
            "largest": int(counts.max()),
            "median": float(counts.median()),
            "smallest": int(counts.min()),
        },
        "largest_class_share": float(counts.max() / counts.sum()),
    }


def _read_table(path: Path, columns: list[str]) -> pd.DataFrame:
    """The named columns as strings. Every field of every row is parsed: with ``usecols`` pandas would not see
    that a row has a field too many, as an unquoted comma in a text makes, and would shift the others."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(path, dtype=str, na_filter=False, index_col=False, encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} not found; run `dvc repro unzip`") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert it") from None
    except pd.errors.ParserWarning:
        raise UserError(
            f"{path}: rows have more fields than the header; quote texts that have commas"
        ) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"{path} is not a CSV: {' '.join(str(error).split())}") from None
    if missing := [name for name in columns if name not in table.columns]:
        raise UserError(f"{path} lacks the column {missing[0]}; its header must name {','.join(columns)}")
    # pandas gives the second column of a name another name.
    if doubled := [name for name in columns if f"{name}.1" in table.columns]:
        raise UserError(f"{path} has two columns named {doubled[0]}; leave one")
    return table[columns]


def _canonical(labels: "pd.Series[str]") -> "pd.Series[str]":
    """Labels without surrounding spaces and without the ``.0`` of whole numbers."""
    return labels.str.strip().str.replace(r"^(-?\d+)\.0+$", r"\1", regex=True)


def _refuse_first(path: Path, corpus: pd.DataFrame, bad: "pd.Series[bool]", column: str, rule: str) -> None:
    if bad.any():
        row = int(bad.to_numpy().argmax())
        value = corpus[column].iloc[row]
        others = f" (and {int(bad.sum()) - 1:,} more rows)" if bad.sum() > 1 else ""
        raise UserError(f"{path}, row {row + 2}: {column} {value!r} {rule}{others}")
