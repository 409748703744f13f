"""All that metrics, plots and the model card say about a model's answers to labelled texts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from receiptbert.calibration import (
    Answers,
    Bin,
    Coverage,
    answers,
    calibration_scores,
    coverage,
    reliability,
)
from receiptbert.metrics import (
    ClassIds,
    ClassScore,
    ConfusedPair,
    class_scores,
    most_confused_pairs,
    score_intervals,
    scores,
)


class PlotData(NamedTuple):
    """The data of a plot."""

    header: Sequence[str]
    rows: Iterable[Sequence[Any]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model's logits for n texts, and what follows from them.

    Attributes:
        logits: (n, C).
        true: class ids, shape (n,).
        texts: n lines, to show as examples.
        names: of the C classes.
        majority: the most frequent class of train.
        temperature: of the checkpoint.
    """

    logits: npt.NDArray[np.float32]
    true: ClassIds
    texts: Sequence[str]
    names: Sequence[str]
    majority: int
    temperature: float

    @cached_property
    def predicted(self) -> ClassIds:
        """Class ids, shape (n,)."""
        return self.logits.argmax(axis=1)

    @cached_property
    def scores(self) -> dict[str, Any]:
        """Weighted F1 first; see ``metrics.scores`` and ``calibration_scores``."""
        calibration = calibration_scores(self.logits, self.true, self.temperature)
        return scores(self.true, self.predicted, self.majority) | calibration

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95% intervals of some of the scores; see ``score_intervals``."""
        return score_intervals(self.true, self.predicted)

    @cached_property
    def classes(self) -> list[ClassScore]:
        """The best first."""
        return class_scores(self.true, self.predicted, self.names)

    @cached_property
    def pairs(self) -> list[ConfusedPair]:
        """The most frequent errors."""
        return most_confused_pairs(self.true, self.predicted, self.texts, self.names)

    @cached_property
    def answers(self) -> Answers:
        """Confidences at the temperature."""
        return answers(self.logits, self.true, self.temperature)

    @cached_property
    def coverage(self) -> list[Coverage]:
        """What is kept and how much of it is right, at each confidence threshold."""
        return coverage(self.answers)

    def plots(self) -> dict[str, PlotData]:
        """The data of each plot by its name."""
        names = self.names
        reliabilities = {
            "before": reliability(answers(self.logits, self.true)),
            "after": reliability(self.answers),
        }
        return {
            "confusion": PlotData(
                ["actual", "predicted"],
                ((names[a], names[b]) for a, b in zip(self.true, self.predicted, strict=True)),
            ),
            "classes": PlotData(["class", *ClassScore._fields[1:]], self.classes),
            "confused_pairs": PlotData(
                ["pair", "rows"],
                ((f"{pair.actual} → {pair.predicted}: {pair.example}", pair.rows) for pair in self.pairs),
            ),
            "reliability": PlotData(
                ["scaling", *Bin._fields],
                ((scaling, *row) for scaling, bins in reliabilities.items() for row in bins),
            ),
            "coverage": PlotData(Coverage._fields, self.coverage),
        }
