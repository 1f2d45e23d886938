"""The hypernetwork of "Manifold hypernetwork", section 3: a latent to codes, codes to units, units to a row.

    z ──extractor──> one code a unit ──weight generator of the layer──> incoming weights, bias (and norm) of the unit

A unit is a neuron or a filter (`units.py`). All units of a hidden layer share one weight generator: few parameters, and
permuted codes are permuted units. The units of the last layer are classes, so that one code makes the whole layer.

Axes: b latent (network), z latent scalar, c code, p parameter, n unit, u values of a unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightspace.errors import ConfigError, unknown_name
from weightspace.generators.chunks import Chunks
from weightspace.generators.perceptron import perceptron
from weightspace.generators.units import UnitLayer, unit_layers
from weightspace.symmetry import Symmetry

Share = Literal["unit", "layer", "chunk", "none"]
NORM_SCALE = 0.1
"""Deviation of the generated scales (about 1) and offsets (about 0) of batch normalisation, at the start."""


@dataclass(frozen=True, kw_only=True)
class HypernetworkConfig:
    """Sizes of the hypernetwork; the defaults are for networks of about a thousand parameters.

    >>> HypernetworkConfig(latent=0)
    Traceback (most recent call last):
    weightspace.errors.ConfigError: all sizes of a hypernetwork must be at least 1, got HypernetworkConfig(latent=0, ...
    """

    latent: int = 32
    """Values of z."""
    extractor: tuple[int, ...] = (64, 64)
    """Hidden widths of the extractor."""
    unit_code: int = 8
    """Values of the code of a unit."""
    layer_code: int = 16
    """Values of the code of a layer that is made as a whole."""
    generators: tuple[tuple[int, ...], ...] = ((32, 32),)
    """Hidden widths of the weight generators: those of each layer, or one entry for all layers. Empty: two of
    12 √u for a unit of u values."""
    share: Share = "unit"
    """`unit`: one weight generator a layer, shared by its units. `layer`: one that makes the layer as a whole.
    `chunk`: one of the first of `generators`' widths that makes pieces of the row, whatever they belong to, from z and
    an embedding of each piece. `none`: the extractor makes all weights itself."""
    chunk: int = 100
    """Values of a piece."""
    chunk_embedding: int = 8
    """Values of the embedding of a piece."""

    def __post_init__(self):
        if self.share not in get_args(Share):
            raise unknown_name("share", self.share, get_args(Share))
        sizes = (self.latent, self.unit_code, self.layer_code, self.chunk, self.chunk_embedding, *self.extractor)
        sizes += sum(self.generators, ())
        if min(sizes) < 1:
            raise ConfigError(f"all sizes of a hypernetwork must be at least 1, got {self}")


class Hypernetwork(nn.Module):
    """Latents to rows of a network.

    Batch normalisation stands behind the activation of hidden layers; in evaluation mode it uses running statistics, so
    that a network does not depend on those it is made with. No layer has a bias.

    >>> from weightspace.generators.gauge import symmetry_of_network
    >>> from weightspace.networks import MLP
    >>> module = Hypernetwork(symmetry_of_network(MLP()), HypernetworkConfig())
    >>> module(torch.zeros(2, 32)).shape
    torch.Size([2, 1060])
    """

    steps: Tensor
    places: Tensor
    scale: Tensor
    constant: Tensor

    def __init__(self, symmetry: Symmetry, config: HypernetworkConfig):
        super().__init__()
        self.config = config
        layers = unit_layers(symmetry)
        shapes = [tuple(layer.places.shape) for layer in layers]
        whole = [config.share == "layer" or not layer.alike for layer in layers]
        self.codes = [
            (1, config.layer_code) if one else (n, config.unit_code) for one, (n, _) in zip(whole, shapes, strict=True)
        ]
        """Number and size of the codes of each layer."""
        self.generators = nn.ModuleList()
        codes = values = sum(n * u for n, u in shapes)
        if config.share == "chunk":
            hidden = _widths(config, [(1, config.chunk)])[0]
            self.generators.append(
                Chunks(latent=config.latent, embedding=config.chunk_embedding, hidden=hidden, size=config.chunk,
                       values=values)
            )  # fmt: skip
        elif config.share != "none":
            codes = sum(count * size for count, size in self.codes)
            for (count, size), (n, u), widths in zip(self.codes, shapes, _widths(config, shapes), strict=True):
                self.generators.append(perceptron(size, widths, n * u // count))
        self.extractor = (
            nn.Identity() if config.share == "chunk" else perceptron(config.latent, config.extractor, codes)
        )

        places, scale, constant = _targets(symmetry, layers)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("constant", constant, persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # of training, for the schedule

    def reset(self, generator: torch.Generator) -> None:
        """Fresh weights: every value of a layer has deviation 1, so that generated weights have that of their gain."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1 / sqrt(module.in_features), generator=generator)
            elif isinstance(module, Chunks):
                module.reset(generator)

    def forward(self, latents: Float[Tensor, "b z"]) -> Float[Tensor, "b p"]:
        """Rows in layout order."""
        return self.rows_and_codes(latents)[0]

    def rows_and_codes(self, latents: Float[Tensor, "b z"]) -> tuple[Float[Tensor, "b p"], Float[Tensor, "b c"]]:
        """Rows, and the codes that they are made from."""
        if self.training:
            self.steps += 1
        codes = self.extractor(latents)
        return self.rows(codes), codes

    def rows(self, codes: Float[Tensor, "b c"]) -> Float[Tensor, "b p"]:
        """Rows from the codes of all units, one unit after the other; from latents if they are made in chunks."""
        if self.config.share == "none":
            values = codes
        elif self.config.share == "chunk":
            values = self.generators[0](codes)
        else:
            own = codes.split([count * size for count, size in self.codes], dim=1)
            parts = [
                make(some.reshape(-1, size)).reshape(len(codes), -1)  # b·n u, then b n·u
                for some, (_, size), make in zip(own, self.codes, self.generators, strict=True)
            ]
            values = torch.cat(parts, dim=1)
        values = torch.cat([values, values.new_zeros(len(values), 1)], dim=1)
        return values[:, self.places] * self.scale + self.constant


def _widths(config: HypernetworkConfig, shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Hidden widths of the weight generator of each layer."""
    if not config.generators:
        return [2 * (ceil(12 * sqrt(u)),) for _, u in shapes]
    widths = [*config.generators] * (len(shapes) if len(config.generators) == 1 else 1)
    if len(widths) != len(shapes):
        raise ConfigError(
            f"generators has {len(widths)} entries, the network {len(shapes)} layers: give one for all or one for each"
        )
    return widths


def _targets(symmetry: Symmetry, layers: Sequence[UnitLayer]) -> tuple[Tensor, Tensor, Tensor]:
    """For each parameter the value that makes it, and the factor and constant that give it its start."""
    layout = symmetry.layout
    # values come unit by unit; a zero behind them is for running statistics, which are not generated
    made = torch.cat([layer.places.flatten() for layer in layers])
    places = torch.full((layout.parameters,), len(made))
    places[made] = torch.arange(len(made))
    scale, constant = torch.zeros(layout.parameters), torch.zeros(layout.parameters)
    for layer in layers:
        scale[layer.places] = sqrt(layer.variance)
    for spec, place in zip(layout.tensors, layout.slices.values(), strict=True):
        if spec.layer == "norm":
            scale[place] = NORM_SCALE
            constant[place] = float(spec.role in ("weight", "running_var"))
    return places, scale, constant
