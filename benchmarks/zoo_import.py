"""Import: a folder of PyTorch files and a Small CNN Zoo become zoos, against the loops that people write for it.

python benchmarks/zoo_import.py

One core, about 20 s. The loops end with a matrix in memory; the imports besides check every value, write a zoo on disk
and a report. Seconds of processor time, the best of 2 runs that take turns; both ways are checked to agree.
"""

import gzip
import tempfile
from pathlib import Path
from time import process_time

import numpy as np
import torch
from torch import nn

import weightspace as ws
from weightspace.networks.layout import Layout
from weightspace.zoo import import_zoo

FILES, ROWS, ROUNDS = 1000, 8000, 2
SMALL_CNN = [("conv2d", (3, 3, 1, 16)), ("conv2d_1", (3, 3, 16, 16)), ("conv2d_2", (3, 3, 16, 16)), ("dense", (16, 10))]


def load_files(folder: Path, layout: Layout) -> torch.Tensor:
    """One file after another with PyTorch's safe reader."""
    states = [torch.load(file, weights_only=True) for file in sorted(folder.glob("*.pt"))]
    return torch.stack([layout.flatten(state) for state in states])


def convert_rows(folder: Path) -> torch.Tensor:
    """One row and one layer after another."""
    rows = []
    for row in np.load(folder / "weights.npy"):
        parts, start = [], 0
        for _, shape in SMALL_CNN:
            bias = row[start : start + shape[-1]]
            start += shape[-1] + int(np.prod(shape))
            kernel = row[start - int(np.prod(shape)) : start].reshape(shape)
            turned = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
            parts += [turned.reshape(-1), bias]
        rows.append(torch.from_numpy(np.concatenate(parts)))
    return torch.stack(rows)


def write_files(folder: Path) -> Layout:
    folder.mkdir()
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(32, 10))
    for place in range(FILES):
        for parameter in network.parameters():
            nn.init.normal_(parameter)
        torch.save(network.state_dict(), folder / f"net{place:05d}.pt")
    return Layout.of(network)


def write_small_cnn(folder: Path) -> None:
    folder.mkdir()
    lines, end = ["varname,start_idx,end_idx,shape"], 0
    for name, shape in SMALL_CNN:
        for key, sizes in (("bias", shape[-1:]), ("kernel", shape)):
            size = int(np.prod(sizes))
            lines.append(f'{name}/{key}:0,{end},{end + size},"{sizes}"')
            end += size
    (folder / "layout.csv").write_text("\n".join(lines))
    np.save(folder / "weights.npy", np.random.default_rng(0).normal(size=(ROWS, end)).astype(np.float32))
    with gzip.open(folder / "metrics.csv.gz", "wt") as file:
        file.write("modeldir,step,test_accuracy\n" + "".join(f"m{i},86,0.5\n" for i in range(ROWS)))


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        layout = write_files(folder / "files")
        write_small_cnn(folder / "small")
        cases = {
            f"{FILES} files of {layout.parameters} parameters": ("files", lambda: load_files(folder / "files", layout)),
            f"{ROWS} rows of a Small CNN Zoo": ("small", lambda: convert_rows(folder / "small")),
        }
        for title, (source, loop) in cases.items():
            loops, imports = [], []
            for turn in range(ROUNDS):
                start = process_time()
                expected = loop()
                middle = process_time()
                import_zoo(folder / source, folder / f"{source}-zoo{turn}")
                loops.append(middle - start)
                imports.append(process_time() - middle)
                assert ws.open(folder / f"{source}-zoo{turn}").weights().equal(expected)
            ratio = min(loops) / min(imports)
            print(f"{title:<36} loop {min(loops):6.2f} s   import {min(imports):6.2f} s   ratio {ratio:.1f}")


if __name__ == "__main__":
    main()
