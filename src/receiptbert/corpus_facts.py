"""What later stages must know about the corpus; it is stored with the tokenized texts.

Derived once, so that the stages cannot disagree. Each kind has a file of its own: renaming a category
makes finetuning run again, but not pretraining.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from receiptbert.errors import PRETOKENIZE_AGAIN, UserError
from receiptbert.json_files import read_json_object
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
            values = read_json_object(path, PRETOKENIZE_AGAIN)
        except FileNotFoundError:
            raise UserError(f"{path} not found; {PRETOKENIZE_AGAIN}") from None
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        names = [field.name for field in fields]
        if values.keys() != set(names):
            raise UserError(f"{path} is damaged (it must hold {', '.join(names)}); {PRETOKENIZE_AGAIN}")
        for field in fields:
            if not _fits(values[field.name], field.type):
                raise UserError(f"{path} is damaged ({field.name} is of another type); {PRETOKENIZE_AGAIN}")
        return cls(**values)


def _fits(value: Any, kind: Any) -> bool:
    if kind == list[str]:
        return type(value) is list and all(type(item) is str for item in value)
    return type(value) is kind


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLengths(_Facts):
    """How much of a text the model reads.

    Attributes:
        longest: how many tokens of a longer text are used.
    """

    longest: int

    @classmethod
    def of(cls, lengths: npt.NDArray[np.int64], quantile: float) -> Self:
        """Of texts of these ``lengths``, at least a share ``quantile`` stays uncut."""
        return cls(longest=max(int(np.quantile(lengths, quantile, method="inverted_cdf")), 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Classes(_Facts):
    """The classes of the labelled texts; a class's place in the lists is its id.

    Attributes:
        labels: as they are in the corpus.
        names: in the same order, all of them distinct.
    """

    labels: list[str]
    names: list[str]
