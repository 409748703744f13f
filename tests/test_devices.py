"""Memory that a training keeps."""

import os
import subprocess
import sys

import pytest

# Page faults of ten tensors of 64 MiB, made one after another; the first has to be given its memory.
FAULTS = """
import resource
import torch
from receiptbert.devices import keep_freed_memory

if {kept}:
    keep_freed_memory(torch.device("cpu"))
torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pages are counted as Linux counts them")
def test_freed_memory_is_kept_for_the_next_tensor() -> None:
    # A stage that ran in this process before has set it.
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    faults = {
        kept: int(subprocess.check_output([sys.executable, "-c", FAULTS.format(kept=kept)], env=environment))
        for kept in (False, True)
    }
    assert faults[True] < faults[False] / 4
