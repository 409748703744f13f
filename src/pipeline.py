"""What the six stage scripts share: where things are, and how a bad input ends.

Paths are relative to the project's root, which is where DVC runs each stage.
"""

import os
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from receiptbert.errors import Interrupted, UserError
from receiptbert.params import Params, load_params

PARAMS = Path("params.yaml")

RAW = Path("data/raw")
CORPUS = RAW / "data.csv"
CATEGORIES = RAW / "categories.csv"
TOKENIZED = Path("data/tokenized")

TOKENIZER = Path("models/tokenizer")
PRETRAINED = Path("models/pretrained")
FINETUNED = Path("models/finetuned")

CHECKPOINTS = Path(".checkpoints")

METRICS = Path("metrics")
PLOTS = METRICS / "plots"


def run_stage(stage: Callable[[Params], None]) -> None:
    """Run ``stage`` with the parameters of ``params.yaml``.

    A ``UserError`` ends the process with one line on stderr and status 1;
    set ``RECEIPTBERT_DEBUG=1`` to see the traceback instead. Ctrl-C and SIGTERM end it with 128 plus the
    signal's number, as usual.
    """
    try:
        stage(load_params(PARAMS))
    except UserError as error:
        if os.environ.get("RECEIPTBERT_DEBUG"):
            raise
        sys.exit(f"{Path(sys.argv[0]).stem}: error: {error}")
    except KeyboardInterrupt as interrupt:
        sys.exit(128 + (interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT))


def new_run_folder(stage: str) -> str:
    """A fresh folder for TensorBoard events, ``runs/<stage>/<time>``, so that runs can be compared."""
    return str(Path("runs") / stage / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
