"""Run every benchmark and write what they print to docs/results/benchmarks.md and benchmarks.csv.

python docs/write_benchmark_results.py: about two minutes on two cores; run it on a machine that does nothing else.
"""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import polars as pl

from weightspace.demo import machine

DOCS = Path(__file__).parent
BENCHMARKS = DOCS.parent / "benchmarks"
HEAD = """# Benchmarks

Each compares two ways to do the same work in one run; the ratio is what counts. Written by
`python docs/write_benchmark_results.py` ([benchmarks.csv](benchmarks.csv) has the same lines) on {cores} cores of
{processor}, {system}, Python {python}, torch {torch}.
"""


def main() -> None:
    """Run the benchmarks one after another."""
    page, rows = [HEAD.format(**machine(), torch=version("torch"))], []
    for script in sorted(BENCHMARKS.glob("*.py")):
        done = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
        lines = done.stdout.strip().splitlines()
        page.append("\n".join([f"## `benchmarks/{script.name}`", "", "```text", *lines, "```", ""]))
        rows += [{"benchmark": script.stem, "line": " ".join(line.split())} for line in lines]
    (DOCS / "results" / "benchmarks.md").write_text("\n".join(page))
    pl.DataFrame(rows).write_csv(DOCS / "results" / "benchmarks.csv")


if __name__ == "__main__":
    main()
