"""Run every benchmark and write what they print to docs/results/benchmarks.md and benchmarks.csv.

python docs/write_benchmark_results.py [NAME ...]: about four minutes on two cores for all, on a machine that does
nothing else. With names only those are run, and their parts of the page and of the table replaced.
"""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import polars as pl

from weightspace.demo import machine

DOCS = Path(__file__).parent
BENCHMARKS = DOCS.parent / "benchmarks"
MARK = "## `benchmarks/"
HEAD = """# Benchmarks

Each compares two ways to do the same work in one run; the ratio is what counts. Written by
`python docs/write_benchmark_results.py` ([benchmarks.csv](benchmarks.csv) has the same lines) on {cores} cores of
{processor}, {system}, Python {python}, torch {torch}.
"""


def main(names: list[str]) -> None:
    """Run the benchmarks one after another."""
    page, table = DOCS / "results" / "benchmarks.md", DOCS / "results" / "benchmarks.csv"
    scripts = sorted(BENCHMARKS.glob("*.py"))
    printed = {}
    if names:
        printed = {part.split(".py", 1)[0]: part for part in page.read_text().split(MARK)[1:]}
    for script in scripts:
        if not names or script.stem in names:
            done = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
            printed[script.stem] = f"{script.name}`\n\n```text\n{done.stdout.strip(chr(10))}\n```\n\n"
    parts = [printed[script.stem] for script in scripts if script.stem in printed]
    head = HEAD.format(**machine(), torch=version("torch"))
    page.write_text(head + "\n" + "".join(MARK + part for part in parts).rstrip("\n") + "\n")
    rows = [
        {"benchmark": part.split(".py", 1)[0], "line": " ".join(line.split())}
        for part in parts
        for line in part.split("```text\n")[1].split("\n```")[0].splitlines()
    ]
    pl.DataFrame(rows).write_csv(table)


if __name__ == "__main__":
    main(sys.argv[1:])
