"""What the six stage scripts share: where things are, and how bad input ends a stage.

Paths are relative to the project's root, which is where DVC runs each stage.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from types import TracebackType

from receiptbert.errors import UserError, discard, one_line_errors
from receiptbert.failures import explain
from receiptbert.interrupts import end_with_parent
from receiptbert.params import FinetuneParams, Params
from receiptbert.params_file import load_params
from receiptbert.progress import say

PARAMS = Path("params.yaml")

RAW = Path("data/raw")
CORPUS = RAW / "data.csv"
CATEGORIES = RAW / "categories.csv"
TOKENIZED = Path("data/tokenized")
LENGTHS = TOKENIZED / "lengths.json"
CLASSES = TOKENIZED / "classes.json"

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


def _without_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        say(f"{Path(sys.argv[0]).stem}: interrupted")
    else:
        sys.__excepthook__(kind, error, trace)


# Ctrl-C while torch is imported; `run_stage` is not there yet.
sys.excepthook = _without_traceback


def run_stage(
    stage: Callable[[Params], str | None], voice: Callable[[], AbstractContextManager[None]] = nullcontext
) -> None:
    """Run ``stage`` with the parameters of ``params.yaml``, and print the line that it returns.

    Bad input, a full disk etc. (see ``failures``) end the process with one line (see ``one_line_errors``).

    Args:
        voice: which of several processes reports it, see ``launching.one_voice``.
    """
    name, params = stage.__name__, None
    with _quiet_threads(), one_line_errors(name, lambda error: explain(error, name, params)), voice():
        if sys.argv[1:]:
            raise UserError(f"stages take no arguments; the settings are in {PARAMS}; `dvc repro` runs all")
        params = load_params(PARAMS)
        line = stage(params)
        try:
            if line is not None:
                print(line, flush=True)
        except OSError as error:  # a full disk, a reader that is gone: no reason to fail, and to train again
            say(f"{name}: warning: cannot write to stdout ({error.strerror}); the files are complete")
            discard(sys.stdout)


@contextmanager
def _quiet_threads() -> Iterator[None]:
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


def start_of_finetuning(p: FinetuneParams) -> Path:
    """The checkpoint folder that ``finetune`` starts from; ``pretrain`` asks, too, before it trains for long.

    Raises:
        UserError: there is no such folder, or it is one that ``finetune`` or ``pretrain`` writes.
    """
    if p.of_our_shape:
        return PRETRAINED  # from scratch means the same shape and vocabulary without the learned weights
    if Path(os.path.realpath(p.init)).is_relative_to(os.path.realpath(FINETUNED)):
        raise UserError(
            f"finetune.init = {p.init}, which finetune replaces; copy it and name the copy (`dvc checkout "
            f"{FINETUNED}` brings it back if DVC has removed it)"
        )
    if Path(os.path.realpath(p.init)) == Path(os.path.realpath(PRETRAINED)):
        raise UserError(f"finetune.init = {p.init}, which is what `pretrained` means; set that")
    if not Path(p.init).is_dir():
        raise UserError(
            f"finetune.init = {p.init} is not a folder; set pretrained, scratch, or that of a BERT"
        )
    return Path(p.init)


def new_run_folder(stage: str) -> str:
    """A fresh folder for TensorBoard events, ``runs/<stage>/<time>``, so that runs can be compared."""
    runs = Path("runs") / stage
    # What stands in its way, a link to nothing say, is to be told before hours of training.
    runs.mkdir(parents=True, exist_ok=True)
    return str(runs / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
