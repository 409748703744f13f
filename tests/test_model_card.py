"""The card is read by Hugging Face's own parser and by people; texts of the corpus cannot break it."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from scipy.special import softmax

from receiptbert.encoder import BertShape
from receiptbert.evaluation import Evaluation
from receiptbert.metrics import f1
from receiptbert.model_card import model_card
from receiptbert.modeling import BertFinetuneModel
from receiptbert.splits import SPLITS
from tests.conftest import SHAPE

DATA: dict[str, Any] = {
    "rows": {"train": 1200, "val": 40, "test": 60, "unsupervised": 0},
    "distinct_texts": dict.fromkeys(SPLITS, 7),
    "blank_texts": 1,
    "test_rows_seen_elsewhere": 2,
    "rows_left_out": {"train": 4, "val": 2, "unsupervised": 1005},
    "classes": {"train": 3, "val": 2, "test": 3},
    "classes_absent_from_train": 0,
    "train_rows_per_class": {"largest": 900, "median": 200.0, "smallest": 100},
    "largest_class_share": 0.75,
}
BERT = BertShape(vocab_size=1500, **SHAPE, eps=1e-12)
HOSTILE = "# ЧАЙ|<b>*1*</b>\r\n\x00[сыр](x) `y` \\ $z$"
SHOWN_HOSTILE = r"\# ЧАЙ\|\<b\>\*1\*\</b\> \[сыр\](x) \`y\` \\ \$z\$"


def evaluation(**changes: Any) -> Evaluation:
    """60 rows of 3 classes: 40, 15 and 5; every fourth is answered with the next class."""
    true = np.repeat([0, 1, 2], [40, 15, 5])
    predicted = np.where(np.arange(60) % 4, true, (true + 1) % 3)
    logits = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    logits[np.arange(60), predicted] = 4
    arguments = {
        "logits": logits,
        "true": true,
        "texts": [f"line {i}" for i in range(60)],
        "names": ["Чай", "Сыр", "Мыло | хоз."],
        "majority": 0,
        "temperature": 1.5,
    }
    return Evaluation(**(arguments | changes))


@pytest.fixture
def card() -> str:
    texts = [HOSTILE, *(f"line {i}" for i in range(1, 60))]
    return model_card(evaluation(texts=texts), BERT, DATA, "чеки_2026.zip")


def test_hugging_face_reads_the_front_matter(card: str) -> None:
    data = ModelCard(card).data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-classification"
    assert data.model_name == "receiptbert"
    values = {result.metric_name: result.metric_value for result in data.eval_results or []}
    assert values == {
        name: round(evaluation().scores[key], 4)
        for key, name in [("weighted_f1", "weighted F1"), ("macro_f1", "macro F1"), ("accuracy", "accuracy")]
    }


def test_every_table_is_whole_whatever_the_texts(card: str) -> None:
    assert SHOWN_HOSTILE in card
    blocks = [block.splitlines() for block in card.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 7
    for lines in blocks:
        assert {line.replace("\\|", "").count("|") for line in lines} == {len(lines[1].split("---"))}


def test_the_card_says_what_the_figures_say(card: str) -> None:
    result = evaluation()
    low, high = result.intervals["accuracy"]
    (worst,) = (row for row in result.classes if row.name == "Сыр")
    for line in (
        f"| accuracy | 0.750 | {low:.3f} to {high:.3f} |",
        "| rows | 1,200 | 40 | 60 | 0 |",
        "| categories | 3 | 2 | 3 |  |",
        "| Чай | Сыр | 10 | ",
        f"| 0.00 | 100.0% | {0.75:.1%} |",
        "divided by the temperature 1.5, which was fitted on val.",
        f"off by {result.scores['ece']:.3f} on average (expected",
        f"at temperature 1 by {result.scores['ece_uncalibrated']:.3f}.",
        f"(macro F1) it is {result.scores['macro_f1']:.3f}.",
        f"most frequent category has weighted F1 {result.scores['majority_weighted_f1']:.3f}.",
        "Blank texts among them: 1; test rows whose text is in another split too: 2.",
        r"The corpus is чеки\_2026.zip. Rows",
        "A category has 100 to 900 train rows (median 200); the largest makes up 75.0% of train.",
        f"the first {SHAPE['max_seqlen'] - 2} tokens of a line",
        f"| Сыр | {worst.f1:.2f} | {worst.precision:.2f} | {worst.recall:.2f} | 15 |",
    ):
        assert line in card, line
    left_out = "because their text is held out in val or test: 4 train, 2 val, 1,005 unsupervised."
    assert left_out in " ".join(card.split())
    worst = card.split("## The worst categories")[1].split("##")[0]
    assert worst.index("| Сыр |") < worst.index("| Чай |")
    assert "Мыло" not in worst  # five rows of test
    assert "own: 1." in worst


def test_a_category_that_test_does_not_have_is_one_of_the_rare() -> None:
    logits = np.pad(evaluation().logits, ((0, 0), (0, 1)), constant_values=-9)
    card = model_card(evaluation(logits=logits, names=["Чай", "Сыр", "Мыло", "Хлеб"]), BERT, DATA, "a.zip")
    assert "own: 2." in " ".join(card.split())


def test_a_median_may_be_a_half() -> None:
    data = DATA | {"train_rows_per_class": {"largest": 3, "median": 2.5, "smallest": 2}}
    assert "2 to 3 train rows (median 2.5);" in " ".join(
        model_card(evaluation(), BERT, data, "a.zip").split()
    )


def test_the_model_is_described(card: str) -> None:
    assert "3 product categories: 2 layers of width 16, a vocabulary of 1,500 entries." in card
    model = BertFinetuneModel(**BERT.kwargs(), num_classes=3)
    assert f"| all | {sum(parameter.numel() for parameter in model.parameters()):,} |" in card


def test_of_many_categories_ten_are_shown() -> None:
    """12 of 10 rows each, one of which is answered with the next category."""
    true = np.repeat(np.arange(12), 10)
    predicted = np.where(np.arange(120) % 10, true, (true + 1) % 12)
    card = model_card(
        evaluation(
            logits=np.eye(12, dtype=np.float32)[predicted],
            true=true,
            texts=[f"line {i}" for i in range(120)],
            names=[f"category {i}" for i in range(12)],
        ),
        BERT,
        DATA,
        "a.zip",
    )
    for heading in ("## The worst categories", "## The most frequent errors"):
        section = card.split(heading)[1].split("##")[0]
        assert section.count("\n| category ") == 1 + 10  # the header, too


def test_a_model_without_errors_has_a_card() -> None:
    true = evaluation().predicted
    assert "## The most frequent errors" in model_card(evaluation(true=true), BERT, DATA, "a.zip")


def test_plots_are_drawn_of_the_answers() -> None:
    tables = {name: [list(row) for row in table.rows] for name, table in evaluation().plots().items()}
    assert tables["confusion"][:2] == [["Чай", "Сыр"], ["Чай", "Чай"]]  # line 0 is an error
    assert tables["confused_pairs"][0] == ["Чай → Сыр: line 0", 10]
    assert tables["coverage"][0] == [0.0, 1.0, 0.75]
    at_one = [list(row) for row in evaluation(temperature=1.0).plots()["reliability"].rows]
    before, after = ([row[1:] for row in at_one if row[0] == scaling] for scaling in ("before", "after"))
    assert before == after
    assert [row[1:] for row in tables["reliability"] if row[0] == "before"] == before
    assert [row[1:] for row in tables["reliability"] if row[0] == "after"] != before


def test_scores_are_those_of_the_answers() -> None:
    found = evaluation()
    weighted = f1(found.true, found.predicted, "weighted")
    assert found.scores["weighted_f1"] == weighted != f1(found.predicted, found.true, "weighted")


def test_a_temperature_that_was_not_fitted_is_told_as_such() -> None:
    card = model_card(evaluation(temperature=1.0), BERT, DATA, "a.zip")
    assert "temperature 1, since val determined no other." in " ".join(card.split())


def test_coverage_is_told_at_the_temperature() -> None:
    found = evaluation(temperature=4.0)
    kept = {t: (softmax(found.logits / t, axis=1).max(axis=1) >= 0.5).mean() for t in (1, 4)}
    (row,) = (row for row in found.coverage if row.threshold == 0.5)
    assert row.coverage == pytest.approx(kept[4])
    assert kept[1] != kept[4]


def test_of_a_package_that_the_path_has_twice_the_first_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where ``lib64`` is a link to ``lib``, or a cluster's folder stands before the environment's."""

    def twice(name: str) -> list[Any]:
        return [SimpleNamespace(name=name, version="1.0+cpu"), SimpleNamespace(name=name, version="0.9")]

    monkeypatch.setattr("receiptbert.model_card.metadata.distributions", twice)
    card = model_card(evaluation(), BERT, DATA, "a.zip")
    assert [line for line in card.splitlines() if line.startswith("| torch |")] == ["| torch | 1.0 |"]
