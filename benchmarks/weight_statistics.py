"""Weight statistics: sorted once a tensor for all networks, against NumPy a network and a tensor at a time.

python benchmarks/weight_statistics.py

One core, about 5 s. A population of the size of a published zoo split: 2304 CNNs of 994 parameters, rows as a zoo
gives them. Both ways are checked to agree. Prints seconds of each (processor time of one thread, the best of 3 runs
that take turns, so that neighbours on the machine do not count) and their ratio.
"""

from time import process_time

import numpy as np
import torch
from torch import nn

from weightspace.networks.layout import Layout
from weightspace.views.statistics import PERCENTILES, weight_statistics

NETWORKS, ROUNDS = 2304, 3


def plain(rows: np.ndarray, layout: Layout) -> np.ndarray:
    """The features as they are usually computed."""
    table = []
    for row in rows:
        line: list[float] = []
        for place in layout.slices.values():
            values = row[place]
            line += [values.mean(), values.std(), *np.percentile(values, PERCENTILES)]
        table.append(line)
    return np.array(table)


def main():
    torch.set_num_threads(1)
    layers = [nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(32, 10)]
    layout = Layout.of(nn.Sequential(*layers))
    rows = torch.randn(NETWORKS, layout.parameters, generator=torch.Generator().manual_seed(0))

    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(ROUNDS):
        start = process_time()
        expected = plain(rows.numpy(), layout)
        middle = process_time()
        found = weight_statistics(rows, layout)
        seconds["plain"].append(middle - start)
        seconds["ours"].append(process_time() - middle)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)  # the plain way sums in float32
    plainly, ours = min(seconds["plain"]), min(seconds["ours"])
    print(f"{NETWORKS} networks of {layout.parameters} parameters, {found.shape[1]} features each, one thread")
    print(f"plain loop {plainly:.3f} s   weight_statistics {ours:.3f} s   ratio {plainly / ours:.0f}")


if __name__ == "__main__":
    main()
