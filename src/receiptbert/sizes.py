"""The published sizes of BERT: what ``auto`` stands for in ``params.yaml``.

Shapes: tiny to base are the models of these names in Turc et al. (2019, "Well-read students learn better"),
large is that of Devlin et al. (2019). A head has 64 dimensions, the feed-forward layer is four times as wide
as the model.

Settings of a training, and where each comes from:

- Learning rate. Measured here for tiny and mini (docs/LOG.md; mini collapsed in short pretrainings at 1e-3
  and learned at 5e-4). Pretraining of base and large: 1e-4, Devlin et al., in batches of 256 long texts;
  small and medium lie between. Finetuning: small and medium are from the grid of Turc et al. (3e-4, 1e-4,
  5e-5, 3e-5), base has the highest rate of Devlin et al. (5e-5, 3e-5, 2e-5) and large the lowest, at which
  finetuning it seldom fails (Mosbach et al. 2021).
- Layer-wise decay of the rate in finetuning. 0.65 for mini, measured here with its rate of 8e-4, which then
  is the head's alone. Other sizes' rates come from trainings without it.
- Warm-up. 0.06 of the steps, as tiny and mini were measured here, and as RoBERTa was pretrained (large) and
  finetuned (Liu et al. 2019); to finetune large, 0.1 (Mosbach et al. 2021).
- Dropout. 0.1 (Devlin et al. 2019, and so in the checkpoints of Turc et al.), but none to pretrain tiny and
  mini, as they were measured here.

Small was pretrained once, for 4,000 steps (docs/LOG.md, Sizes), and was no worse than mini; finetuned with
mini's rates it was better. **Medium, base and large have not been trained here**: start a search from their
settings.
"""

from dataclasses import dataclass

SIZE_PER_HEAD = 64  # d / h
EXPANSION = 4  # intermediate size / d


def follow_width(hidden_size: int) -> dict[str, int]:
    """The parts of a shape that follow from its width, a multiple of ``SIZE_PER_HEAD``."""
    return {
        "num_attention_heads": hidden_size // SIZE_PER_HEAD,
        "intermediate_size": EXPANSION * hidden_size,
    }


@dataclass(frozen=True)
class Training:
    """Settings of a training that depend on the size of the model."""

    lr: float
    warmup: float
    dropout: float


@dataclass(frozen=True)
class FinetuneTraining(Training):
    """Settings of a finetuning that depend on the size of the model."""

    layer_lr_decay: float = 1.0


@dataclass(frozen=True)
class Size:
    """A model of the family, and how to train it."""

    hidden_size: int
    num_hidden_layers: int
    pretrain: Training
    finetune: FinetuneTraining


SIZES = {
    "tiny": Size(128, 2, Training(1e-3, 0.06, 0.0), FinetuneTraining(1e-3, 0.06, 0.1)),
    "mini": Size(256, 4, Training(5e-4, 0.06, 0.0), FinetuneTraining(8e-4, 0.06, 0.1, 0.65)),
    "small": Size(512, 4, Training(3e-4, 0.06, 0.1), FinetuneTraining(3e-4, 0.06, 0.1)),
    "medium": Size(512, 8, Training(2e-4, 0.06, 0.1), FinetuneTraining(1e-4, 0.06, 0.1)),
    "base": Size(768, 12, Training(1e-4, 0.06, 0.1), FinetuneTraining(5e-5, 0.06, 0.1)),
    "large": Size(1024, 24, Training(1e-4, 0.06, 0.1), FinetuneTraining(2e-5, 0.1, 0.1)),
}
