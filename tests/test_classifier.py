"""The classifier agrees with transformers, with itself, and with what its documentation says."""

import json
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import pipeline

from receiptbert import Classifier, WordpieceTokenizer
from receiptbert.classifier import Candidate, Prediction
from receiptbert.errors import UserError
from receiptbert.hf_format import save_pretrained
from tests.conftest import CATEGORIES, LABELS
from tests.small_models import change_json, change_weights


def load(folder: Path, **options: Any) -> Classifier:
    """On the CPU, with which the answers agree to the last digit."""
    return Classifier.from_pretrained(folder, device="cpu", **options)


@pytest.fixture
def classifier(checkpoint: Path) -> Classifier:
    return load(checkpoint)


def test_answers_are_those_of_a_transformers_pipeline(
    classifier: Classifier, checkpoint: Path, texts: list[str]
) -> None:
    lines = [*texts[:60], " ".join(texts[:9]), texts[0].upper()]  # one far too long, one in other letters
    theirs = pipeline("text-classification", str(checkpoint), device="cpu", truncation=True)(lines, top_k=3)
    ours = classifier(lines, top_k=3)
    assert {answer.category for answer in ours} == set(CATEGORIES)
    for answer, expected in zip(ours, theirs, strict=True):
        ranked = [answer[:3], *answer.runners_up]
        assert [category for _, category, _ in ranked] == [candidate["label"] for candidate in expected]
        assert [confidence for *_, confidence in ranked] == pytest.approx(
            [candidate["score"] for candidate in expected], abs=1e-5
        )


def test_labels_are_those_of_the_corpus(classifier: Classifier, checkpoint: Path, texts: list[str]) -> None:
    answers = classifier(texts)
    assert {answer[:2] for answer in answers} == set(zip(LABELS, CATEGORIES, strict=True))
    change_json(checkpoint / "config.json", "corpus_labels")
    for answer, unaware in zip(answers, load(checkpoint)(texts), strict=True):
        assert unaware.label == unaware.category == answer.category


def test_the_order_of_keys_in_the_configuration_is_no_matter(
    classifier: Classifier, checkpoint: Path, texts: list[str]
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    change_json(checkpoint / "config.json", id2label=dict(reversed(config["id2label"].items())))
    assert load(checkpoint)(texts[:20]) == classifier(texts[:20])


def test_a_device_may_be_that_of_torch(classifier: Classifier, checkpoint: Path, texts: list[str]) -> None:
    other = Classifier.from_pretrained(checkpoint, device=torch.device("cpu"))
    assert other(texts[:9]) == classifier(texts[:9])


def test_runners_up_follow_in_order(classifier: Classifier, texts: list[str]) -> None:
    for answer in classifier(texts[:20], top_k=9):
        ranked = [answer.confidence, *(other.confidence for other in answer.runners_up)]
        assert len(ranked) == 3
        assert ranked == sorted(ranked, reverse=True)
        assert sum(ranked) == pytest.approx(1)
        assert all(isinstance(other, Candidate) for other in answer.runners_up)
    assert classifier(texts[:1])[0].runners_up == ()


def test_confidences_do_not_depend_on_how_many_are_asked_for(
    classifier: Classifier, texts: list[str]
) -> None:
    one, two, all_three = (classifier(texts, top_k=number) for number in (1, 2, 3))
    assert [answer[:3] for answer in one] == [answer[:3] for answer in all_three]
    assert [answer.runners_up for answer in two] == [answer.runners_up[:1] for answer in all_three]


def test_order_and_repeats_are_kept(classifier: Classifier, texts: list[str]) -> None:
    expected = {text: classifier([text])[0] for text in texts[:20]}
    lines = [*texts[:20], *reversed(texts[:20])]
    for text, answer in zip(lines, classifier(lines), strict=True):
        assert answer[:2] == expected[text][:2]
        assert answer.confidence == pytest.approx(expected[text].confidence, abs=1e-5)


def test_equal_texts_are_computed_once(
    classifier: Classifier, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    forward = classifier._model.forward

    def counting(input_ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        computed.append(len(input_ids))
        return forward(input_ids, mask)

    monkeypatch.setattr(classifier._model, "forward", counting)
    assert len(classifier(texts[:7] * 5)) == 35
    assert sum(computed) == len(set(texts[:7]))


def test_temperature_divides_the_logits(classifier: Classifier, checkpoint: Path, texts: list[str]) -> None:
    change_json(checkpoint / "config.json", softmax_temperature=2.5)
    for sure, calibrated in zip(classifier(texts, top_k=2), load(checkpoint)(texts, top_k=2), strict=True):
        assert calibrated.label == sure.label
        # The odds of two classes are exp of the difference of their logits.
        odds = [answer.confidence / answer.runners_up[0].confidence for answer in (sure, calibrated)]
        assert odds[1] == pytest.approx(odds[0] ** (1 / 2.5), rel=1e-3)


def test_without_a_token_there_is_no_label(classifier: Classifier, texts: list[str]) -> None:
    answers = classifier(["", texts[0], " \t\n", "\u0000"])
    nothing = Prediction("", "", 0.0, ())
    assert [answer == nothing for answer in answers] == [True, False, True, True]
    assert classifier([""]) == [nothing]
    assert classifier([]) == []


def test_a_pickled_copy_and_other_threads_answer_alike(classifier: Classifier, texts: list[str]) -> None:
    expected = classifier(texts, top_k=2)
    assert pickle.loads(pickle.dumps(classifier))(texts, top_k=2) == expected
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: classifier(texts, top_k=2), range(8)))
    assert answers == [expected] * 8


def test_batch_size_and_precision_are_used(
    checkpoint: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(checkpoint)(texts)
    in_threes, batches = load(checkpoint, batch_size=3), []
    in_threes._model.register_forward_pre_hook(lambda _, inputs: batches.append(inputs))
    small = in_threes(texts)
    assert [answer.label for answer in small] == [answer.label for answer in expected]
    assert len(batches) == math.ceil(len(set(texts)) / 3)
    monkeypatch.setattr("receiptbert.precision.has_bf16", lambda _: True)
    in_bf16 = load(checkpoint, precision="bf16")
    rounded = in_bf16(texts)
    assert rounded != expected
    for answer in in_bf16(texts, top_k=3):  # only the products are in bf16
        total = answer.confidence + sum(other.confidence for other in answer.runners_up)
        assert total == pytest.approx(1, abs=1e-6)
    assert [a.confidence for a in rounded] == pytest.approx([a.confidence for a in expected], abs=0.1)


def test_what_is_no_list_of_texts_is_refused(classifier: Classifier) -> None:
    with pytest.raises(TypeError, match="must be a list of texts"):
        classifier("чай")
    with pytest.raises(TypeError, match=r"texts\[1\] is nan, which is not a text"):
        classifier(["чай", float("nan")])  # type: ignore[list-item]
    for table in (pd.DataFrame({"text": ["чай"]}), {"text": ["чай"]}):
        with pytest.raises(TypeError, match="of a table, one column"):
            classifier(table)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"texts\[1\] is 'чай \\ud83d', which has half of a surrogate pair"):
        classifier(["чай", "чай \ud83d"])
    with pytest.raises(ValueError, match="top_k = 0"):
        classifier(["чай"], top_k=0)


def test_models_that_cannot_classify_are_refused(
    checkpoint: Path, tmp_path: Path, pretrain_model: Any, tokenizer: WordpieceTokenizer
) -> None:
    save_pretrained(pretrain_model(), tokenizer, tmp_path / "pretrained")
    for folder, message in [
        (tmp_path / "nowhere", "nowhere is not a folder; name that of a finetuned model"),
        (tmp_path, r"holds no config\.json; run `dvc repro`, or name"),
        (tmp_path / "pretrained", "holds a BERT without a classifier"),
    ]:
        with pytest.raises(UserError, match=message):
            load(folder)
    with pytest.raises(UserError, match=r"^device = meta, which is not supported; set auto, cpu"):
        Classifier.from_pretrained(checkpoint, device="meta")
    with pytest.raises(UserError, match=r"^device = abacus names no device"):
        Classifier.from_pretrained(checkpoint, device="abacus")
    with pytest.raises(UserError, match=r"^precision = fp8 is not among auto, fp32"):
        load(checkpoint, precision="fp8")
    with pytest.raises(ValueError, match="batch_size = 0"):
        load(checkpoint, batch_size=0)
    for labels, message in [
        (["1", "2"], "has 3 classes and 2 corpus_labels"),
        (5, ": corpus_labels must hold the classes as texts; restore it"),
        ([1, 2, None], ": corpus_labels must hold the classes as texts; restore it"),
    ]:
        change_json(checkpoint / "config.json", corpus_labels=labels)
        with pytest.raises(UserError, match=rf"config\.json.*{message}"):
            load(checkpoint)


def test_heads_that_choose_no_class_are_refused(checkpoint: Path) -> None:
    change_json(checkpoint / "config.json", problem_type="multi_label_classification")
    with pytest.raises(
        UserError, match="its head has 3 outputs and the problem_type 'multi_label_classification'; name"
    ):
        load(checkpoint)
    change_json(checkpoint / "config.json", problem_type="single_label_classification")
    load(checkpoint)
    with change_weights(checkpoint) as weights:
        weights["classifier.bias"] = torch.zeros(1)
    with pytest.raises(UserError, match="its head has 1 outputs and"):
        load(checkpoint)


def test_answers_that_are_no_numbers_are_refused(checkpoint: Path, texts: list[str]) -> None:
    with change_weights(checkpoint) as weights:
        weights["classifier.bias"][0] = torch.nan
    classifier = load(checkpoint)
    with pytest.raises(UserError, match="the model's answers are not finite numbers; finetune it again"):
        classifier(texts)
    classifier._precision = "fp16"  # of a GPU, whose largest number is 65,504
    with pytest.raises(UserError, match="the model's answers are not finite numbers; try precision fp32"):
        classifier(texts)


def test_classes_that_are_numbers_become_texts(checkpoint: Path, texts: list[str]) -> None:
    change_json(checkpoint / "config.json", id2label={"0": 5, "1": 6, "2": 8}, corpus_labels=[7, 12, 30])
    answers = load(checkpoint)(texts)
    assert {answer[:2] for answer in answers} == {("7", "5"), ("12", "6"), ("30", "8")}
    change_json(checkpoint / "config.json", corpus_labels=None)
    assert load(checkpoint)(texts)[0].label in {"5", "6", "8"}


def test_unnamed_classes_are_called_as_transformers_calls_them(checkpoint: Path, texts: list[str]) -> None:
    change_json(checkpoint / "config.json", "id2label", "label2id", "corpus_labels")
    answers = load(checkpoint)(texts)
    assert {answer.category for answer in answers} == {"LABEL_0", "LABEL_1", "LABEL_2"}
