"""Symmetries of published architectures: docs/results/symmetry_architectures.md and its CSVs.

python docs/write_symmetry_architectures.py: about ten minutes on two cores.
"""

import time
from importlib.metadata import version
from pathlib import Path

import polars as pl
import torch
from architectures import ARCHITECTURES, Architecture

from weightspace.demo import machine
from weightspace.symmetry import Symmetry, Verification, symmetry_of, verify

RESULTS = Path(__file__).parent / "results"
SEED = 0
PAGE = """# Symmetries of architectures

Groups that `symmetry_of` finds by tracing, and what `verify` measures: `python docs/write_symmetry_architectures.py`
on {cores} cores of {processor}, {system}, Python {python}, torch {torch}, seed {seed}, untrained weights with noise.
[symmetry_architectures.csv](symmetry_architectures.csv) and, a line each group that was checked,
[symmetry_architecture_groups.csv](symmetry_architecture_groups.csv).

The order is the decimal logarithm of the number of permutations. Units are scaled each on its own; those up to eps pass
a batch-norm, whose small constant under the root changes the output a little. Seconds are those of the trace.

{found}

## Checked

In float64, relative to the largest output. Error is the largest change under random elements of one exact group, or of
all together. Control is the smallest change, over the groups, when only one place of a group moves; it must not be
zero. Error up to eps is that of scales before a batch-norm. In networks of more than {most:,} parameters each group is
tried with one random element and all together with one, in the others with {elements}.

{checked}

## Frozen

What may not be renumbered, by reason, with the number of tensor axes. Kernel positions, inputs and outputs of a network
are always frozen; the rest says where a trace cannot see, or an operation does not allow, more.

{frozen}
"""
MOST, ELEMENTS = 500_000, 4


def measure(architecture: Architecture) -> tuple[dict, Symmetry, Verification]:
    """One line of the table."""
    torch.manual_seed(SEED)
    module, inputs = architecture.published()
    start = time.perf_counter()
    symmetry = symmetry_of(module, inputs)
    seconds = time.perf_counter() - start
    parameters = sum(parameter.numel() for parameter in module.parameters())
    one = tuple(x[:1] for x in inputs)
    elements = 1 if parameters > MOST else ELEMENTS
    found = verify(module, symmetry, generator=torch.Generator().manual_seed(SEED), input=one, elements=elements)
    scaled = {
        "positive": sum(group.size for group in symmetry.scales if group.kind == "positive" and group.exact),
        "up to eps": sum(group.size for group in symmetry.scales if not group.exact),
        "sign": sum(group.size for group in symmetry.scales if group.kind == "sign"),
    }
    line = {
        "architecture": architecture.name,
        "parameters": parameters,
        "groups": len(symmetry.groups),
        "order (log10)": round(symmetry.log10_order),
        "bases": len(symmetry.bases),
        **scaled,
        "seconds": round(seconds, 1),
        "holds": found.holds,
        "error": found.error,
        "control": found.control,
        "error up to eps": max((check.error for check in found.checks if not check.exact), default=None),
    }
    return line, symmetry, found


def table(rows: list[dict], columns: dict[str, str]) -> str:
    """Markdown; values under the names of `columns`, written in their formats."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = ["" if row[name] is None else format(row[name], how) for name, how in columns.items()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Trace and check one architecture after another."""
    lines, groups, frozen = list[dict](), list[pl.DataFrame](), list[dict]()
    for architecture in ARCHITECTURES:
        line, symmetry, found = measure(architecture)
        lines.append(line)
        groups.append(found.table().insert_column(0, pl.lit(architecture.name).alias("architecture")))
        axes = {item.reason: len({(place.tensor, place.axis) for place in item.places}) for item in symmetry.frozen}
        reasons = "; ".join(f"{reason} ({count})" for reason, count in axes.items())
        frozen.append({"architecture": architecture.name, "frozen": reasons})
    csv = pl.DataFrame(lines, infer_schema_length=None).join(pl.DataFrame(frozen), on="architecture", how="left")
    csv.write_csv(RESULTS / "symmetry_architectures.csv")
    pl.concat(groups).write_csv(RESULTS / "symmetry_architecture_groups.csv")
    counts = {"parameters": ",", "groups": "", "order (log10)": ",", "bases": ""}
    counts |= {"positive": ",", "up to eps": ",", "sign": ","}
    page = PAGE.format(
        **machine(),
        torch=version("torch"),
        seed=SEED,
        most=MOST,
        elements=ELEMENTS,
        found=table(lines, {"architecture": "", **counts, "seconds": ".1f"}),
        checked=table(lines, {"architecture": "", "error": ".0e", "control": ".0e", "error up to eps": ".0e"}),
        frozen=table(frozen, {"architecture": "", "frozen": ""}),
    )
    (RESULTS / "symmetry_architectures.md").write_text(page)


if __name__ == "__main__":
    main()
