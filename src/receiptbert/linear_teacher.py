"""A linear model, on n-grams of characters and of words, whose errors differ from BERT's."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import FeatureUnion, make_union
from sklearn.svm import LinearSVC

from receiptbert.devices import free_memory
from receiptbert.errors import UserError
from receiptbert.metrics import ClassIds
from receiptbert.plan import GIB

Probabilities = npt.NDArray[np.float32]

CHARACTERS: dict[str, Any] = {
    "analyzer": "char_wb",
    "ngram_range": (1, 6),
    "min_df": 2,
    "sublinear_tf": True,
}
WORDS: dict[str, Any] = {
    "token_pattern": r"\S+",
    "ngram_range": (1, 2),
    "sublinear_tf": True,
}
SVM_C = 0.5  # inverse strength of the regularization
# To choose from on val. An SVM's margins differ by one or two, so their softmax is nearly flat: if one class
# of 20 has 0.5 and all others -1, that one has a probability of 0.19. Times 4 it has 0.955.
INVERSE_TEMPERATURES = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 14.0]
TEXTS_AT_ONCE = 10_000  # texts whose features are in memory at once
COPIES = 2  # of the weights, features x classes numbers of 8 bytes: liblinear's and scikit-learn's


class LinearTeacher:
    """A linear support vector machine on n-grams of characters and of words that gives probabilities.

    Args:
        train_texts: n texts.
        train_targets: their class ids, shape (n,).
        val_texts: texts on which the temperature of the softmax is chosen.
        val_targets: their class ids.
        num_classes: C; a class that train lacks gets the probability 0.

    Raises:
        UserError: fewer than two train texts have anything to read, or memory is too small.
    """

    def __init__(
        self,
        train_texts: Sequence[str],
        train_targets: ClassIds,
        val_texts: Sequence[str],
        val_targets: ClassIds,
        num_classes: int,
    ) -> None:
        self._num_classes = num_classes
        self._vectorizer = tfidf(CHARACTERS, WORDS)
        self._svm = LinearSVC(C=SVM_C, random_state=0)
        try:
            features = self._vectorizer.fit_transform(train_texts)
        except ValueError as error:
            raise UserError(
                f"the train texts give the linear teacher no features ({error}); set finetune.teachers to 0"
            ) from None
        _require_memory(features.shape[1], len(np.unique(train_targets)))
        with warnings.catch_warnings():
            # Two labels per class are few, but not a mistake.
            warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
            self._svm.fit(features, train_targets)
        # Nothing can be learned about a class that train lacks; its rows would have an infinite loss.
        known = np.isin(val_targets, self._svm.classes_)
        margins = np.concatenate([self._margins(val_texts[rows]) for rows in _chunks(len(val_texts))])[known]
        columns = np.searchsorted(self._svm.classes_, val_targets[known])[:, None]

        def loss(inverse_temperature: float) -> float:
            chosen = np.take_along_axis(softmax(inverse_temperature * margins, axis=1), columns, axis=1)
            return -float(np.log(np.maximum(chosen, 1e-12)).sum())

        self._inverse_temperature = min(INVERSE_TEMPERATURES, key=loss)

    def probabilities(self, texts: Sequence[str]) -> Probabilities:
        """How probable each class is for each of ``texts``, shape (n, C)."""
        probabilities = np.zeros((len(texts), self._num_classes), dtype=np.float32)
        for rows in _chunks(len(texts)):
            margins = self._margins(texts[rows])
            probabilities[rows, self._svm.classes_] = softmax(self._inverse_temperature * margins, axis=1)
        return probabilities

    def _margins(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """The decision value of each text for each class in train, shape (n, classes in train)."""
        margins = self._svm.decision_function(self._vectorizer.transform(texts))
        # For two classes it gives only the second's.
        return np.stack([-margins, margins], axis=1) if margins.ndim == 1 else margins


def _require_memory(num_features: int, num_classes: int) -> None:
    """Refuse what would have Linux kill the process: features of many texts for many classes."""
    rows = num_classes if num_classes > 2 else 1
    needed, free = COPIES * 8 * num_features * rows, free_memory(torch.device("cpu"))
    if free is not None and needed > free:
        raise UserError(
            f"the linear teacher would take about {needed / GIB:.1f} GiB of memory ({num_features:,} n-grams "
            f"for {num_classes:,} classes), but only {free / GIB:.1f} GiB are free; set finetune.teachers "
            "to 0"
        )


def _chunks(number: int) -> list[slice]:
    return [slice(start, start + TEXTS_AT_ONCE) for start in range(0, number, TEXTS_AT_ONCE)]


def tfidf(*kinds: dict[str, Any]) -> FeatureUnion:
    """The features of several kinds, side by side; each kind is a ``TfidfVectorizer``'s settings."""
    return make_union(*(TfidfVectorizer(**kind) for kind in kinds))
