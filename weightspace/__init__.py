"""Learning from populations of neural networks: zoos, representations of weights, and new weights.

Names are loaded when they are first used, so that `import weightspace` and `weightspace --help` stay quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightspace import (
        datasets,
        encoders,
        evaluation,
        generators,
        networks,
        report,
        symmetry,
        views,
        zoo,
    )
    from weightspace.encoders import fit
    from weightspace.zoo import Zoo, open

__version__ = "0.1.0"
__all__ = [
    "Zoo",
    "__version__",
    "datasets",
    "encoders",
    "evaluation",
    "fit",
    "generators",
    "networks",
    "open",
    "report",
    "symmetry",
    "views",
    "zoo",
]

_MEMBERS = {"Zoo": "zoo", "fit": "encoders", "open": "zoo"}
"""Names that live in a room; all others are rooms."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'weightspace' has no attribute {name!r}")
    room = importlib.import_module(f"weightspace.{_MEMBERS.get(name, name)}")
    value = getattr(room, name) if name in _MEMBERS else room
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
