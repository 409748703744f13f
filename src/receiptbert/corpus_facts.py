"""What later stages must know of the corpus; it travels with the tokenized texts.

Derived once, so that the stages cannot disagree. Each kind has a file of its own: a category that gets
another name makes finetuning run again, but not pretraining.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from receiptbert.errors import UserError
from receiptbert.reports import write_json


class _Facts:
    """A dataclass in a JSON file."""

    def save(self, path: Path) -> None:
        """Write the facts as JSON."""
        write_json(path, dataclasses.asdict(self))  # type: ignore[call-overload]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            UserError: there is no such file, or it holds anything else.
        """
        try:
            facts = cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise UserError(f"{path} not found; run `dvc repro pretokenize`") from None
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); run `dvc repro -f pretokenize`") from None
        return facts


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLengths(_Facts):
    """Which texts pretraining uses, and how much of them.

    Attributes:
        shortest: texts of fewer tokens are not worth pretraining on.
        longest: of longer texts, so many tokens are used.
    """

    shortest: int
    longest: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Classes(_Facts):
    """The classes of the labelled texts; a class's place in the lists is its id.

    Attributes:
        labels: as they are in the corpus.
        names: in the same order, all of them distinct.
    """

    labels: list[str]
    names: list[str]


def min_text_length(mask_prob: float, at_least_one: float = 0.5) -> int:
    """The shortest text in which at least one token is a target with probability ``at_least_one``.

    The assignment's question: the least n with 1 - (1 - mask_prob)^n >= at_least_one; 5 for 0.15 and 0.5.
    """
    return math.ceil(math.log1p(-at_least_one) / math.log1p(-mask_prob))
