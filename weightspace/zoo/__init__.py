"""Zoos: populations of checkpoints on disk and in memory, with what is known of each.

Names are imported when first used, so that a command's help does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightspace.zoo.export import export_zoo
    from weightspace.zoo.hub import pull_zoo, push_zoo
    from weightspace.zoo.importers import ImportReport, import_zoo
    from weightspace.zoo.integrity import Inspection, check
    from weightspace.zoo.store import Zoo, open
    from weightspace.zoo.writer import ZooWriter

__all__ = [
    "ImportReport",
    "Inspection",
    "Zoo",
    "ZooWriter",
    "check",
    "export_zoo",
    "import_zoo",
    "open",
    "pull_zoo",
    "push_zoo",
]

_HOMES = {
    "ImportReport": "weightspace.zoo.importers",
    "Inspection": "weightspace.zoo.integrity",
    "Zoo": "weightspace.zoo.store",
    "ZooWriter": "weightspace.zoo.writer",
    "check": "weightspace.zoo.integrity",
    "export_zoo": "weightspace.zoo.export",
    "import_zoo": "weightspace.zoo.importers",
    "open": "weightspace.zoo.store",
    "pull_zoo": "weightspace.zoo.hub",
    "push_zoo": "weightspace.zoo.hub",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
