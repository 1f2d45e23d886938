"""Measure a zoo of a million checkpoints and write docs/results/zoo_store.md and zoo_store.csv.

python docs/write_zoo_store_results.py [ROWS]: about five minutes on two cores, 10 GB in the temporary folder.
"""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from weightspace.demo import machine

DOCS = Path(__file__).parent
PAGE = """# A zoo of a million checkpoints

Written by `python docs/write_zoo_store_results.py`, which runs `benchmarks/zoo_store.py --rows {rows}`
([zoo_store.csv](zoo_store.csv) has the same numbers), on {cores} cores of {processor}, {memory:.0f} GB of memory,
{system}, Python {python}, torch {torch}, polars {polars}, safetensors {safetensors}. Weights are synthetic: float32
noise of the fixed seed 0.

```text
{lines}
```

What is measured:

* Times are the best of three rounds in which the ways take turns, except writing, appending, checking and the passes
  in a process of their own, which run once. Importing the package is not counted.
* *Opening* reads the header and the columns of one table. Everything else is read when it is first asked for: the
  second line adds the places of all checkpoints and one row of weights, the third all columns of all tables.
* *The raw speed* is that of numpy memory maps of the same files, open beforehand, their pages mapped by the rounds
  before, and told the file and the row of each checkpoint, sorted. The zoo finds them, and returns the rows in the
  order asked for. A window is the same random parameters of random checkpoints of the whole zoo.
* Everything was written just before, so what fits into memory comes from the page cache. That is not the disk's speed.
* *Peak resident* is the largest resident size of the process (`VmHWM`), with mapped pages of the files, which the
  system could take back at any time. *Peak anonymous* is without them, sampled every 20 batches of 1024 checkpoints.
* Appending writes weights, table and hashes of 1000 checkpoints (9.9 MB), each file synced. It reads nothing of the
  zoo; it lists its folders.
"""


def main(rows: int = 1_000_000) -> None:
    """Run the benchmark and write the page."""
    script = [sys.executable, DOCS.parent / "benchmarks" / "zoo_store.py", "--rows", str(rows)]
    done = subprocess.run(
        [*script, "--csv", DOCS / "results" / "zoo_store.csv"], check=True, stdout=subprocess.PIPE, text=True
    )
    total = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemTotal"))
    versions = {name: version(name) for name in ("torch", "polars", "safetensors")}
    page = PAGE.format(
        rows=rows, lines=done.stdout.strip(), memory=int(total.split()[1]) * 1024 / 1e9, **versions, **machine()
    )
    (DOCS / "results" / "zoo_store.md").write_text(page)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
