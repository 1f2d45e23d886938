"""Zoos: populations of checkpoints on disk and in memory, with what is known of each.

Names are imported when first used, so that a command's help does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightspace.zoo.integrity import Inspection, check
    from weightspace.zoo.store import Zoo, open
    from weightspace.zoo.writer import ZooWriter

__all__ = ["Inspection", "Zoo", "ZooWriter", "check", "open"]

_HOMES = {
    "Inspection": "weightspace.zoo.integrity",
    "Zoo": "weightspace.zoo.store",
    "ZooWriter": "weightspace.zoo.writer",
    "check": "weightspace.zoo.integrity",
    "open": "weightspace.zoo.store",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
