"""How much memory oneDNN takes, the library that computes some of torch's operations on a CPU."""

import os

# It keeps the code that it compiled for the last 1,024 shapes of its operands. That code lies scattered among
# the activations, so that the heap grows with every new shape of a batch, for hundreds of steps. The shapes
# of one batch are enough, and in fp32 no slower (docs/LOG.md, Memory); in bf16 this was not timed.
KEPT_SHAPES = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


def keep_few_shapes() -> None:
    """Have oneDNN keep the compiled code of 16 shapes in this whole process, or of as many as the variable
    ``KEPT_SHAPES`` says. It must be called before oneDNN is first used."""
    os.environ.setdefault(KEPT_SHAPES, "16")
