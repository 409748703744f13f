"""Pretraining in processes of torchrun, the second of which has accidents; test_distributed.py runs it."""

import os
import signal

from torch import Tensor

import pipeline
import pretrain
from receiptbert.launching import one_voice
from receiptbert.trainer import Trainer

backward = Trainer._backward


def backward_with_accidents(trainer: Trainer, loss: Tensor) -> None:
    backward(trainer, loss)
    if os.environ["RANK"] == "1":
        if trainer._step == 20 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        if trainer._step == 55:
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    Trainer._backward = backward_with_accidents  # type: ignore[method-assign]
    pipeline.run_stage(pretrain.pretrain, one_voice)
