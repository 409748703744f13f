"""What later stages must know of the corpus; it travels with the tokenized texts."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

from receiptbert.errors import UserError
from receiptbert.reports import write_json


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusFacts:
    """Facts that several stages share, derived once, so that the stages cannot disagree.

    Attributes:
        min_length: texts of fewer tokens are not worth pretraining on.
        max_length: of longer texts, so many tokens are used.
        labels: the label of each class, its place in the list being its id.
        label_names: their names in the same order, all of them distinct.
    """

    min_length: int
    max_length: int
    labels: list[str]
    label_names: list[str]

    def save(self, path: Path) -> None:
        """Write the facts as JSON."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path: Path) -> "CorpusFacts":
        """Read what ``save`` wrote."""
        try:
            facts = cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise UserError(f"{path} not found; run `dvc repro pretokenize`") from None
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); run `dvc repro -f pretokenize`") from None
        return facts


def min_text_length(mask_prob: float, at_least_one: float = 0.5) -> int:
    """The shortest text in which at least one token is a target with probability ``at_least_one``.

    The assignment's question: the least n with 1 - (1 - mask_prob)^n >= at_least_one; 5 for 0.15 and 0.5.
    """
    return math.ceil(math.log1p(-at_least_one) / math.log1p(-mask_prob))
