"""Simple ways to make networks, which every learned generator has to beat ("Evaluating generators", section 2).

All of them mix a zoo of trained networks, the prompts, which are left as they are; whether these are aligned is the
caller's choice. Weights of networks with different activations are never mixed: each new network belongs to one group
of prompts (those of one `config.activation`; a zoo without that column is one group), in proportion to its size.

Axes: n new network, m prompt, p parameter, g group, k prompt in an average.
"""

from dataclasses import dataclass

import polars as pl
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightspace import networks
from weightspace.errors import ConfigError, ZooError
from weightspace.zoo.store import Zoo
from weightspace.zoo.units import planned_rows

ACTIVATION, INIT, INIT_SCALE = "config.activation", "config.init", "config.init_scale"
INIT_STD = "config.init_std"


def noise(prompts: Zoo, n: int, generator: torch.Generator, *, sigma: float) -> Zoo:
    """Copies of prompts with Gaussian noise: w_i + σ s⊙ε, s the per-parameter deviation over the prompts of a group.

    Args:
        prompts: Trained networks, at least two of each activation.
        n: Networks to make; no prompt is copied twice before all were copied once.
        generator: Source of all randomness.
        sigma: Noise in standard deviations of the prompts.

    Returns:
        Networks `noise-000`, ..., in memory, with `config.sigma`.

    Raises:
        ConfigError: `n` is below 1, or sigma is negative.
        ZooError: An activation has a single prompt, or a prompt has NaN or infinite weights.

    >>> table = pl.DataFrame({"model": ["a", "b"], "step": [9, 9]})
    >>> zoo = Zoo.in_memory(torch.randn(2, 8), networks.Layout.of(torch.nn.Linear(3, 2)), table, {})
    >>> noise(zoo, 2, torch.Generator().manual_seed(0), sigma=0.1).models
    ['noise-000', 'noise-001']
    """
    if sigma < 0:
        raise ConfigError(f"sigma must be at least 0, got {sigma}")
    groups = _Groups.of(prompts, 2, "noise")
    first = groups.draw(n, generator)
    weights = prompts.weights()
    spread = groups.deviations(weights)[groups.number[first]]
    rows = weights[first] + sigma * spread * torch.randn(n, weights.shape[1], generator=generator)
    return _networks("noise", rows, prompts, first).with_columns(**{"config.sigma": float(sigma)})


def interpolation(prompts: Zoo, n: int, generator: torch.Generator) -> Zoo:
    """Points on the segments between two different prompts: λ w_i + (1 - λ) w_j, λ uniform in (0, 1).

    Args:
        prompts: Trained networks, at least two of each activation.
        n: Networks to make.
        generator: Source of all randomness.

    Returns:
        Networks `interpolation-000`, ..., in memory.

    Raises:
        ConfigError: `n` is below 1.
        ZooError: An activation has a single prompt, or a prompt has NaN or infinite weights.

    >>> table = pl.DataFrame({"model": ["a", "b"], "step": [9, 9]})
    >>> layout = networks.Layout.of(torch.nn.Linear(3, 2))
    >>> zoo = Zoo.in_memory(torch.tensor([[0.0], [1.0]]).expand(2, 8), layout, table, {})
    >>> interpolation(zoo, 1, torch.Generator()).weights().unique().shape
    torch.Size([1])
    """
    groups = _Groups.of(prompts, 2, "interpolation")
    first = groups.draw(n, generator)
    second = groups.others(first, generator)
    share = torch.rand(n, 1, generator=generator)
    weights = prompts.weights()
    return _networks("interpolation", share * weights[first] + (1 - share) * weights[second], prompts, first)


def average(prompts: Zoo, n: int, generator: torch.Generator, *, k: int | None) -> Zoo:
    """Means of `k` random distinct prompts of one activation (uniform soups).

    Args:
        prompts: Trained networks, at least `k` of each activation.
        n: Networks to make; at most one for each activation if `k` is `None`.
        generator: Source of all randomness.
        k: Prompts in each mean; `None` takes all of an activation, which leaves nothing to chance.

    Returns:
        Networks `average-000`, ..., in memory.

    Raises:
        ConfigError: `n` or `k` is below 1.
        ZooError: An activation has fewer than `k` prompts, or a prompt has NaN or infinite weights.

    >>> table = pl.DataFrame({"model": ["a", "b"], "step": [9, 9]})
    >>> layout = networks.Layout.of(torch.nn.Linear(3, 2))
    >>> zoo = Zoo.in_memory(torch.tensor([[0.0], [1.0]]).expand(2, 8), layout, table, {})
    >>> average(zoo, 5, torch.Generator(), k=None).weights()
    tensor([[0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000]])
    """
    if k is not None and k < 1:
        raise ConfigError(f"an average needs at least 1 prompt, got k = {k}")
    groups = _Groups.of(prompts, k or 1, "average")
    first = groups.draw(n, generator)
    weights = prompts.weights()
    if k is None:
        first = torch.tensor(list(dict(zip(groups.number[first].tolist(), first.tolist(), strict=True)).values()))
        return _networks("average", groups.means(weights)[groups.number[first]], prompts, first)
    keys = torch.rand(n, len(prompts), generator=generator)
    keys[groups.number[first][:, None] != groups.number] = 2.0  # never among the k smallest
    chosen = keys.topk(k, dim=1, largest=False).indices
    shares = torch.zeros_like(keys).scatter_(1, chosen, 1 / k)
    return _networks("average", shares @ weights, prompts, first)


def diagonal_gaussian(prompts: Zoo, n: int, generator: torch.Generator) -> Zoo:
    """Draws from a Gaussian with the mean and the per-parameter deviation of the prompts of an activation.

    Args:
        prompts: Trained networks, at least two of each activation.
        n: Networks to make.
        generator: Source of all randomness.

    Returns:
        Networks `gaussian-000`, ..., in memory.

    Raises:
        ConfigError: `n` is below 1.
        ZooError: An activation has a single prompt, or a prompt has NaN or infinite weights.

    >>> table = pl.DataFrame({"model": ["a", "b"], "step": [9, 9]})
    >>> zoo = Zoo.in_memory(torch.randn(2, 8), networks.Layout.of(torch.nn.Linear(3, 2)), table, {})
    >>> len(diagonal_gaussian(zoo, 20, torch.Generator()))
    20
    """
    groups = _Groups.of(prompts, 2, "diagonal_gaussian")
    first = groups.draw(n, generator)
    weights, group = prompts.weights(), groups.number[first]
    rows = groups.means(weights)[group]
    rows += groups.deviations(weights)[group] * torch.randn(rows.shape, generator=generator)
    return _networks("gaussian", rows, prompts, first)


def random_initialisation(template: Zoo, n: int, generator: torch.Generator) -> Zoo:
    """Untrained networks, initialised as those of a zoo: `config.init` and `config.init_scale` of random checkpoints.

    Args:
        template: Zoo whose settings are drawn; its weights are not read.
        n: Networks to make.
        generator: Draws settings and seeds.

    Returns:
        Networks `random-000`, ..., in memory, with the settings and seed of each as `config.*`.

    Raises:
        ConfigError: `n` is below 1.
        ZooError: The zoo does not tell its network or how it was initialised.

    >>> header = {"network": networks.to_json(networks.MLP())}
    >>> table = pl.DataFrame({"model": ["a"], "step": [9], INIT: ["kaiming_uniform"], INIT_SCALE: [0.5]})
    >>> zoo = Zoo.in_memory(torch.randn(1, 1060), networks.Layout.of(networks.MLP().build()), table, header)
    >>> random_initialisation(zoo, 2, torch.Generator()).models
    ['random-000', 'random-001']
    """
    if missing := [name for name in (INIT, INIT_SCALE) if name not in template.table.columns]:
        raise ZooError(
            f"random initialisation needs the column {missing[0]!r}, which zoo {template.header.get('name')!r} lacks: "
            "give the zoo as it was trained"
        )
    if "network" not in template.header:
        raise ZooError(f"the header of zoo {template.header.get('name')!r} does not tell which network it is made of")
    network = networks.from_json(template.header["network"])
    first = _Groups.of(template, 1, "random_initialisation", read=False).draw(n, generator)
    seeds = torch.randint(2**62, (n,), generator=generator)
    settings = template.table[first.tolist()]
    recipe = template.header.get("recipe") or {}
    rows = planned_rows(network, settings, seeds, bias=recipe.get("init_bias", 0.0))
    made = _networks("random", rows, template, first)
    known = [column for column in (INIT, INIT_SCALE, INIT_STD) if column in settings.columns]
    return made.with_columns(**{column: settings[column] for column in known}, **{"config.seed": seeds})


@dataclass(frozen=True)
class _Groups:
    """Prompts by activation: those of group g are `order[start[g] : start[g] + size[g]]`."""

    number: Int64[Tensor, " m"]
    order: Int64[Tensor, " m"]
    start: Int64[Tensor, " g"]
    size: Int64[Tensor, " g"]

    @classmethod
    def of(cls, prompts: Zoo, least: int, what: str, *, read: bool = True) -> "_Groups":
        if not len(prompts):
            raise ZooError(f"{what} needs networks to start from, but zoo {prompts.header.get('name')!r} is empty")
        if read:
            prompts.require_finite(what)
        names = prompts.table[ACTIVATION] if ACTIVATION in prompts.table.columns else pl.Series([""] * len(prompts))
        number = torch.tensor(names.rank("dense").to_list()) - 1
        size = number.bincount()
        if (size < least).any():
            few = int(size.argmin())
            kind = f" with activation {names.unique().sort()[few]!r}" if ACTIVATION in prompts.table.columns else ""
            raise ZooError(
                f"{what} needs at least {least} networks to mix, but zoo {prompts.header.get('name')!r} has "
                f"{int(size[few])}{kind}: give it more, or leave them out"
            )
        return cls(number, number.argsort(stable=True), size.cumsum(0) - size, size)

    def draw(self, n: int, generator: torch.Generator) -> Int64[Tensor, " n"]:
        """Random prompts, all as likely; groups in proportion (to one network), no prompt twice before all were once.

        Systematic sampling: every (m / n)-th of the prompts, shuffled within their groups, from a random start.
        """
        if n < 1:
            raise ConfigError(f"n must be at least 1 network, got {n}")
        count = len(self.number)
        shuffled = torch.randperm(count, generator=generator)
        shuffled = shuffled[self.number[shuffled].argsort(stable=True)]
        start = torch.rand(1, generator=generator, dtype=torch.float64)
        places = ((torch.arange(n) + start) * count / n).long().clamp(max=count - 1)
        return shuffled[places][torch.randperm(n, generator=generator)]

    def others(self, prompts: Int64[Tensor, " n"], generator: torch.Generator) -> Int64[Tensor, " n"]:
        """Another random prompt of the same group for each."""
        rank = torch.empty_like(self.order)
        rank[self.order] = torch.arange(len(self.order)) - self.start[self.number[self.order]]
        group = self.number[prompts]
        size = self.size[group]
        shift = 1 + (torch.rand(len(prompts), generator=generator, dtype=torch.float64) * (size - 1)).long()
        return self.order[self.start[group] + (rank[prompts] + shift) % size]

    def means(self, weights: Float[Tensor, "m p"]) -> Float[Tensor, "g p"]:
        """Mean of each group."""
        return torch.stack([weights[self.number == group].mean(0) for group in range(len(self.size))])

    def deviations(self, weights: Float[Tensor, "m p"]) -> Float[Tensor, "g p"]:
        """Standard deviation of each parameter over each group (divided by its size less one)."""
        return torch.stack([weights[self.number == group].std(0) for group in range(len(self.size))])


def _networks(name: str, rows: Float[Tensor, "n p"], prompts: Zoo, first: Int64[Tensor, " n"]) -> Zoo:
    """A zoo of new networks, each with the activation of a prompt."""
    columns = {"model": [f"{name}-{number:03d}" for number in range(len(rows))], "step": [0] * len(rows)}
    table = pl.DataFrame(columns)
    if ACTIVATION in prompts.table.columns:
        table = table.with_columns(prompts.table[ACTIVATION][first.tolist()])
    kept = {key: prompts.header[key] for key in ("network", "dataset") if key in prompts.header}
    return Zoo.in_memory(rows, prompts.layout, table, {"name": name} | kept)
