"""Alignment: all networks at once against the published loop, one network at a time. python benchmarks/alignment.py

One core, about 5 s. Networks are independent initialisations, the hardest case for the search (most sweeps). The loop
is the coordinate descent of Git Re-Basin as the field runs it: a state dict a network, permuted tensors rebuilt for
each step. Prints networks a second of both (processor time of one thread, so that neighbours on the machine do not
count), their ratio and the mean objective <reference, aligned row> over the same networks.
"""

from time import process_time

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from weightspace.networks.layout import Layout
from weightspace.symmetry import PermutationGroup, align, chain_groups

POPULATION, LOOPED = 2000, 1000  # the loop's time a network does not depend on their number


def cnn_s() -> nn.Module:
    """CNN-s of the model zoos for grey images: 2464 parameters."""
    return nn.Sequential(
        *[nn.Conv2d(1, 8, 5), nn.MaxPool2d(2), nn.Tanh(), nn.Conv2d(8, 6, 5), nn.MaxPool2d(2), nn.Tanh()],
        *[nn.Conv2d(6, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 20), nn.Tanh(), nn.Linear(20, 10)],
    )


def digits_cnn() -> nn.Module:
    """A CNN for 8x8 digits: 994 parameters."""
    return nn.Sequential(
        *[nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()],
        nn.Linear(32, 10),
    )


State = dict[str, Tensor]


def published_matching(
    reference: State, state: State, groups: tuple[PermutationGroup, ...], generator: torch.Generator
) -> State:
    """Coordinate descent on one network; returns its permuted state dict."""
    axes = {(p.tensor, p.axis): (g.name, p.block) for g in groups for p in g.places}
    permutation = {g.name: torch.arange(g.size) for g in groups}

    def permuted(name: str, except_axis: int | None = None) -> Tensor:
        value = state[name]
        for axis in range(value.ndim):
            if axis != except_axis and (name, axis) in axes:
                group, block = axes[name, axis]
                index = (permutation[group][:, None] * block + torch.arange(block)).flatten()
                value = value.index_select(axis, index)
        return value

    for _ in range(100):
        progress = False
        for k in torch.randperm(len(groups), generator=generator).tolist():
            group = groups[k]
            gains = torch.zeros(group.size, group.size)
            for place in group.places:
                wanted, found = (
                    value.movedim(place.axis, 0).reshape(group.size, place.block, -1).flatten(1)
                    for value in (reference[place.tensor], permuted(place.tensor, except_axis=place.axis))
                )
                gains += wanted @ found.T
            solved = torch.from_numpy(linear_sum_assignment(gains.numpy(), maximize=True)[1])
            units = torch.arange(group.size)
            old, new = (gains[units, p].sum() for p in (permutation[group.name], solved))
            progress = progress or bool(new > old + 1e-12)
            permutation[group.name] = solved
        if not progress:
            break
    return {name: permuted(name) for name in state}


def main() -> None:
    """Time both on the same networks."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for build in (cnn_s, digits_cnn):
        layout = Layout.of(build())
        groups = chain_groups(layout)
        states = [build().state_dict() for _ in range(POPULATION)]
        rows = torch.stack([layout.flatten(state) for state in states])
        align(rows[:10], rows[0], layout, groups, torch.Generator())  # the first call loads libraries

        started = process_time()
        aligned = align(rows, rows[0], layout, groups, torch.Generator().manual_seed(0))
        ours = POPULATION / (process_time() - started)

        generator = torch.Generator().manual_seed(0)
        started = process_time()
        looped = [published_matching(states[0], state, groups, generator) for state in states[1 : LOOPED + 1]]
        theirs = LOOPED / (process_time() - started)

        some = slice(1, LOOPED + 1)
        reference = rows[0].double()
        raw, batched, loop = (
            float((values.double() @ reference).mean())
            for values in (rows[some], aligned[some], torch.stack([layout.flatten(state) for state in looped]))
        )
        print(
            f"{build.__name__:>10}, {layout.parameters} parameters: batched {ours:.0f} networks/s, loop {theirs:.0f} "
            f"networks/s, ratio {ours / theirs:.1f}; objective raw {raw:.4f}, batched {batched:.4f}, loop {loop:.4f}"
        )


if __name__ == "__main__":
    main()
