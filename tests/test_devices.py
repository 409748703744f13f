"""Memory that a training keeps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Page faults of a tensor of 64 MiB, and of ten more, made one after another.
FAULTS = """
import resource
import torch
from receiptbert.devices import keep_freed_memory

def faults(tensors):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(tensors):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(0)
if {kept}:
    keep_freed_memory(torch.device("cpu"))
print(faults(1), faults(10))
"""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(sys.platform != "linux", reason="pages are counted as Linux counts them")
def test_freed_memory_is_kept_for_the_next_tensor_in_huge_pages() -> None:
    # A stage that ran in this process before has set it.
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    faults = {}
    for kept in (False, True):
        script = FAULTS.format(kept=kept)
        said = subprocess.check_output([sys.executable, "-c", script], env=environment, text=True)
        faults[kept] = [int(number) for number in said.split()]
    (first, others), (first_kept, others_kept) = faults[False], faults[True]
    print(faults)
    assert others_kept < first / 10 < others / 10
    if HUGE_PAGES.exists() and "[never]" not in HUGE_PAGES.read_text():
        assert first_kept < first / 10
