"""Errors that users can cause, each a single sentence that says what, where and what to do.

The command line prints them without a traceback and exits with 2.
"""

import difflib
from collections.abc import Iterable


class WeightspaceError(Exception):
    """Base of all errors that a user can cause and mend."""


class ConfigError(WeightspaceError):
    """A setting is unknown, out of range or does not fit another."""


class UnknownName(ConfigError):
    """A method, network, data set or column that does not exist."""


class LayoutError(WeightspaceError):
    """Weights do not fit the layout they are read or written with."""


class DatasetError(WeightspaceError):
    """Images or labels are missing, or have the wrong shape."""


class ZooError(WeightspaceError):
    """A zoo folder is missing, empty, damaged or of another version."""


class MissingExtra(WeightspaceError):
    """An optional package is needed and not installed."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> UnknownName:
    """The error for a name that is not among the known ones, with the nearest suggestion.

    >>> str(unknown_name("encoder", "sanne", ["sane", "flat"]))
    "unknown encoder 'sanne'; did you mean 'sane'? (known: flat, sane)"
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return UnknownName(f"unknown {what} {name!r}; {hint}(known: {', '.join(known)})")
