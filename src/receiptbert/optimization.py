"""AdamW with decay groups, and the triangular learning rate schedule."""

import math

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from receiptbert.encoder import Bert


def get_optimizer(model: nn.Module, weight_decay: float = 0.01, layer_lr_decay: float = 1.0) -> AdamW:
    """AdamW (Loshchilov and Hutter 2019) in groups: biases and layer norms are not decayed.

    Decayed weights shrink by rate x decay in each step, apart from Adam's own step. As a term of the loss
    (L2) the decay would be divided by the root of Adam's second moment, as gradients are: weights with large
    gradients would hardly be decayed.

    The learning rate is left to ``Scheduler``.

    Args:
        model: whose parameters are trained.
        weight_decay: of those that are decayed.
        layer_lr_decay: the learning rate of each encoder layer as a fraction of that of the layer (or head)
            above it; below the layers are the embeddings (Howard and Ruder 2018; for BERT, Sun et al. 2019).
            What is lower is more general, and has less to relearn. At 1 there are two groups.
    """
    lr_scales = _lr_scales(model, layer_lr_decay)
    exempt = {  # by the type of the module, not by its name: a name can be missed or match too much
        parameter
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name == "bias" or isinstance(module, nn.LayerNorm)
    }
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}  # exempt or not, and lr_scale
    for parameter in model.parameters():  # each once, also the embeddings that the MLM head shares
        key = (parameter in exempt, lr_scales.get(parameter, 1.0))
        groups.setdefault(key, []).append(parameter)
    grouped_parameters = [
        {"params": parameters, "weight_decay": 0.0 if is_exempt else weight_decay, "lr_scale": scale}
        for (is_exempt, scale), parameters in groups.items()
    ]
    return AdamW(grouped_parameters, fused=True)


def _lr_scales(model: nn.Module, layer_lr_decay: float) -> dict[nn.Parameter, float]:
    """The factor on the learning rate of each parameter of an encoder."""
    encoders = [module for module in model.modules() if isinstance(module, Bert)]
    return {
        parameter: layer_lr_decay**depth
        for encoder in encoders
        for depth, level in enumerate(reversed(encoder.levels()), start=1)
        for parameter in level.parameters()
    }


def num_optimizer_steps(num_batches: int, n_epochs: int, num_accum_steps: int = 1) -> int:
    """Optimizer steps of ``n_epochs`` passes; what is left at the end of a pass is a step of its own."""
    return math.ceil(num_batches / num_accum_steps) * n_epochs


class Scheduler:
    """A triangular learning rate: up from ``init_lr`` to ``peak_lr``, down to ``final_lr``, then constant.

    The first step is taken at ``init_lr`` (at ``peak_lr`` if there is no warm-up), step number
    ``num_warmup_steps`` (counted from 0) at ``peak_lr``, the last one a little above ``final_lr``. In a
    warm-up from 0, as that of both stages, the first step changes no weight and only begins Adam's moments.

    Args:
        optimizer: whose groups all get the same rate, times their ``lr_scale`` if they have one.
        init_lr: rate of the first step, if there is a warm-up.
        peak_lr: rate at the end of the warm-up.
        final_lr: rate after the last step.
        num_warmup_steps: steps from ``init_lr`` to ``peak_lr``.
        num_training_steps: all optimizer steps; ``num_optimizer_steps`` counts them.

    Raises:
        ValueError: the warm-up is no shorter than the training.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        init_lr: float,
        peak_lr: float,
        final_lr: float,
        num_warmup_steps: int,
        num_training_steps: int,
    ) -> None:
        if not 0 <= num_warmup_steps < max(num_training_steps, 1):
            raise ValueError(f"{num_warmup_steps} warm-up steps do not fit into {num_training_steps} steps")
        self._optimizer = optimizer
        self._step = 0
        self._init_lr = init_lr
        self._peak_lr = peak_lr
        self._final_lr = final_lr
        self._num_warmup_steps = num_warmup_steps
        self._num_training_steps = num_training_steps
        self._set_lr()

    def step(self) -> None:
        """Set the rate of the next step; call it after ``optimizer.step()``."""
        self._step += 1
        self._set_lr()

    def get_last_lr(self) -> list[float]:
        """The current rate of each group."""
        rate = self._lr(self._step)  # not read from the groups: on a GPU it is a tensor there
        return [rate * group.get("lr_scale", 1.0) for group in self._optimizer.param_groups]

    def state_dict(self) -> dict[str, int]:
        """What changes while training."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from what ``state_dict`` gave."""
        self._step = state["step"]
        self._set_lr()

    def _set_lr(self) -> None:
        for group, rate in zip(self._optimizer.param_groups, self.get_last_lr(), strict=True):
            if isinstance(group["lr"], Tensor):  # a recorded step reads it there
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _lr(self, step: int) -> float:
        if step < self._num_warmup_steps:
            return self._init_lr + (self._peak_lr - self._init_lr) * step / self._num_warmup_steps
        remaining = self._num_training_steps - step
        if remaining <= 0:
            return self._final_lr
        share = remaining / (self._num_training_steps - self._num_warmup_steps)
        return self._final_lr + (self._peak_lr - self._final_lr) * share
