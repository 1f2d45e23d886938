"""Freed memory is kept: the next tensors cost no new pages."""

import subprocess
import sys

import pytest

CODE = """
import resource
import torch
from weightspace.allocation import keep_freed_memory

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**22)  # 16 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

fresh = pages()
print(fresh, keep_freed_memory(), pages(), pages())
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="Linux counts pages, and has the C library in question"
)
def test_freed_memory_is_used_again():
    answer = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout.split()
    fresh, can, _, kept = answer
    if can != "True":
        pytest.skip("this C library has no such setting")
    assert int(kept) < int(fresh) / 10
