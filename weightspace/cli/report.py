"""`weightspace report`."""

from pathlib import Path

from rich.console import Console

from weightspace import report as pages


def report(run: Path, *, out: Path | None = None) -> None:
    """Write one self-contained HTML page of a run folder or of a zoo.

    Args:
        run: Folder of a run, such as weightspace-demo, or of a zoo.
        out: The page; report.html in the run folder by default.
    """
    Console().print(f"The report: {pages.write(run, out)}", highlight=False)
