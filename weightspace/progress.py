"""One progress bar for everything that takes longer than two seconds."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

QUIET_SECONDS = 2.0


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar on standard error with the time left, shown once the work has taken two seconds.

    Yields a function `advance(steps=1, note="")`; the note stands behind the bar.

    >>> with progress_bar("adding", 3) as advance:
    ...     for _ in range(3):
    ...         advance()
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(file=sys.stderr),
    )
    task = bar.add_task(label, total=total, note="")
    started, shown = monotonic(), False

    def advance(steps: int = 1, note: str = "") -> None:
        nonlocal shown
        if not shown and monotonic() - started > QUIET_SECONDS:
            bar.start()
            shown = True
        bar.advance(task, steps)
        if note:
            bar.update(task, note=note)

    try:
        yield advance
    finally:
        if shown:
            bar.stop()
