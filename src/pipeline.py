"""What the six stage scripts share: where things are, and how a bad input ends.

Paths are relative to the project's root, which is where DVC runs each stage.
"""

import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from receiptbert.errors import one_line_errors
from receiptbert.params import Params, load_params

PARAMS = Path("params.yaml")

RAW = Path("data/raw")
CORPUS = RAW / "data.csv"
CATEGORIES = RAW / "categories.csv"
TOKENIZED = Path("data/tokenized")

TOKENIZER = Path("models/tokenizer")
PRETRAINED = Path("models/pretrained")
FINETUNED = Path("models/finetuned")

METRICS = Path("metrics")
PLOTS = METRICS / "plots"


def run_stage(stage: Callable[[Params], None]) -> None:
    """Run ``stage`` with the parameters of ``params.yaml``; a ``UserError`` ends it in one line."""
    with one_line_errors(Path(sys.argv[0]).stem):
        stage(load_params(PARAMS))


def new_run_folder(stage: str) -> str:
    """A fresh folder for TensorBoard events, ``runs/<stage>/<time>``, so that runs can be compared."""
    return str(Path("runs") / stage / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
