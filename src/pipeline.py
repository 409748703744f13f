"""What the six stage scripts share: where things are, and how bad input ends a stage.

Paths are relative to the project's root, which is where DVC runs each stage.
"""

import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from datetime import datetime
from pathlib import Path

from receiptbert.errors import discard_stdout, one_line_errors
from receiptbert.failures import explain
from receiptbert.interrupts import end_with_parent
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

CHECKPOINTS = Path(".checkpoints")

METRICS = Path("metrics")
PLOTS = METRICS / "plots"

# Otherwise a killed DVC (or torch's launcher) would leave its stage running, in the way of the next one.
# Set early: a stage imports this module before torch, which takes seconds.
if os.environ.keys() & {"DVC_STAGE", "TORCHELASTIC_RUN_ID"}:
    end_with_parent()


def run_stage(
    stage: Callable[[Params], None], voice: Callable[[], AbstractContextManager[None]] = nullcontext
) -> None:
    """Run ``stage`` with the parameters of ``params.yaml``.

    Bad input, a full disk etc. (see ``failures``) end the process with one line (see ``one_line_errors``).
    What the stage prints is written after its work: its files are whole by then, so a stdout that cannot be
    written to (a full disk, a reader that is gone) is no reason to fail, and to train again.

    Args:
        voice: which of several processes reports it, see ``launching.one_voice``.
    """
    name, params = stage.__name__, None
    with _told_once(), one_line_errors(name, lambda error: explain(error, name, params)), voice():
        params = load_params(PARAMS)
        with redirect_stdout(io.StringIO()) as printed:
            stage(params)
        try:
            print(printed.getvalue(), end="", flush=True)
        except OSError as error:
            say(f"{name}: warning: cannot write to stdout ({error.strerror}); the files are complete")
            discard_stdout()


@contextmanager
def _told_once() -> Iterator[None]:
    """Other threads report no file errors: TensorBoard's, which writes, hands them to the main one."""
    before = threading.excepthook

    def tell(failed: threading.ExceptHookArgs) -> None:
        if not isinstance(failed.exc_value, OSError):
            before(failed)

    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = before


def new_run_folder(stage: str) -> str:
    """A fresh folder for TensorBoard events, ``runs/<stage>/<time>``, so that runs can be compared."""
    return str(Path("runs") / stage / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
