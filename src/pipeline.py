"""What the six stage scripts share: where things are, and how a bad input ends.

Paths are relative to the project's root, which is where DVC runs each stage.
"""

import os
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from receiptbert.failures import explain
from receiptbert.params import Params, load_params
from receiptbert.progress import say

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
    """Run ``stage`` with the parameters of ``params.yaml``.

    Bad input, a full disk and the like (see ``failures``) end the process with one line on stderr and
    status 1; set ``RECEIPTBERT_DEBUG=1`` to see the traceback instead.
    """
    params = None
    try:
        params = load_params(PARAMS)
        stage(params)
        print(end="", flush=True)
    except BrokenPipeError:
        # A stage speaks after its work: what it made is whole, and no reason to train anew.
        say(f"{stage.__name__}: warning: nobody reads its output any more; its files are whole")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would complain once more when it exits
    except Exception as error:
        line = explain(error, stage.__name__, params)
        if line is None or os.environ.get("RECEIPTBERT_DEBUG"):
            raise
        sys.exit(f"{stage.__name__}: error: {line}")


def new_run_folder(stage: str) -> str:
    """A fresh folder for TensorBoard events, ``runs/<stage>/<time>``, so that runs can be compared."""
    return str(Path("runs") / stage / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
