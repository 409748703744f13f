"""Read and check the corpus: one CSV with the columns ``text``, ``label`` and ``split``."""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from receiptbert.csv_faults import check_header, place, place_of_bad_quotes, too_wide
from receiptbert.decoding import check_bytes, not_utf8
from receiptbert.errors import UserError
from receiptbert.splits import COLUMNS, LABEL, SPLIT, SPLITS, TEXT, TRAIN, UNSUPERVISED

# A receipt line has tens of characters.
MAX_TEXT = 10_000
ROWS_AT_ONCE = 100_000
WHOLE_NUMBER = r"-?\d{1,1000}"  # the most repeats that pandas' regular expressions allow
# How tables, databases and their tools write a missing label; case does not matter.
NO_LABEL = {"", "na", "n/a", "#na", "#n/a", "#n/a n/a", "н/д", "#н/д", "<na>", "nan", "-nan", "nat", "none"}
NO_LABEL |= {"null", "(null)", "[null]", "<null>", r"\n"}
ERROR_OF_A_SPREADSHEET = r"#\S+[!?]"  # as #REF! or #ИМЯ?
# What `describe` calls the rows whose label was ignored; `read_corpus` counts them in `attrs`.
IGNORED_LABELS = "unsupervised_rows_with_label"
# A whole field of a CSV that names a split, and a comma beside it: a row has other fields.
SPLIT_NAME = rf" *\"?(?:{'|'.join(SPLITS)})\"? *"
SPLIT_FIELD = rf"(?:^|[\r\n]){SPLIT_NAME},|,{SPLIT_NAME}(?:[,\r\n]|$)"
QUOTES = (
    "a quote opens here and seems to close in another row; double quotes within a text and quote the whole "
    "text"
)


def read_corpus(path: Path, called: str | None = None) -> pd.DataFrame:
    """Read the CSV with the columns ``text``, ``label`` and ``split``, all of them strings.

    No row is dropped but empty ones, and no text is read as a missing value: a product may be called "NA".
    Labels keep their spelling, except that two habits of tables are undone: surrounding spaces, and the
    ``.0`` that whole numbers get in a column with gaps (``12.0`` is ``12``). Unsupervised rows get the empty
    label; those that had another are counted in ``attrs[IGNORED_LABELS]``.

    Args:
        called: what errors call the file; its path by default.

    Raises:
        UserError: not UTF-8, not a CSV, a column missing, an unknown split, a split without rows, a labelled
            row without a label, labels some of which are numbers and some names, a number spelled in two
            ways or with a fraction, one class only, a text of more than ``MAX_TEXT`` characters. Row numbers
            count the header as row 1.
    """
    called = called or str(path)
    corpus = _read_table(path, called, COLUMNS)
    if corpus.empty:
        raise UserError(f"{called} has a header and no rows; it needs rows of text,label,split")
    corpus[SPLIT] = corpus[SPLIT].str.strip()
    corpus[LABEL] = _canonical(corpus[LABEL])
    unsupervised = corpus[SPLIT] == UNSUPERVISED
    unlabelled = corpus[LABEL].isin([label for label in corpus[LABEL].unique() if _is_missing(label)])
    corpus.attrs[IGNORED_LABELS] = int((unsupervised & ~unlabelled).sum())
    corpus.loc[unsupervised, LABEL] = ""

    def refuse_first(bad: "pd.Series[bool]", column: str, rule: str) -> None:
        _refuse_first(path, called, corpus, bad, column, rule)

    # The first half of a row is one, too, that a line break outside of quotes has cut.
    refuse_first(corpus[SPLIT] == "", SPLIT, "is no split; fill it in, and quote texts that have line breaks")
    refuse_first(~corpus[SPLIT].isin(SPLITS), SPLIT, f"must be one of {', '.join(SPLITS)}")
    refuse_first(~unsupervised & unlabelled, LABEL, "is not a label; train, val and test rows need one")
    if rule := _rule_of_labels(corpus[LABEL]):
        refuse_first(corpus[LABEL].isin(rule[0]), LABEL, rule[1])
    refuse_first(
        corpus[TEXT].str.len() > MAX_TEXT,
        TEXT,
        f"has more than {MAX_TEXT:,} characters, which no receipt line has; cut it",
    )
    require_splits(corpus, called)
    return corpus


def require_splits(corpus: pd.DataFrame, called: str) -> None:
    """Raise a ``UserError`` if a split has no rows, or train has a single class."""
    for split in SPLITS:
        if not (corpus[SPLIT] == split).any():
            raise UserError(f"{called} has no rows with split={split}; {', '.join(SPLITS)} are all needed")
    if (corpus.loc[corpus[SPLIT] == TRAIN, LABEL].nunique()) < 2:
        raise UserError(f"{called} has train rows of one label only; there is nothing to tell apart")


def require_quotes(path: Path, called: str) -> None:
    """Raise a ``UserError`` if a quoted field goes on after its quote: pandas reads ``"a" b`` as ``a b``.

    It takes a second for a million rows, so only the first stage checks the corpus.
    """
    if at := place_of_bad_quotes(path):
        raise UserError(f"{called}, {at}: {QUOTES}")


def read_categories(path: Path, called: str | None = None) -> dict[str, str]:
    """Read ``label,name`` into a map from label to name; an absent file gives an empty map.

    Args:
        called: what errors call the file; its path by default.

    Raises:
        UserError: not a CSV with these columns, a label named twice, a label or a name of several lines.
    """
    if not path.exists():
        return {}
    called = called or str(path)
    table = _read_table(path, called, ["label", "name"])
    require_quotes(path, called)
    table["label"], table["name"] = _canonical(table["label"]), table["name"].str.strip()
    _refuse_first(path, called, table, table["label"].duplicated(), "label", "is named twice")
    for column in ("label", "name"):
        broken = table[column].str.contains(r"[\r\n]")
        _refuse_first(path, called, table, broken, column, "has a line break; write it on one line")
    return dict(zip(table["label"], table["name"], strict=True))


def strings(column: "pd.Series[str]") -> Iterator[str]:
    """The strings of ``column``, a part at a time: asked one by one, Arrow takes three times as long."""
    for start in range(0, len(column), ROWS_AT_ONCE):
        yield from column.iloc[start : start + ROWS_AT_ONCE].tolist()


def label_list(corpus: pd.DataFrame) -> list[str]:
    """All labels of the labelled splits; a label's place in the list is its class id, 0 to n - 1.

    Whole numbers are ordered as numbers, anything else as text. A class that only val or test has
    keeps its id: nothing can learn it, and the scores must show that.
    """
    labels = corpus.loc[corpus[LABEL] != "", LABEL].unique().tolist()
    numeric = all(re.fullmatch(WHOLE_NUMBER, label) for label in labels)
    return sorted(labels, key=int) if numeric else sorted(labels)


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


def _read_table(path: Path, called: str, columns: list[str]) -> pd.DataFrame:
    """The named columns as strings. Every field of every row is parsed: with ``usecols`` pandas would not see
    that a row has a field too many (from an unquoted comma in a text), and would shift the others."""
    try:
        check_bytes(path, called)
        check_header(path, called, columns)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(path, dtype=str, na_filter=False, index_col=False, encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{called} not found; run `dvc repro unzip`") from None
    except UnicodeDecodeError:
        raise not_utf8(path, called) from None
    except (pd.errors.ParserWarning, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        if "out of memory" in str(error):
            raise MemoryError(str(error)) from None
        raise _broken_rows(path, called, error) from None
    _refuse_swallowed_rows(path, called, table)
    # A spreadsheet adds rows of empty fields; they are no more than blank lines, which pandas leaves out.
    if (empty := (table == "").all(axis=1)).any():
        table = table[~empty]
    return table[columns]


def _broken_rows(path: Path, called: str, error: Exception) -> UserError:
    # A quote is the likelier cause: it makes rows of other widths as well.
    if at := place_of_bad_quotes(path):
        return UserError(f"{called}, {at}: {QUOTES}")
    if wide := too_wide(path):
        return UserError(f"{called}, {wide}; quote texts that have commas")
    return UserError(f"{called} is not a CSV: {error}")


def _refuse_swallowed_rows(path: Path, called: str, table: pd.DataFrame) -> None:
    """Raise a ``UserError`` if a field of several lines holds the split of another row: a quote opened by
    mistake ends at the next one, rows later, and no parser objects."""
    for name in table.columns:
        long = table.loc[table[name].str.contains(r"[\r\n]"), name]
        if (swallowed := long.index[long.str.contains(SPLIT_FIELD)]).size:
            raise UserError(
                f"{called}, {place(path, int(swallowed[0]))}: {QUOTES}; if it is one text with a line break, "
                "take the break out"
            )


def _is_missing(label: str) -> bool:
    return label.lower() in NO_LABEL or re.fullmatch(ERROR_OF_A_SPREADSHEET, label) is not None


def _canonical(labels: "pd.Series[str]") -> "pd.Series[str]":
    """Labels without surrounding spaces and without the ``.0`` of whole numbers."""
    return labels.str.strip().str.replace(r"^(-?\d+)\.0+$", r"\1", regex=True)


def _rule_of_labels(column: "pd.Series[str]") -> tuple[list[str], str] | None:
    """Labels that break a rule, and what is wrong with them; None if there are none."""
    rows = column[column != ""].value_counts()
    labels = rows.index.to_series()
    fractions = labels.str.fullmatch(r"-?\d*[.,]\d+(?:[eE][-+]?\d+)?")
    if fractions.any():
        return labels[fractions].tolist(), "is a fraction; make labels whole numbers or names"
    whole = labels.str.fullmatch(WHOLE_NUMBER)
    numbers, names = int(rows[whole].sum()), int(rows[~whole].sum())
    if not numbers:
        return None
    if not names:
        return _spelled_twice(labels)
    rest = "make labels all numbers or all names"
    if names <= numbers:
        rule = f"is not a whole number, but the labels of {numbers:,} other rows are; {rest}"
        return labels[~whole].tolist(), rule
    rule = f"is a whole number, but the labels of {names:,} other rows are names; {rest}"
    return labels[whole].tolist(), rule


def _spelled_twice(labels: "pd.Series[str]") -> tuple[list[str], str] | None:
    """A label that is the same number as a more frequent one; ``labels`` are numbers, by their frequency."""
    spellings: dict[int, str] = {}
    for label in labels:
        if (usual := spellings.setdefault(int(label), label)) != label:
            return [label], f"is the number of the label {usual!r}; spell it in one way"
    return None


def _refuse_first(
    path: Path, called: str, corpus: pd.DataFrame, bad: "pd.Series[bool]", column: str, rule: str
) -> None:
    if bad.any():
        row = int(bad.to_numpy().argmax())
        where = place(path, corpus.index[row])  # not ``row``: `_read_table` has left out empty rows
        value = corpus[column].iloc[row]
        shown = repr(value) if len(value) <= 50 else f"{value[:50]!r}..."
        rows = f" ({int(bad.sum()):,} rows)" if bad.sum() > 1 else ""
        raise UserError(f"{called}, {where}, column {column}: {shown} {rule}{rows}")
