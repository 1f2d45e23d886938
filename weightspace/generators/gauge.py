"""Gauges of plain chains: one representative of all weights that are the same function up to trivial symmetries.

"Manifold hypernetwork", section 5. Without a gauge the diversity of weights grows for free, along directions in which
the function does not change:

* scale: with a positively homogeneous activation (ReLU, leaky ReLU) a unit's incoming weights and bias may be divided
  by s > 0 if its outgoing weights are multiplied by s; max-pooling and dropout do not mind. Representative: incoming
  weights and bias of root mean square 1 (equation 2).
* batch normalisation: incoming weights may be divided by s alone, and the bias before it does nothing. Representative:
  root mean square 1, bias 0; the norm's own scale and offset then take the part of the incoming weights above.
* softmax shift: the same constant on all logits. Representative: last bias and every column of the last weights have
  mean 0 over classes (equation 3).
* order: hidden units may be renumbered. Finite, so that it adds no dimension; representatives are optional.

Axes: m network, p parameter, n hidden unit, i incoming weights of a unit, k class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightspace.errors import LayoutError
from weightspace.networks import Layout, Network
from weightspace.symmetry import (
    PermutationGroup,
    Place,
    chain_groups,
    gather_index,
    random_permutations,
    weight_matching,
)

Order = Literal["none", "sort", "align"]
HOMOGENEOUS = ("relu", "leaky_relu")
RUNNING = ("running_mean", "running_var")
_LEAST = 1e-8  # added to a mean square, for units whose weights are all zero


@dataclass(frozen=True)
class ChainLayer:
    """The tensors that belong to the units of one layer, by name, and where the next layer reads them."""

    weight: str
    bias: str | None
    norm: dict[str, str]
    """Tensors of the batch normalisation behind the layer by role; empty without one."""
    following: Place | None
    """Input axis of the next layer; `None` for the last layer."""


def chain_layers(layout: Layout) -> tuple[ChainLayer, ...]:
    """The layers of a plain chain, in order.

    Raises:
        LayoutError: The network is not a plain chain, or its last layer is followed by a norm.

    >>> from weightspace.networks import MLP
    >>> [layer.weight for layer in chain_layers(Layout.of(MLP().build()))]
    ['fc1.weight', 'fc2.weight']
    """
    groups = chain_groups(layout)
    following = {group.places[0].tensor: group.places[-1] for group in groups}
    layers = []
    for matrix in (spec for spec in layout.tensors if spec.layer in ("linear", "conv") and spec.role == "weight"):
        own = [place.tensor for group in groups if group.places[0].tensor == matrix.name for place in group.places[1:]]
        specs = [layout.by_name[name] for name in own]
        biases = [s.name for s in layout.tensors if s.role == "bias" and s.layer_name == matrix.layer_name]
        layers.append(
            ChainLayer(
                matrix.name,
                biases[0] if biases else None,
                {spec.role: spec.name for spec in specs if spec.layer == "norm"},
                following.get(matrix.name),
            )
        )
    known = {name for layer in layers for name in (layer.weight, layer.bias, *layer.norm.values())}
    if unknown := [spec.name for spec in layout.tensors if spec.name not in known]:
        raise LayoutError(
            f"{unknown[0]!r} belongs to no hidden layer of a plain chain, so its units are not known; "
            "use a network whose norms follow hidden layers, one each"
        )
    return tuple(layers)


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """Which symmetries are fixed.

    >>> from weightspace.networks import MLP
    >>> rows = torch.randn(3, 1060)
    >>> gauge = Gauge.of(MLP())
    >>> torch.allclose(gauge.fixed(rows), gauge.fixed(gauge.equivalents(rows, torch.Generator())), atol=1e-4)
    False
    >>> gauge = Gauge.of(MLP(), order="sort")  # random equivalents are renumbered, too
    >>> torch.allclose(gauge.fixed(rows), gauge.fixed(gauge.equivalents(rows, torch.Generator())), atol=1e-4)
    True
    """

    layout: Layout
    layers: tuple[ChainLayer, ...]
    groups: Sequence[PermutationGroup]
    homogeneous: bool
    """Whether the activation commutes with positive factors."""
    scale: bool
    shift: bool
    order: Order

    @classmethod
    def of(cls, network: Network, *, scale: bool = True, shift: bool = True, order: Order = "none") -> "Gauge":
        """The gauge of a network.

        Args:
            scale: Fix the scale of hidden units, where their activation leaves it free.
            shift: Fix the mean over classes.
            order: `sort` orders hidden units by the sum of their absolute incoming weights, `align` by weight matching
                to the first row; in both the order counts as constant for gradients.

        Raises:
            LayoutError: The network is not a plain chain.
        """
        layout = Layout.of(network.build())
        return cls(
            layout=layout,
            layers=chain_layers(layout),
            groups=chain_groups(layout),
            homogeneous=getattr(network, "activation", None) in HOMOGENEOUS,
            scale=scale,
            shift=shift,
            order=order,
        )

    def fixed(self, rows: Float[Tensor, "m p"]) -> Float[Tensor, "m p"]:
        """The representatives: the same functions, up to the epsilon of batch normalisation."""
        state = self.layout.unflatten(rows)
        if self.scale:
            # the first layer first: a layer's incoming weights change with the scale of the units before it
            for layer in self.layers[:-1]:
                if layer.norm:
                    state = _unbiased(state, layer)
                    state = _divided_before_norm(state, layer, _size([state[layer.weight]]))
                    vectors = [state[layer.norm[role]][..., None] for role in ("weight", "bias")]
                    if self.homogeneous:
                        state = _divided_after_norm(state, layer, _size(vectors))
                elif self.homogeneous:
                    incoming = [state[layer.weight]] + ([state[layer.bias][..., None]] if layer.bias else [])
                    state = _divided(state, layer, _size(incoming))
        if self.shift:
            last = self.layers[-1]
            state |= {
                name: state[name] - state[name].mean(1, keepdim=True) for name in (last.weight, last.bias) if name
            }
        rows = self._flat(state)
        return rows if self.order == "none" or not self.groups else rows.gather(1, self._order(rows.detach()))

    def equivalents(self, rows: Float[Tensor, "m p"], generator: torch.Generator) -> Float[Tensor, "m p"]:
        """The same functions with other weights: random scales, shifts and orders, whichever the gauge fixes.

        Scales are log-normal with a deviation of 1/2, shifts normal.
        """
        state = self.layout.unflatten(rows)
        for layer in self.layers[:-1]:
            units = state[layer.weight].shape[:2]
            if layer.norm:
                state = _divided_before_norm(state, layer, (torch.randn(units, generator=generator) / 2).exp())
            if self.homogeneous:
                change = _divided_after_norm if layer.norm else _divided
                state = change(state, layer, (torch.randn(units, generator=generator) / 2).exp())
        last = self.layers[-1]
        for name in (last.weight, last.bias):
            if name:
                shape = (len(rows), 1, *state[name].shape[2:])
                state[name] = state[name] + torch.randn(shape, generator=generator)
        rows = self._flat(state)
        if not self.groups:
            return rows
        permutations = random_permutations(self.groups, len(rows), generator)
        return rows.gather(1, gather_index(self.layout, self.groups, permutations))

    def parameters(self) -> Int64[Tensor, " _"]:
        """Positions in a row of everything but running statistics, which follow from weights and data."""
        kept = [place for spec, place in zip(self.layout.tensors, self.layout.slices.values(), strict=True)
                if spec.role not in RUNNING]  # fmt: skip
        return torch.cat([torch.arange(place.start, place.stop) for place in kept])

    def _order(self, rows: Float[Tensor, "m p"]) -> Int64[Tensor, "m p"]:
        if self.order == "align":
            orders = torch.Generator().manual_seed(0)  # in which groups are visited; one hidden layer has one order
            permutations = weight_matching(rows, rows[0], self.layout, self.groups, generator=orders)
        else:  # a sum does not change with the order of the inputs, so that all layers are sorted at once
            state = self.layout.unflatten(rows)
            permutations = [state[layer.weight].flatten(2).abs().sum(2).argsort(1) for layer in self.layers[:-1]]
        return gather_index(self.layout, self.groups, permutations)

    def _flat(self, state: dict[str, Tensor]) -> Float[Tensor, "m p"]:
        return torch.cat([state[spec.name].flatten(1) for spec in self.layout.tensors], dim=1)


State = dict[str, Tensor]


def _size(parts: Sequence[Tensor]) -> Float[Tensor, "m n"]:
    """Root mean square of what belongs to each unit: tensors `[m, n, ...]`."""
    flat = torch.cat([part.flatten(2) for part in parts], dim=2)
    return (flat.square().mean(2) + _LEAST).sqrt()


def _by_unit(factor: Float[Tensor, "m n"], tensor: Tensor) -> Tensor:
    """A factor an output unit, shaped to multiply a tensor `[m, n, ...]`."""
    return factor.unflatten(1, (-1, *[1] * (tensor.ndim - 2)))


def _divided(state: State, layer: ChainLayer, s: Float[Tensor, "m n"]) -> State:
    """Incoming weights and biases by s, outgoing ones by 1/s."""
    changed = {name: state[name] / _by_unit(s, state[name]) for name in (layer.weight, layer.bias) if name}
    return state | changed | _outgoing(state, layer, s)


def _divided_before_norm(state: State, layer: ChainLayer, s: Float[Tensor, "m n"]) -> State:
    """Incoming weights and biases by s, which the norm undoes."""
    changed = {name: state[name] / _by_unit(s, state[name]) for name in (layer.weight, layer.bias) if name}
    mean, variance = layer.norm["running_mean"], layer.norm["running_var"]
    return state | changed | {mean: state[mean] / s, variance: state[variance] / s.square()}


def _divided_after_norm(state: State, layer: ChainLayer, s: Float[Tensor, "m n"]) -> State:
    """Scale and offset of the norm by s, outgoing weights by 1/s."""
    changed = {layer.norm[role]: state[layer.norm[role]] / s for role in ("weight", "bias")}
    return state | changed | _outgoing(state, layer, s)


def _unbiased(state: State, layer: ChainLayer) -> State:
    """Without the bias that the norm takes away again."""
    if layer.bias is None:
        return state
    bias, mean = state[layer.bias], layer.norm["running_mean"]
    return state | {layer.bias: torch.zeros_like(bias), mean: state[mean] - bias}


def _outgoing(state: State, layer: ChainLayer, s: Float[Tensor, "m n"]) -> State:
    """Next layer's weights times s along its inputs; behind a flatten a unit has a block of them."""
    assert layer.following is not None, "hidden layers have a next one"
    weight = state[layer.following.tensor]
    factors = s.repeat_interleave(layer.following.block, dim=1)
    return {layer.following.tensor: weight * factors[(slice(None), None, ..., *[None] * (weight.ndim - 3))]}
