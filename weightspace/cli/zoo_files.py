"""`weightspace zoo import`, `export`, `push` and `pull`: zoos from and to files and the Hugging Face Hub."""

from collections import Counter
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from weightspace.zoo import ImportReport, export_zoo, import_zoo, pull_zoo, push_zoo
from weightspace.zoo import open as open_zoo
from weightspace.zoo.export import ExportFormat

MOST_LINES = 20
"""Lines of a table on the screen; `import.json` in the zoo has all."""


def import_(
    source: str,
    target: Path,
    *,
    format: str = "auto",
    labels: Path | None = None,
    max_weight: float | None = None,
    keep_nonfinite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Make a zoo of checkpoints from elsewhere; nothing in the files is executed.

    Args:
        source: Folder or file, or hub:owner/name for a repository on the Hugging Face Hub.
        target: Folder of the new zoo.
        format: auto, small-cnn, modelzoos-pt, ray, nfn-siren, dws-siren, lightning, hf-trainer, optuna or files.
        labels: CSV file with a line a checkpoint; one column names files or models.
        max_weight: Skip checkpoints with a larger absolute weight.
        keep_nonfinite: Take checkpoints with NaN or infinite weights, too.
    """
    report = import_zoo(
        source, target, format=format, labels=labels, max_weight=max_weight, keep_nonfinite=keep_nonfinite
    )
    console = Console()
    for table in _tables(report):
        console.print(table)
    console.print(
        f"{report.models} models, {report.checkpoints} checkpoints, {len(report.skipped)} skipped: {target}",
        highlight=False,
    )


def export(path: Path, target: Path, *, format: ExportFormat = "safetensors") -> None:
    """Write a zoo as files that other programs read.

    Args:
        path: Folder of the zoo.
        target: New folder.
        format: A safetensors file a checkpoint with a CSV of labels, or the three files of the Small CNN Zoo.
    """
    zoo = open_zoo(path)
    export_zoo(zoo, target, format=format)
    Console().print(f"{len(zoo)} checkpoints: {target}", highlight=False)


def push(path: Path, repository: str, *, private: bool = False, endpoint: str | None = None) -> None:
    """Upload a zoo, with a card, into a data set repository on the Hugging Face Hub.

    Args:
        path: Folder of the zoo.
        repository: owner/name; made if missing.
        private: Whether a new repository is private.
        endpoint: Address of another hub.
    """
    Console().print(push_zoo(open_zoo(path), repository, private=private, endpoint=endpoint), highlight=False)


def pull(repository: str, target: Path, *, endpoint: str | None = None) -> None:
    """Copy a zoo from the Hugging Face Hub, or from its cache, into a new folder.

    Args:
        repository: owner/name, with @revision if not the newest.
        target: New folder.
        endpoint: Address of another hub.
    """
    zoo = pull_zoo(repository, target, endpoint=endpoint)
    Console().print(f"{len(zoo.models)} models, {len(zoo)} checkpoints: {target}", highlight=False)


def _tables(report: ImportReport) -> list[Table]:
    """What was taken, what was skipped and why, what was changed."""
    taken = Table(
        "layout", "tensors", "parameters", "checkpoints", title=f"taken ({report.format})", title_justify="left"
    )
    for layout in sorted(report.layouts, key=lambda layout: -layout.checkpoints)[:MOST_LINES]:
        taken.add_row(layout.digest, str(layout.tensors), f"{layout.parameters:,}", str(layout.checkpoints))
    if (more := len(report.layouts) - MOST_LINES) > 0:
        taken.add_row(f"{more} more", "", "", str(sum(sorted(x.checkpoints for x in report.layouts)[:more])))
    shown = [taken]
    if report.skipped:
        skipped = Table("skipped", "why", "first", title="skipped", title_justify="left")
        reasons = Counter(item.reason for item in report.skipped).most_common()
        for reason, count in reasons[:MOST_LINES]:
            first = next(item.source for item in report.skipped if item.reason == reason)
            skipped.add_row(str(count), reason, first)
        if rest := sum(count for _, count in reasons[MOST_LINES:]):
            skipped.add_row(str(rest), "other reasons: see import.json in the zoo", "")
        shown.append(skipped)
    if report.notes:
        notes = Table("checkpoints", "note", title="notes", title_justify="left")
        for note, count in report.notes.items():
            notes.add_row(str(count), note)
        shown.append(notes)
    return shown
