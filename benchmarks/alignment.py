"""Alignment: all networks at once against the published loop, one network at a time. python benchmarks/alignment.py

Two cores, about a minute. Networks are independent initialisations, the hardest case for the search (most sweeps). The
loop is the coordinate descent of Git Re-Basin as the field runs it: a state dict a network, permuted tensors rebuilt
for each step, in float64, until a sweep gains nothing. Prints networks a second of both, the better of several
alternating turns (other work on the machine can only slow a turn down), their ratio, and the mean objective
<reference, aligned row> over the same networks.

Then what the permuted view costs in a training step of SANE, in processor time of one thread: fresh permutations of all
hidden units of a batch of 32 networks, applied as one gather, against the whole step without them.
"""

from collections.abc import Callable, Sequence
from time import perf_counter, process_time

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from weightspace import networks
from weightspace.encoders.sane import SANEModule
from weightspace.encoders.sane_config import small
from weightspace.networks.layout import Layout
from weightspace.symmetry import (
    PermutationGroup,
    align,
    chain_groups,
    gather_index,
    random_permutations,
    symmetry_of,
)
from weightspace.views.tokens import TokenView

State = dict[str, Tensor]


def published_matching(
    reference: State, state: State, groups: Sequence[PermutationGroup], generator: torch.Generator
) -> State:
    """Coordinate descent on one network; returns its permuted state dict."""
    reference, state = ({name: value.double() for name, value in s.items()} for s in (reference, state))
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
            gains = torch.zeros(group.size, group.size, dtype=torch.float64)
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


def fastest(turns: int, *ways: Callable[[], object], clock: Callable[[], float] = perf_counter) -> list[float]:
    """Seconds of each way, its fastest turn."""
    seconds = []
    for _ in range(turns):
        for way in ways:
            started = clock()
            way()
            seconds.append(clock() - started)
    return [min(seconds[i :: len(ways)]) for i in range(len(ways))]


def compare(name: str, shape: tuple[int, int, int], *, population: int, looped: int, turns: int) -> str:
    """One line of the table: `looped` of the networks go through the loop, whose time does not depend on their number.

    With a population of 2, one is the reference.
    """
    network = networks.by_name(name, shape, 10)
    layout = Layout.of(network.build())
    groups = symmetry_of(network.build(), torch.zeros(1, *shape)).groups
    rows = torch.stack([layout.flatten(network.build().state_dict()) for _ in range(population)])
    states = [layout.unflatten(row) for row in rows]
    some = rows[1:] if population == 2 else rows
    results: dict[str, list] = {}
    threads = torch.get_num_threads()

    def batched() -> None:
        results["batched"] = [align(some, rows[0], layout, groups, torch.Generator().manual_seed(0))]

    def loop() -> None:
        torch.set_num_threads(threads if population == 2 else 1)  # on small tensors threads only wait for each other
        generator = torch.Generator().manual_seed(0)
        results["loop"] = [published_matching(states[0], s, groups, generator) for s in states[1 : looped + 1]]
        torch.set_num_threads(threads)

    ours, theirs = fastest(turns, batched, loop)
    ours, theirs = len(some) / ours, looped / theirs
    compared = slice(0 if population == 2 else 1, looped + (population != 2))
    aligned, reference = results["batched"][0][compared], rows[0].double()
    loops = torch.stack([layout.flatten(state) for state in results["loop"]])
    raw, ours_mean, theirs_mean = (
        float((values.double() @ reference).mean()) for values in (some[compared], aligned, loops)
    )
    return (
        f"{name:>8}, {layout.parameters} parameters: batched {ours:.4g} networks/s, loop {theirs:.4g} networks/s, "
        f"ratio {ours / theirs:.1f}; objective raw {raw:.4f}, batched {ours_mean:.4f}, loop {theirs_mean:.4f}"
    )


def augmentation(name: str, shape: tuple[int, int, int], *, batch: int = 32, turns: int = 5) -> str:
    """One line: a training step of SANE without permuted views, and the permutations of one."""
    layout = Layout.of(networks.by_name(name, shape, 10).build())
    groups, config = chain_groups(layout), small(layout)
    view, module = TokenView(layout, config.token_width), SANEModule(config)
    generator = torch.Generator().manual_seed(0)
    module.reset(generator)
    optimiser = torch.optim.AdamW(module.parameters())
    rows, tokens = torch.randn(batch, layout.parameters), torch.arange(min(config.window, view.count))

    def step() -> None:
        views = torch.stack([view.tokenise(rows, tokens), view.tokenise(rows, tokens)])
        views = views * (1 + config.noise * torch.randn(views.shape, generator=generator))
        loss = module(views, view.positions[tokens], view.mask[tokens])["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    def permute() -> Tensor:
        return rows.gather(1, gather_index(layout, groups, random_permutations(groups, batch, generator)))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    step(), permute()
    whole, part = fastest(turns, step, permute, clock=process_time)
    torch.set_num_threads(threads)
    return (
        f"{name:>8}, permuted view: step of SANE {whole * 1e3:.1f} ms, permutations {part * 1e3:.2f} ms, "
        f"{part / whole:.2%} of the step"
    )


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    print(compare("cnn", (1, 8, 8), population=2000, looped=500, turns=5))
    print(compare("cnn_s", (1, 28, 28), population=2000, looped=500, turns=5))
    print(compare("cnn_l", (3, 32, 32), population=1000, looped=200, turns=3))
    print(compare("resnet18", (3, 32, 32), population=2, looped=1, turns=2))
    print(augmentation("cnn", (1, 8, 8)))
    print(augmentation("cnn_s", (1, 28, 28)))
    print(augmentation("cnn_l", (3, 32, 32)))


if __name__ == "__main__":
    main()
