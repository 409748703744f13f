"""Scores of a classifier and the data of its plots."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

ClassIds = npt.NDArray[np.int64]

BOOTSTRAP_DRAWS = 1000


def scores(true: ClassIds, predicted: ClassIds, majority: int) -> dict[str, Any]:
    """Weighted F1 (the score of this project) first, then macro F1, accuracy, a baseline and the row count.

    Args:
        true: class ids, shape (n,).
        predicted: class ids, shape (n,).
        majority: the most frequent class of train; always answering it gives ``majority_weighted_f1``.
    """
    return {
        "weighted_f1": f1(true, predicted, "weighted"),
        "macro_f1": f1(true, predicted, "macro"),
        "accuracy": float(accuracy_score(true, predicted)),
        "majority_weighted_f1": f1(true, np.full_like(true, majority), "weighted"),
        "rows": len(true),
    }


def f1(true: npt.ArrayLike, predicted: npt.ArrayLike, average: str) -> float:
    """The ``weighted`` or ``macro`` average of the classes' F1 scores; a class never predicted scores 0.

    Both are ids or names of classes, shape (n,).
    """
    return float(f1_score(true, predicted, average=average, zero_division=0))


def score_intervals(true: ClassIds, predicted: ClassIds) -> dict[str, tuple[float, float]]:
    """95% intervals of weighted F1, macro F1 and accuracy: the percentile bootstrap (Efron 1981).

    The rows are resampled with replacement, and the scores computed from each draw. A draw determines the
    scores through its confusion matrix alone, so that is what is drawn: its cells have the multinomial
    distribution that drawing rows gives them.
    """
    size = int(max(true.max(), predicted.max())) + 1
    cells, rows = np.unique(true * size + predicted, return_counts=True)
    actual, answer = np.divmod(cells, size)
    generator = np.random.default_rng(0)
    drawn = [
        confusion_scores(actual, answer, generator.multinomial(len(true), rows / len(true)))
        for _ in range(BOOTSTRAP_DRAWS)
    ]
    ends = np.quantile(drawn, [0.025, 0.975], axis=0)  # (2, 3)
    names = ["weighted_f1", "macro_f1", "accuracy"]
    return {name: (float(low), float(high)) for name, low, high in zip(names, *ends, strict=True)}


def confusion_scores(actual: ClassIds, answer: ClassIds, rows: ClassIds) -> tuple[float, float, float]:
    """Weighted F1, macro F1, accuracy from ``rows``, the count of each pair of classes; all (cells,)."""
    size = int(max(actual.max(), answer.max())) + 1
    hits, of_class, answered = (
        np.bincount(classes, weights=rows * chosen, minlength=size)
        for classes, chosen in [(actual, actual == answer), (actual, True), (answer, True)]
    )
    occurs = of_class + answered > 0
    f1s = 2 * hits[occurs] / (of_class + answered)[occurs]
    return float(f1s @ of_class[occurs] / rows.sum()), float(f1s.mean()), float(hits.sum() / rows.sum())


class ClassScore(NamedTuple):
    """How well one class is told apart from the others."""

    name: str
    f1: float
    precision: float
    recall: float
    rows: int


def class_scores(true: ClassIds, predicted: ClassIds, names: Sequence[str]) -> list[ClassScore]:
    """The scores of each class that occurs, the best first."""
    numbers = np.union1d(true, predicted)
    precisions, recalls, f1s, rows = precision_recall_fscore_support(
        true, predicted, labels=numbers, zero_division=0
    )
    table = [
        ClassScore(names[number], float(f), float(p), float(r), int(n))
        for number, f, p, r, n in zip(numbers, f1s, precisions, recalls, rows, strict=True)
    ]
    return sorted(table, key=lambda row: (-row.f1, row.name))


class ConfusedPair(NamedTuple):
    """One kind of error: rows of class ``actual`` that were taken for ``predicted``."""

    actual: str
    predicted: str
    rows: int
    example: str


def most_confused_pairs(
    true: ClassIds, predicted: ClassIds, texts: Sequence[str], names: Sequence[str], count: int = 20
) -> list[ConfusedPair]:
    """The ``count`` most frequent errors, each with the first text that shows it."""
    errors: Counter[tuple[int, int]] = Counter()
    examples: dict[tuple[int, int], str] = {}
    for actual, answer, text in zip(true.tolist(), predicted.tolist(), texts, strict=True):
        if actual != answer:
            errors[actual, answer] += 1
            examples.setdefault((actual, answer), text)
    most = sorted(errors.items(), key=lambda item: (-item[1], item[0]))[:count]
    return [ConfusedPair(names[a], names[b], rows, examples[a, b]) for (a, b), rows in most]
