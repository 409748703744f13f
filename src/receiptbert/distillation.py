"""Teach one model what an ensemble of several knows (Hinton et al. 2015).

The ensemble says how probable each class is for texts that no one labelled but that are of the same kind, and
the model learns that beside the labels (Buciluă et al. 2006; for BERT, Tang et al. 2019). A linear model on
characters and words belongs to the ensemble: it errs elsewhere than BERT does.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import FeatureUnion, make_union
from sklearn.svm import LinearSVC

from receiptbert.errors import UserError
from receiptbert.labelled import TrainingSet
from receiptbert.token_store import TokenStore

Classes = npt.NDArray[np.int64]
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
STRENGTH = 0.5  # of the SVM, its C
SHARPNESS = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 14.0]  # inverse temperatures to choose from
CHUNK = 10_000  # texts whose features are in memory at once

UNLABELLED = 2  # texts without a label to each with one


class LinearTeacher:
    """A linear support vector machine on n-grams of characters and of words that gives probabilities.

    Args:
        train_texts: n texts.
        train_targets: their class ids, shape (n,).
        val_texts: texts on which the sharpness of the probabilities is chosen.
        val_targets: their class ids.
        num_classes: C; a class that train lacks gets the probability 0.

    Raises:
        UserError: the train texts have no characters in common.
    """

    def __init__(
        self,
        train_texts: Sequence[str],
        train_targets: Classes,
        val_texts: Sequence[str],
        val_targets: Classes,
        num_classes: int,
    ) -> None:
        self._num_classes = num_classes
        self._vectorizer = tfidf(CHARACTERS, WORDS)
        self._svm = LinearSVC(C=STRENGTH, random_state=0)
        try:
            features = self._vectorizer.fit_transform(train_texts)
        except ValueError as error:
            raise UserError(
                f"the train texts give the linear teacher no features ({error}); set finetune.teachers to 0"
            ) from None
        with warnings.catch_warnings():
            # Two labels a class are few, and yet no mistake.
            warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
            self._svm.fit(features, train_targets)
        # Nothing can be learned of a class that train lacks; its rows would have an infinite loss.
        known = np.isin(val_targets, self._svm.classes_)
        margins = self._margins(val_texts)[known]
        columns = np.searchsorted(self._svm.classes_, val_targets[known])[:, None]

        def loss(sharpness: float) -> float:
            chosen = np.take_along_axis(softmax(sharpness * margins, axis=1), columns, axis=1)
            return -float(np.log(np.maximum(chosen, 1e-12)).sum())

        self._sharpness = min(SHARPNESS, key=loss)

    def probabilities(self, texts: Sequence[str]) -> Probabilities:
        """How probable each class is for each of ``texts``, shape (n, C)."""
        probabilities = np.zeros((len(texts), self._num_classes), dtype=np.float32)
        for start in range(0, len(texts), CHUNK):
            rows = slice(start, start + CHUNK)
            margins = self._margins(texts[rows])
            probabilities[rows, self._svm.classes_] = softmax(self._sharpness * margins, axis=1)
        return probabilities

    def _margins(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """How far each text is on the side of each class of train, shape (n, classes of train)."""
        margins = self._svm.decision_function(self._vectorizer.transform(texts))
        # Of two classes it gives the second's alone.
        return np.stack([-margins, margins], axis=1) if margins.ndim == 1 else margins


def tfidf(*kinds: dict[str, Any]) -> FeatureUnion:
    """The features of several kinds, each the settings of a ``TfidfVectorizer``, beside each other."""
    return make_union(*(TfidfVectorizer(**kind) for kind in kinds))


def draw_unlabelled(texts: Sequence[str], labelled: TrainingSet, seed: int) -> list[str]:
    """As many of ``texts``, chosen at random, as a training on ``labelled`` has time for, or all of them."""
    # NumPy takes no negative seed.
    order = np.random.default_rng(seed % 2**32).permutation(len(texts))
    return [texts[i] for i in order[: UNLABELLED * len(labelled.texts) * labelled.epochs]]


def distillation_pool(
    labelled: TrainingSet, unlabelled: TokenStore, probabilities: Probabilities
) -> TrainingSet:
    """The labelled texts among the unlabelled ones, as a training that sees each label as often as before.

    The labelled texts are repeated until they are about a third of the pool, and the passes over it are so
    much fewer. With batches three times as large, the number of steps stays about the same too.

    Args:
        labelled: n texts with class ids, and how a model is trained on them alone.
        unlabelled: U texts.
        probabilities: what the teachers say of them, shape (U, C).

    Returns:
        n * repeats + U texts with probabilities as targets; those of labelled texts are smoothed.
    """
    num_labelled, num_classes = len(labelled.texts), probabilities.shape[1]
    repeats = max(1, round(len(unlabelled) / (UNLABELLED * num_labelled)))
    certain = np.eye(num_classes, dtype=np.float32)[labelled.targets]  # (n, C)
    smoothed = (1 - labelled.label_smoothing) * certain + labelled.label_smoothing / num_classes
    rows = np.concatenate(
        [np.tile(np.arange(num_labelled), repeats), num_labelled + np.arange(len(unlabelled))]
    )
    return TrainingSet(
        labelled.texts.followed_by(unlabelled).take(rows),
        np.concatenate([smoothed, probabilities])[rows].astype(np.float32),
        epochs=max(1, round(labelled.epochs / repeats)),
        batch_size=(1 + UNLABELLED) * labelled.batch_size,
        label_smoothing=0.0,
    )
