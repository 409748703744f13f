"""What later stages must know about the corpus; it is stored with the tokenized texts.

Derived once, so that the stages cannot disagree. Each fact has a file of its own: renaming a category
makes finetuning run again, but not pretraining.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from receiptbert.errors import PRETOKENIZE_AGAIN, UserError
from receiptbert.json_files import read_json_object
from receiptbert.reports import write_json

LONGEST = "longest"


def longest_used(lengths: npt.NDArray[np.int64], quantile: float) -> int:
    """How many tokens of a text the model reads, so that of texts of these ``lengths`` at least a share
    ``quantile`` stays uncut."""
    return max(int(np.quantile(lengths, quantile, method="inverted_cdf")), 1)


def save_longest(path: Path, longest: int) -> None:
    """Write what ``longest_used`` found."""
    write_json(path, {LONGEST: longest})


def load_longest(path: Path) -> int:
    """Read what ``save_longest`` wrote.

    Raises:
        UserError: there is no such file, or it holds anything else.
    """
    longest = read_json_object(path, PRETOKENIZE_AGAIN).get(LONGEST)
    if type(longest) is not int:
        raise UserError(f"{path} is damaged ({LONGEST} must be a whole number); {PRETOKENIZE_AGAIN}")
    return longest


@dataclass(frozen=True, kw_only=True, slots=True)
class Classes:
    """The classes of the labelled texts; a class's place in the lists is its id.

    Attributes:
        labels: as they are in the corpus.
        names: in the same order, all of them distinct.
    """

    labels: list[str]
    names: list[str]

    def save(self, path: Path) -> None:
        """Write them as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Classes":
        """Read what ``save`` wrote.

        Raises:
            UserError: there is no such file, or it holds anything else.
        """
        values = read_json_object(path, PRETOKENIZE_AGAIN)
        for key in ("labels", "names"):
            value = values.get(key)
            if type(value) is not list or any(type(item) is not str for item in value):
                raise UserError(f"{path} is damaged ({key} must be a list of texts); {PRETOKENIZE_AGAIN}")
        return cls(labels=values["labels"], names=values["names"])
