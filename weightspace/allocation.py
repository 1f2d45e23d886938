"""How the C library treats freed memory, in processes of our own.

Tensors of a vectorised population have megabytes. The GNU C library asks the kernel for each of them and gives it back
at once, so that every page of the next one is zeroed again: a fifth of the time of training small networks
(`benchmarks/allocation.py`). Only the command line and the workers of a zoo do this; in a process of somebody else it
is not ours to decide.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of malloc.h, without their M
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep freed blocks for the next ones, instead of giving them back to the kernel.

    Returns:
        Whether the C library can; others than the GNU one are left as they are.

    >>> keep_freed_memory() in (True, False)
    True
    """
    if not sys.platform.startswith("linux"):
        return False
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    return tune is not None and all([tune(_MMAP_MAX, 0), tune(_TRIM_THRESHOLD, _NEVER)])
