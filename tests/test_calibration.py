"""Calibration: by hand on small examples, then what must hold of any logits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import softmax

from receiptbert.calibration import (
    COLDEST,
    HOTTEST,
    Answers,
    answers,
    calibration_scores,
    coverage,
    expected_calibration_error,
    fit_temperature,
    reliability,
)

# Two answers in the bin from 0.6 to 0.667 (one right), two in the one from 0.933 to 1 (both right).
FOUR = Answers(np.array([0.61, 0.65, 0.95, 1.0]), np.array([True, False, True, True]))
LOGITS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 30), st.just(4)), elements=st.floats(-20, 20, width=32)
)


def drawn(temperature: float, rows: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and classes drawn from their softmax at ``temperature``, where they are calibrated."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=3, size=(rows, 5)).astype(np.float32)
    heights = logits / temperature + rng.gumbel(size=logits.shape)  # its argmax is a draw from the softmax
    return logits, heights.argmax(axis=1)


def test_reliability_and_calibration_error_by_hand() -> None:
    low, high = reliability(FOUR)
    assert low == pytest.approx((0.63, 0.5, 2))
    assert high == pytest.approx((0.975, 1.0, 2))
    assert expected_calibration_error(FOUR) == pytest.approx((2 * 0.13 + 2 * 0.025) / 4)


def test_answers_by_hand() -> None:
    logits = np.log([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    given = answers(logits, np.array([1, 2]))
    assert given.confidence == pytest.approx([0.5, 0.8])
    assert given.correct.tolist() == [False, True]
    # At temperature 1/2 the probabilities are squared.
    colder = answers(logits, np.array([1, 2]), 0.5)
    assert colder.confidence == pytest.approx([0.25 / 0.38, 0.64 / 0.66])


def test_coverage_by_hand() -> None:
    table = {row.threshold: row[1:] for row in coverage(FOUR)}
    assert table[0.0] == (1.0, 0.75)
    assert table[0.65] == (0.75, pytest.approx(2 / 3))  # what is as sure as the threshold is kept
    assert table[0.7] == (0.5, 1.0)
    assert table[0.99] == (0.25, 1.0)
    unsure = coverage(Answers(np.array([0.3]), np.array([True])))
    assert unsure[-1].threshold == 0.3  # no accuracy of no rows


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_a_known_temperature_is_found_and_calibrates(temperature: float) -> None:
    logits, true = drawn(temperature)
    assert fit_temperature(logits, true) == pytest.approx(temperature, rel=0.05)
    scores = calibration_scores(logits, true, fit_temperature(logits, true))
    assert scores["ece"] < 0.015
    if temperature != 1.0:
        assert scores["ece_uncalibrated"] > 0.05
    assert scores["nll"] <= scores["nll_uncalibrated"]


def test_the_fit_is_the_least_negative_log_likelihood() -> None:
    logits, true = drawn(1.7, rows=300)
    fitted = fit_temperature(logits, true)
    best = calibration_scores(logits, true, fitted)["nll"]
    for other in (0.98 * fitted, 1.02 * fitted):
        assert calibration_scores(logits, true, other)["nll"] > best


@pytest.mark.parametrize(
    ("logits", "true"),
    [
        pytest.param(np.empty((0, 0)), [], id="no rows"),
        pytest.param(np.eye(3), [0, 1, 2], id="all right"),
        pytest.param(np.eye(3), [1, 2, 0], id="all wrong"),
        pytest.param(np.ones((2, 3)), [0, 1], id="all alike"),
        pytest.param(np.full((2, 3), np.nan), [0, 1], id="no numbers"),
    ],
)
def test_where_val_does_not_tell_the_temperature_is_one(logits: np.ndarray, true: list[int]) -> None:
    assert fit_temperature(logits.astype(np.float32), np.array(true, dtype=np.int64)) == 1.0


def test_the_lowest_temperature_is_given_where_a_lower_one_would_be_likelier() -> None:
    logits, true = drawn(0.5, rows=1_000)
    assert fit_temperature(logits / 40, true) == COLDEST  # 0.0125 would be
    assert fit_temperature(np.eye(3) / 40, np.arange(3)) == 1.0  # all are right: no end of lower ones


def test_the_highest_temperature_is_given_where_a_higher_one_would_be_likelier() -> None:
    logits, true = drawn(0.5, rows=1_000)
    assert fit_temperature(40 * logits, true) == HOTTEST  # 20 would be


@given(LOGITS, st.data())
def test_the_fit_changes_no_answer_and_never_harms_val(logits: np.ndarray, data: st.DataObject) -> None:
    classes = st.lists(st.integers(0, 3), min_size=len(logits), max_size=len(logits))
    true = np.array(data.draw(classes), dtype=np.int64)
    temperature = fit_temperature(logits, true)
    assert COLDEST <= temperature <= HOTTEST
    assert answers(logits, true, temperature).correct.tolist() == answers(logits, true).correct.tolist()
    # Dividing by the temperature may at most make a tie of two logits a few bits apart.
    calibrated = softmax(logits.astype(np.float64) / temperature, axis=1)
    rows = np.arange(len(logits))
    assert calibrated[rows, logits.argmax(axis=1)] == pytest.approx(calibrated.max(axis=1))
    scores = calibration_scores(logits, true, temperature)
    assert scores["nll"] <= scores["nll_uncalibrated"] + 1e-3


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=50))
def test_tables_agree_with_the_rows(pairs: list[tuple[float, bool]]) -> None:
    confidence, correct = np.array([c for c, _ in pairs], float), np.array([r for _, r in pairs], bool)
    given_ = Answers(confidence, correct)
    bins = reliability(given_)
    assert sum(row.rows for row in bins) == len(pairs)
    assert sum(row.rows * row.accuracy for row in bins) == pytest.approx(correct.sum())
    assert 0 <= expected_calibration_error(given_) <= 1
    shares = [row.coverage for row in coverage(given_)]
    assert shares == sorted(shares, reverse=True)
    assert not pairs or shares[0] == 1
