"""What a training will take, estimated before it begins: parameters, work per token, memory.

Plain arithmetic. d is the hidden size, i the intermediate size, C the number of classes. A number has 4
bytes, or 2 where a matrix product of mixed precision reads or writes it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from receiptbert.encoder import BertShape, parameter_counts
from receiptbert.errors import UserError
from receiptbert.flat_texts import SPECIAL_TOKENS_PER_TEXT
from receiptbert.progress import say

# For each product of the forward pass, the backward pass takes two: for the gradients of inputs and weights.
TIMES_FORWARD = 3
# Batches differ in shape, and what a block of one size frees seldom suits those of the next batch.
GAPS = 1.0  # of the activations, on a CPU; fitted to what was measured (docs/LOG.md, Memory)
GIB = 2**30
# Of the largest batch: at most, of the corpora that were measured (ibid.). What was fitted here has it.
USUAL_RATIO = 1.25
COMPILED = 0.8 * GIB  # bytes: code that oneDNN keeps in bf16, and the gaps that it leaves (ibid.)
BYTES = 4  # of a number
# Recorded passes (see cuda_graphs) keep memory apart from others, and each of their shapes leaves gaps: a
# multiple of the activations, and a number of bytes. Fitted to pretraining on an H200 before cross entropy
# took less, and again to what that leaves of the same measurements (ibid.).
APART = 4.4
BESIDE = 0.4 * GIB


def operations_per_token(
    shape: BertShape,
    length: float,
    of_cls: float,
    targets: float,
    outputs: int,
    recomputed: bool = False,
) -> float:
    """Operations of the matrix products of a training step, forward and backward, per token.

    A multiplication and an addition are two operations.

    Args:
        length: tokens that a token attends to, on average, special ones included.
        of_cls: share of the tokens that are [CLS], one for each text.
        targets: share of the tokens that are to be predicted; 0 in a classifier: its head reads [CLS] alone.
        outputs: vocabulary entries that a target may be, or classes.
        recomputed: whether activation checkpointing computes the layers once more.
    """
    d, i, layers = shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers
    attention = 3 * d * d + 2 * d * length  # queries, keys and values; scores and weighted sums
    rest = d * d + 2 * d * i  # output projection; feed-forward
    if targets:  # of the last layer, what follows attention is computed at targets and [CLS] alone
        in_layers = layers * attention + (layers - 1 + min(targets + of_cls, 1)) * rest
    else:  # there only [CLS] has a query, and no token a key or value (`_context_of_cls`)
        of_tokens = 2 * shape.num_attention_heads * d
        in_layers = (layers - 1) * (attention + rest) + of_tokens + of_cls * (3 * d * d + rest)
    head = (targets or of_cls) * (d * d + d * outputs)
    return 2.0 * ((TIMES_FORWARD + recomputed) * in_layers + TIMES_FORWARD * head)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The properties of a training that decide what it takes.

    Args:
        shape: of the encoder.
        num_classes: C; None for pretraining.
        trained_tokens: entries of the vocabulary whose embeddings are trained.
        soft_targets: probabilities that are kept as targets of finetuning, for all texts together.
        texts: in a batch.
        processes: that share each batch.
        processes_here: those of them on this host; on a CPU they share its memory.
        length: tokens of a text, on average, special ones included. A token attends to slightly more of them
            on average, since longer texts have more tokens; that is neglected.
        longest: tokens of the longest text.
        largest_batch_ratio: tokens of the largest batch, padding included, as a multiple of what a batch has
            on average.
        target_share: of the texts' own tokens, how many are targets; 0 for finetuning.
        dropout: probability that an activation is zeroed.
        precision: of matrix products: fp32, bf16 or fp16.
        on_cpu: else on a GPU.
        cuda_graphs: whether a GPU's passes are recorded as CUDA graphs.
        activation_checkpointing: see ``Bert``.
        steps: of the optimizer.
    """

    shape: BertShape
    num_classes: int | None
    trained_tokens: int
    soft_targets: int
    texts: int
    processes: int
    processes_here: int
    length: float
    longest: int
    largest_batch_ratio: float
    target_share: float
    dropout: float
    precision: str
    on_cpu: bool
    cuda_graphs: bool
    activation_checkpointing: bool
    steps: int

    @property
    def num_parameters(self) -> int:
        """Of the whole model."""
        return sum(parameter_counts(self.shape, self.num_classes).values())

    @property
    def operations_per_token(self) -> float:
        """See the function."""
        return operations_per_token(
            self.shape,
            self.length,
            1 / self.length,
            self._targets,
            self.num_classes or self.shape.vocab_size,
            self.activation_checkpointing,
        )

    @property
    def memory(self) -> dict[str, float]:
        """Peak memory of the device in bytes, estimated, by its parts."""
        on_device = self.processes_here if self.on_cpu else 1
        embedding = BYTES * self.shape.hidden_size  # of one token
        still = (self.shape.vocab_size - self.trained_tokens) * embedding
        weights = BYTES * self.num_parameters - still  # those that are trained
        state = 3 * weights  # and the two moments of AdamW
        passing = weights / 2 if self._mixed else 0.0  # the weights in half precision
        # Head and embeddings share a matrix and each make a gradient before these are added. In finetuning
        # the original embeddings are kept, next to those that are trained.
        passing += self.shape.vocab_size * embedding
        if self.num_classes is not None:
            state += weights  # of the best epoch so far
        parts = {
            "weights, gradients and moments": on_device * (state + weights + passing),
            "activations": on_device / self.processes * self._activations(),
        }
        if self.soft_targets:
            # Twice: while the teachers label, next to their mean there are the linear teacher's answers.
            parts["targets"] = on_device * 2 * BYTES * self.soft_targets
        if self.on_cpu:
            parts["gaps between blocks"] = GAPS * parts["activations"]
            # In memory twice, beside what the step has freed and the C library has not given back.
            parts["a checkpoint while it is written"] = 2 * state
            if self.precision == "bf16":
                parts["compiled products"] = on_device * COMPILED
        if self.cuda_graphs:  # a graph holds all gradients before it adds them to the step's
            parts["recorded passes"] = weights + APART * parts["activations"] + BESIDE
        return parts

    @property
    def total_memory(self) -> float:
        """The sum of ``memory``."""
        return sum(self.memory.values())

    @property
    def _mixed(self) -> bool:
        return self.precision != "fp32"

    @property
    def _targets(self) -> float:
        """The share of the tokens that become targets; [CLS] and [SEP] never do."""
        return self.target_share * max(1 - SPECIAL_TOKENS_PER_TEXT / self.length, 0)

    def _activations(self) -> float:
        """Bytes that a batch keeps from its forward to its backward pass, and those that the latter adds."""
        d, i = self.shape.hidden_size, self.shape.intermediate_size
        # No batch is smaller than its longest text, however few texts it has.
        tokens = max(self.texts * self.length * max(self.largest_batch_ratio / USUAL_RATIO, 1), self.longest)
        half = BYTES / 2 if self._mixed else BYTES
        mask = (BYTES if self.on_cpu else 1) * d if self.dropout else 0.0
        attention = half * 5 * d  # its input, queries, keys, values and their weighted sum
        if self.on_cpu:  # the weights of each head; with dropout also what it kept, and their product
            attention += half * (3 if self.dropout else 1) * self.shape.num_attention_heads * self.longest
        # The inputs of both layer norms, of both linear layers of the feed-forward part, of its activation.
        rest = BYTES * 2 * d + half * (d + 2 * i) + 2 * mask
        read = min(self._targets + 1 / self.length, 1)
        layers = self.shape.num_hidden_layers
        # A classifier's last layer keeps less of its attention, which is neglected.
        kept = (layers - 1) * (attention + rest) + attention + read * rest
        if self.activation_checkpointing:
            kept = BYTES * layers * d + (attention + rest if layers > 1 else attention + read * rest)
        embeddings = BYTES * d + mask
        # Probabilities and gradient take their place, in fp16 that of a copy in fp32.
        logit = half + BYTES if self.precision == "fp16" else half
        logits = logit * self._targets * self.shape.vocab_size
        backward = half * (2 * i + 3 * d)  # gradients on their way through a feed-forward part
        return tokens * (embeddings + kept + logits + backward)


def announce(plan: Plan, free: int | None) -> None:
    """Say on stderr what the training will take.

    Args:
        free: bytes of memory that the device has left; None if unknown.
    """
    parts = parameter_counts(plan.shape, plan.num_classes)
    shared = f" in {plan.processes} processes" if plan.processes > 1 else ""
    say(f"plan: {_count(plan.num_parameters)} parameters: {_parts(parts, _count)}")
    say(
        f"plan: {plan.steps:,} steps, batches of {plan.texts:,} texts of {plan.length:.1f} tokens{shared}, "
        f"{_count(plan.operations_per_token)} operations for each token, forward and backward"
    )
    of_free = "" if free is None else f" of {_gib(free)} free"
    say(f"plan: about {_gib(plan.total_memory)} of memory{of_free}: {_parts(plan.memory, _gib)}")


def require_memory(
    plan: Plan,
    free: int | None,
    stage: str,
    batch_size: int,
    num_accum_steps: int | None = None,
    smaller_model: str = "a smaller model.size",
) -> bool:
    """Refuse a plan that cannot fit, with recorded passes or without.

    Args:
        free: as in ``announce``; None refuses nothing.
        stage: ``pretrain`` or ``finetune``, whose settings the advice names.
        batch_size: the setting; ``plan.texts`` is about a multiple of it.
        num_accum_steps: the setting; None if the stage has none.
        smaller_model: how to get one.

    Returns:
        whether passes may be recorded: not where the plan fits only without.

    Raises:
        UserError: names what would fit.
    """
    if free is None or plan.total_memory <= free:
        return plan.cuda_graphs
    plan = replace(plan, cuda_graphs=False)
    if plan.total_memory <= free:
        say(f"plan: no memory to record passes as CUDA graphs; without that {_gib(plan.total_memory)}")
        return False
    fitting = _what_fits(plan, free, stage, batch_size, num_accum_steps)
    advice = ", or ".join(fitting) or f"{smaller_model}, or take a machine with more memory"
    raise UserError(
        f"the training would take about {_gib(plan.total_memory)} of memory, but only {_gib(free)} are free; "
        f"set {advice}"
    )


def _what_fits(plan: Plan, free: int, stage: str, batch_size: int, num_accum_steps: int | None) -> list[str]:
    """Settings with each of which ``plan`` would fit."""
    switch = "runtime.activation_checkpointing=true"
    switched = replace(plan, activation_checkpointing=True)
    others = {
        switch: switched,
        f"{stage}.precision=fp32": replace(plan, precision="fp32"),
        f"{stage}.teachers=0": replace(plan, soft_targets=0),
    }
    advice = [setting for setting, other in others.items() if other.total_memory <= free]
    if smaller := _smaller_batch(plan, free, stage, batch_size, num_accum_steps):
        advice.insert(0, smaller)
    elif switched.total_memory > free and not plan.activation_checkpointing:
        both = _smaller_batch(switched, free, stage, batch_size, num_accum_steps)
        advice += [f"{switch} and {both}"] if both else []
    if stage == "pretrain" and plan.longest > plan.texts * plan.length:  # one text outweighs a batch
        usual = replace(plan, longest=math.ceil(plan.length), largest_batch_ratio=1.0)
        if usual.total_memory <= free:
            tokens = f"the longest text has {plan.longest:,} tokens, the mean {plan.length:.0f}"
            advice.insert(0, f"a lower pretokenize.max_length_quantile ({tokens})")
    return advice


def _smaller_batch(
    plan: Plan, free: int, stage: str, batch_size: int, num_accum_steps: int | None
) -> str | None:
    """The settings of the largest batch that fits; None if not even one text does."""
    for factor in range(2, batch_size + 1):
        if num_accum_steps is not None and batch_size % factor:  # they would not add up to as many texts
            continue
        if replace(plan, texts=math.ceil(plan.texts / factor)).total_memory <= free:
            smaller = f"{stage}.batch_size={batch_size // factor}"
            if num_accum_steps is None:
                return smaller
            return f"{smaller} with {stage}.num_accum_steps={num_accum_steps * factor}"
    return None


def _parts(parts: dict[str, int] | dict[str, float], written: Callable[[float], str]) -> str:
    return ", ".join(f"{name} {written(value)}" for name, value in parts.items())


def _count(number: float) -> str:
    for unit, name in ((1e9, " billion"), (1e6, " million"), (1e3, " thousand")):
        if number >= unit:
            return f"{number / unit:.1f}{name}"
    return f"{number:.0f}"


def _gib(number: float) -> str:
    return f"{number / GIB:.2f} GiB"
