"""What the linear teacher says."""

import numpy as np
import pytest

from receiptbert.errors import UserError
from receiptbert.linear_teacher import INVERSE_TEMPERATURES, TEXTS_AT_ONCE, LinearTeacher

WORDS = {0: "молоко", 2: "кефир", 3: "сыр"}  # class 1 has no texts


def lines(classes: list[int]) -> list[str]:
    return [f"{WORDS[target]} {i % 7}{i % 5}" for i, target in enumerate(classes)]


def teacher(classes: list[int], num_classes: int = 5) -> LinearTeacher:
    train = classes * 10
    return LinearTeacher(lines(train), np.array(train), lines(classes), np.array(classes), num_classes)


@pytest.mark.parametrize("classes", [[0, 2, 3], [0, 2], [3, 0]])
def test_the_linear_teacher_learns_and_knows_nothing_of_absent_classes(classes: list[int]) -> None:
    probabilities = teacher(classes).probabilities(lines(classes * 4))
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (4 * len(classes), 5)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert probabilities.argmax(axis=1).tolist() == classes * 4
    assert not probabilities[:, sorted({0, 1, 2, 3, 4} - set(classes))].any()


def test_the_linear_teacher_is_as_sure_as_val_lets_it_be() -> None:
    train = [0, 2, 3] * 20
    wrong = [2, 3, 0] * 4
    unsure = LinearTeacher(lines(train), np.array(train), lines([0, 2, 3] * 4), np.array(wrong), 4)
    assert unsure._inverse_temperature == min(INVERSE_TEMPERATURES)
    assert teacher([0, 2, 3])._inverse_temperature == max(INVERSE_TEMPERATURES)
    right = [0, 2, 3] * 4
    sure = LinearTeacher(lines(train), np.array(train), lines(right), np.array(right), 4)
    odds = [np.log(of.probabilities(["сыр"])[0, [3, 0]]) @ [1, -1] for of in (sure, unsure)]
    assert odds[0] / odds[1] == pytest.approx(max(INVERSE_TEMPERATURES) / min(INVERSE_TEMPERATURES), rel=1e-3)
    # A class of val that train lacks tells nothing, and a val of such classes alone is no error.
    unseen = LinearTeacher(lines(train), np.array(train), lines([0, 2]), np.array([1, 1]), 4)
    np.testing.assert_allclose(unseen.probabilities(["сыр"]).sum(), 1, rtol=1e-5)


def test_the_linear_teacher_answers_text_by_text_and_always_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = lines([0, 2, 3, 3, 0, 2, 2])
    whole = teacher([0, 2, 3]).probabilities(texts)
    assert len(texts) < TEXTS_AT_ONCE
    monkeypatch.setattr("receiptbert.linear_teacher.TEXTS_AT_ONCE", 3)
    in_chunks = LinearTeacher(
        *(lines([0, 2, 3] * 10), np.array([0, 2, 3] * 10), lines([0, 2, 3] * 3), np.array([0, 2, 3] * 3), 5)
    )
    assert in_chunks._inverse_temperature == max(INVERSE_TEMPERATURES)  # val in three chunks
    assert (teacher([0, 2, 3]).probabilities(texts) == whole).all()
    assert teacher([0, 2, 3]).probabilities([]).shape == (0, 5)


def test_a_teacher_too_large_for_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    features = len(teacher([0, 2, 3])._vectorizer.get_feature_names_out())
    needed = 2 * 3 * 8 * features
    monkeypatch.setattr("receiptbert.linear_teacher.free_memory", lambda _: needed)
    teacher([0, 2, 3])
    monkeypatch.setattr("receiptbert.linear_teacher.free_memory", lambda _: needed - 1)
    with pytest.raises(UserError, match=r"for 3 classes\), but only .* set finetune.teachers to 0"):
        teacher([0, 2, 3])


def test_texts_without_characters_teach_nothing() -> None:
    with pytest.raises(UserError, match=r"no features \(empty vocabulary.*\); set finetune.teachers to 0"):
        LinearTeacher([" ", ""], np.array([0, 1]), ["а"], np.array([0]), 2)


def test_the_linear_teacher_reads_words_beside_characters() -> None:
    features = teacher([0, 2, 3])._vectorizer.get_feature_names_out()
    kinds = {name.partition("__")[2] for name in features}
    assert {" мо", "ыр ", "молоко", "молоко 00"} <= kinds  # the last is a pair of words
