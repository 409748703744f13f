"""What a classifier's confidence is worth: temperature scaling, calibration error, coverage against accuracy.

Shapes: n texts, C classes. The confidence of an answer is the probability of its class.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax

from receiptbert.metrics import ClassIds

Floats = npt.NDArray[np.floating]

BINS = 15  # of the reliability table, of equal width, as in Guo et al. 2017
# Where the temperature is sought: colder ones leave no doubt, hotter ones no confidence.
COLDEST, HOTTEST = 0.1, 10.0
TEMPERATURE_DECIMALS = 4
THRESHOLDS = [step / 20 for step in range(20)] + [0.99]


def fit_temperature(logits: Floats, true: ClassIds) -> float:
    """The temperature under which ``true`` is most likely (Guo et al. 2017, "On Calibration of Modern Neural
    Networks"), rounded so that equal models have equal bytes.

    Dividing logits by it keeps their order: no answer changes, only its confidence.

    Args:
        logits: (n, C), of texts that the model was not trained on.
        true: class ids, shape (n,).

    Returns:
        a number from 0.1 to 10 (these also where a lower or a higher one would be likelier); 1 where these
        rows cannot determine it: there are none, all are answered right and a temperature of 0.1 is too high
        for them, or the logits are no better than chance or not finite.
    """
    if not len(true):
        return 1.0
    logits = logits.astype(np.float64)
    mean_true = logits[np.arange(len(true)), true].mean()

    def slope(inverse: float) -> float:
        """The derivative of the negative log likelihood in 1 / temperature; non-decreasing (convexity)."""
        expected = (softmax(inverse * logits, axis=1) * logits).sum(axis=1)  # (n,)
        return float(expected.mean() - mean_true)

    if not slope(0) < 0:
        return 1.0
    if slope(1 / HOTTEST) >= 0:
        return HOTTEST
    if slope(1 / COLDEST) <= 0:
        some_wrong = (logits[np.arange(len(true)), true] < logits.max(axis=1)).any()
        return COLDEST if some_wrong else 1.0
    return round(1 / float(brentq(slope, 1 / HOTTEST, 1 / COLDEST)), TEMPERATURE_DECIMALS)


class Answers(NamedTuple):
    """How sure each answer was, and whether it was right.

    Attributes:
        confidence: from 0 to 1, shape (n,).
        correct: booleans, shape (n,).
    """

    confidence: npt.NDArray[np.float64]
    correct: npt.NDArray[np.bool_]


def answers(logits: Floats, true: ClassIds, temperature: float = 1.0) -> Answers:
    """The answers that logits (n, C) give at a temperature to texts of the classes ``true`` (n,)."""
    probabilities = softmax(logits.astype(np.float64) / temperature, axis=1)
    return Answers(probabilities.max(axis=1), logits.argmax(axis=1) == true)


class Bin(NamedTuple):
    """The answers whose confidence lies in one interval."""

    confidence: float
    """Their mean confidence."""
    accuracy: float
    """The share of them that is right."""
    rows: int


def reliability(given: Answers) -> list[Bin]:
    """Confidence beside accuracy in ``BINS`` intervals of equal width, the empty ones left out."""

    def per_bin(weights: npt.NDArray[np.float64] | None = None) -> npt.NDArray[np.float64]:
        return np.histogram(given.confidence, BINS, range=(0, 1), weights=weights)[0].astype(np.float64)

    rows, confidence, right = per_bin(), per_bin(given.confidence), per_bin(given.correct.astype(np.float64))
    return [
        Bin(float(confidence[i] / rows[i]), float(right[i] / rows[i]), int(rows[i]))
        for i in np.flatnonzero(rows)
    ]


def expected_calibration_error(given: Answers) -> float:
    """The mean gap between confidence and accuracy over the bins, weighted by rows (Naeini et al. 2015)."""
    distances = [rows * abs(confidence - accuracy) for confidence, accuracy, rows in reliability(given)]
    return sum(distances) / max(len(given.correct), 1)


class Coverage(NamedTuple):
    """What is left if answers below a confidence go to a person."""

    threshold: float
    coverage: float
    """The share of rows whose confidence is at least ``threshold``."""
    accuracy: float
    """The share of these that is right."""


def coverage(given: Answers) -> list[Coverage]:
    """The rows kept and their accuracy at each of ``THRESHOLDS``, up to the last that keeps any."""
    kept = [(threshold, given.confidence >= threshold) for threshold in THRESHOLDS]
    return [
        Coverage(threshold, float(mask.mean()), float(given.correct[mask].mean()))
        for threshold, mask in kept
        if mask.any()
    ]


def calibration_scores(logits: Floats, true: ClassIds, temperature: float) -> dict[str, float]:
    """Expected calibration error and negative log likelihood (nats), with the temperature and without."""

    def nll(temperature: float) -> float:
        logs = log_softmax(logits.astype(np.float64) / temperature, axis=1)
        return float(-logs[np.arange(len(true)), true].mean())

    return {
        "ece": expected_calibration_error(answers(logits, true, temperature)),
        "ece_uncalibrated": expected_calibration_error(answers(logits, true)),
        "nll": nll(temperature),
        "nll_uncalibrated": nll(1.0),
    }
