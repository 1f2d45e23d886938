"""Set-based neural network encoding (Andreis, Bedionita, Torr and Hwang, NeurIPS 2024), and an ordered variant of it.

Every tensor is cut into chunks. A chunk is a set of scalars, a tensor a set of chunks, a network a set of tensors; sets
become vectors by attention (Set Transformer, Lee et al., 2019). Codes of the kind of tensor and of the level of its
layer tell the sets apart. Networks of any architecture are read; order of hidden units is not built in, but learned by
the logit-invariance regulariser (`PredictorTraining.invariance`).

A chunk as a set cannot tell its scalars apart, nor a tensor its chunks: symmetries that networks do not have ("SNE",
section 9). `ChunkSet` reads the scalars of a chunk in order instead, by a perceptron; ten times cheaper, not published.

Axes: m network, q chunk, c value of a chunk, n element of a set, k element of another, h width, t tensor.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from weightspace.encoders.weight_encoder import PredictorTraining, ScalarScale, WeightEncoder, perceptron
from weightspace.errors import ConfigError
from weightspace.networks.layout import Layout, TensorSpec
from weightspace.views.architecture import Architecture, Networks
from weightspace.views.chunks import ChunkView, Granularity

TYPES = ("conv", "linear", "bias", "norm", "running", "other")
"""Kinds of tensors that have a code of their own."""
LEVELS = 32
"""Levels that a learned table has codes for; deeper layers share the last."""


@dataclass(frozen=True, kw_only=True)
class SNEConfig:
    """Sizes of SNE. The paper leaves most of them open; defaults are ours, for two cores.

    >>> SNEConfig(width=30)
    Traceback (most recent call last):
    weightspace.errors.ConfigError: width 30 must be a multiple of heads 4
    """

    width: int = 32
    """h, everywhere."""
    heads: int = 4
    chunk: int = 32
    """Scalars of a chunk."""
    granularity: Granularity = "tensor"
    """What is flattened and padded on its own, see `ChunkView`."""
    mask_padding: bool = True
    """Keep padding out of the sets; the paper mentions no mask."""
    level: Literal["sinusoidal", "learned"] = "sinusoidal"
    """Code of a layer's level; a learned table knows no deeper networks than it was trained on."""
    codes: bool = True
    """Codes of kind and level; without them tensors of one shape are exchangeable (ablation of the paper)."""
    inducing: int | None = None
    """Inducing points for tensors of more than `many` chunks: cost grows with the chunks, not with their square."""
    many: int = 512
    slice: int = 8192
    """Chunks that are in memory at once; where a batch has more, the backward pass computes them again."""

    def __post_init__(self):
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} must be a multiple of heads {self.heads}")
        for name in ("width", "heads", "chunk", "many", "slice"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


# --- set modules -------------------------------------------------------------------------------------------------


class MAB(nn.Module):
    """Multihead attention block: one set asks another; residual after the projected query, scores over the root of the
    whole width, as in the released Set Transformer.

    >>> MAB(1, 1, 8, heads=2)(torch.zeros(3, 5, 1), torch.zeros(3, 7, 1)).shape
    torch.Size([3, 5, 8])
    """

    def __init__(self, asking: int, asked: int, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(asking, width)
        self.key = nn.Linear(asked, width)
        self.value = nn.Linear(asked, width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "m n _"], y: Float[Tensor, "m k _"], real: Bool[Tensor, "m k"] | None = None
    ) -> Float[Tensor, "m n h"]:
        """Elements of `x` after asking `y`; elements of `y` that are not real are not seen."""
        query = self.query(x)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (query, self.key(y), self.value(y)))
        mask = None if real is None else real[:, None, None]
        scale = 1 / math.sqrt(query.shape[-1])
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        out = query + attended.transpose(1, 2).flatten(2)
        return out + F.relu(self.out(out))


class ScalarMAB(MAB):
    """`MAB` of a set of scalars with itself, at a quarter of the cost.

    Queries, keys and values are affine in the scalars, so that of all scores only (αx + β)y differs between elements
    of the set, and what attention gives back is an affine map of one mean scalar a head.

    >>> block = ScalarMAB(1, 1, 8, heads=2)
    >>> x = torch.randn(3, 5, 1)
    >>> torch.allclose(block(x, x), MAB.forward(block, x, x), atol=1e-6)
    True
    """

    def forward(
        self, x: Float[Tensor, "m n 1"], y: Float[Tensor, "m n 1"], real: Bool[Tensor, "m n"] | None = None
    ) -> Float[Tensor, "m n h"]:
        """As `MAB`, for `y` the same set as `x`."""
        split = (self.heads, -1)
        width = self.query.out_features
        key = self.key.weight.view(split)
        slope = (self.query.weight.view(split) * key).sum(1) / math.sqrt(width)
        offset = (self.query.bias.view(split) * key).sum(1) / math.sqrt(width)
        scalars = y[:, None].expand(-1, self.heads, -1, -1)
        asks = slope[:, None, None] * x[:, None] + offset[:, None, None]  # m r n 1
        mask = None if real is None else real[:, None, None]
        means = F.scaled_dot_product_attention(asks, scalars, scalars, attn_mask=mask, scale=1.0)
        spread = torch.block_diag(*self.value.weight.view(split)).T.reshape(width, self.heads)
        attended = F.linear(means[..., 0].transpose(1, 2), spread, self.value.bias)
        out = self.query(x) + attended
        return out + F.relu(self.out(out))


class SetToSet(nn.Module):
    """Two self-attention blocks: permutation-equivariant."""

    def __init__(self, inputs: int, width: int, heads: int):
        super().__init__()
        self.first = (ScalarMAB if inputs == 1 else MAB)(inputs, inputs, width, heads)
        self.second = MAB(width, width, width, heads)

    def forward(self, x: Float[Tensor, "m n _"], real: Bool[Tensor, "m n"] | None = None) -> Float[Tensor, "m n h"]:
        """The set, each element knowing the others."""
        x = self.first(x, x, real)
        return self.second(x, x, real)


class SetToVector(nn.Module):
    """Pooling by attention with one learned seed: permutation-invariant."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.seed = nn.Parameter(torch.empty(1, 1, width))
        nn.init.xavier_uniform_(self.seed)
        self.before = nn.Linear(width, width)
        self.attention = MAB(width, width, width, heads)

    def forward(self, x: Float[Tensor, "m n h"], real: Bool[Tensor, "m n"] | None = None) -> Float[Tensor, "m h"]:
        """One vector a set; one query needs no keys and values of the elements, only their weighted means."""
        asked, heads = F.relu(self.before(x)), self.attention.heads
        query = self.attention.query(self.seed[0])  # 1 h
        key = self.attention.key.weight.unflatten(0, (heads, -1))  # r h/r h; the bias shifts all scores alike
        asks = torch.einsum("ri,rih->rh", query.view(heads, -1), key) / math.sqrt(query.shape[1])
        scores = asked @ asks.T  # m n r
        if real is not None:
            scores = scores.masked_fill(~real[..., None], -math.inf)
        means = torch.einsum("mnr,mnh->mrh", scores.softmax(1), asked)
        value = self.attention.value.weight.unflatten(0, (heads, -1))
        out = query + torch.einsum("mrh,rih->mri", means, value).flatten(1) + self.attention.value.bias
        return out + F.relu(self.attention.out(out))


class InducedSetToSet(nn.Module):
    """Two self-attention blocks through a few learned points (ISAB): cost grows with the elements, not their square."""

    def __init__(self, width: int, heads: int, points: int):
        super().__init__()
        self.points = nn.ParameterList([nn.init.xavier_uniform_(torch.empty(1, points, width)) for _ in range(2)])
        self.asks = nn.ModuleList([MAB(width, width, width, heads) for _ in range(2)])
        self.answers = nn.ModuleList([MAB(width, width, width, heads) for _ in range(2)])

    def forward(self, x: Float[Tensor, "m n h"]) -> Float[Tensor, "m n h"]:
        """The set, each element knowing a summary of the others."""
        for points, ask, answer in zip(self.points, self.asks, self.answers, strict=True):
            x = answer(x, ask(points.expand(len(x), -1, -1), x))
        return x


class ScalarSet(nn.Module):
    """A chunk as a set of scalars: set to set, kind of tensor added, set to vector (steps a to c)."""

    def __init__(self, config: SNEConfig):
        super().__init__()
        self.to_set = SetToSet(1, config.width, config.heads)
        self.to_vector = SetToVector(config.width, config.heads)

    def forward(
        self, values: Float[Tensor, "q c f"], kind: Float[Tensor, "q h"], real: Bool[Tensor, "q c"] | None
    ) -> Float[Tensor, "q h"]:
        """One vector a chunk."""
        return self.to_vector(self.to_set(values, real) + kind[:, None], real)


class OrderedChunk(nn.Module):
    """A chunk as a vector: a perceptron that knows which scalar is which."""

    def __init__(self, config: SNEConfig):
        super().__init__()
        self.body = perceptron(config.chunk, config.width, config.width)

    def forward(
        self, values: Float[Tensor, "q c f"], kind: Float[Tensor, "q h"], real: Bool[Tensor, "q c"] | None
    ) -> Float[Tensor, "q h"]:
        """One vector a chunk."""
        return F.relu(self.body(values.flatten(1)) + kind)


# --- the encoder -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Plan:
    """What the encoder needs to know of one layout."""

    view: ChunkView
    kind: Int64[Tensor, " t"]
    """Number in `TYPES` of each tensor."""
    level: Int64[Tensor, " t"]
    """Level of each tensor's layer, 0 for the first; a bias has that of its weight."""
    owner: Int64[Tensor, " q"]
    """Tensor of each chunk."""
    alike: tuple[tuple[Tensor, Tensor], ...]
    """Tensors `[a]` of equally many chunks, and their chunks `[a, n]`: sets that need no padding."""


@lru_cache(maxsize=256)
def _plan(layout: Layout, size: int, granularity: Granularity) -> _Plan:
    view = ChunkView(layout, size, granularity)
    kinds, levels, layers = [], [], dict[str, int]()
    for spec in layout.tensors:
        kinds.append(TYPES.index(_kind(spec)))
        levels.append(layers.setdefault(spec.layer_name, len(layers)))
    counts = torch.tensor(view.counts)
    ends = counts.cumsum(0)
    alike = []
    for n in counts.unique().tolist():
        [tensors] = torch.where(counts == n)
        alike.append((tensors, (ends - counts)[tensors][:, None] + torch.arange(n)))
    owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return _Plan(view, torch.tensor(kinds), torch.tensor(levels), owner, tuple(alike))


def _kind(spec: TensorSpec) -> str:
    if spec.role.startswith("running"):
        return "running"
    return "bias" if spec.role == "bias" and spec.layer != "norm" else spec.layer


class SNE(WeightEncoder):
    """Set-based neural network encoder.

    >>> from weightspace.networks import MLP
    >>> some = Networks.of(torch.randn(4, 1210), Architecture.of(MLP(hidden=(16,))))
    >>> SNE(SNEConfig(), [some.architecture], outputs=1)(some).shape
    torch.Size([4, 1])
    """

    name = "sne"
    Config = SNEConfig
    optimisation = PredictorTraining(epochs=30, learning_rate=1e-3, gradient_norm=10.0, invariance=0.1)
    chunk_encoder: type[ScalarSet | OrderedChunk] = ScalarSet

    def __init__(self, config: SNEConfig, architectures: Sequence[Architecture], outputs: int):
        super().__init__(config, architectures, outputs)
        self.config, h, heads = config, config.width, config.heads
        self.scale = ScalarScale()
        self.types = nn.Embedding(len(TYPES), h)
        self.levels = nn.Embedding(LEVELS, h) if config.level == "learned" else None
        self.chunk = self.chunk_encoder(config)
        self.layer_set, self.layer_vector = SetToSet(h, h, heads), SetToVector(h, heads)
        self.large_layer_set = InducedSetToSet(h, heads, config.inducing) if config.inducing else None
        self.network_set, self.network_vector = SetToSet(h, h, heads), SetToVector(h, heads)
        self.head = perceptron(h, h, outputs)

    def prepare(self, training: Sequence[Networks]) -> None:
        """Keep mean and deviation of all weights."""
        self.scale.prepare(training)

    def codes(self, plan: _Plan) -> tuple[Float[Tensor, "t h"], Float[Tensor, "t h"]]:
        """Codes of kind and of level of each tensor; zero where the configuration has none."""
        kind = self.types(plan.kind.to(self.types.weight.device))
        if self.levels is None:
            level = sinusoids(plan.level, self.config.width).to(kind)
        else:
            level = self.levels(plan.level.clamp(max=LEVELS - 1).to(kind.device))
        return (kind, level) if self.config.codes else (kind * 0, level * 0)

    def chunk_codes(self, networks: Networks, plan: _Plan) -> Float[Tensor, "m q h"]:
        """One vector a chunk, with kind and level."""
        kind, level = self.codes(plan)
        chunks = plan.view.chunks(self.scale(networks.rows))
        mask = plan.view.mask.to(chunks.device)
        values = chunks.masked_fill(~mask, 0.0)[..., None]  # padding is zero on the standardised scale
        whole = mask.all(1) if self.config.mask_padding else torch.ones(len(mask), dtype=torch.bool)
        parts = []
        for [some] in (torch.where(whole), torch.where(~whole)):  # attention without a mask is quicker
            if len(some):
                real = None if bool(whole[some[0]]) else mask[some]
                parts.append(self._sliced(values[:, some], kind[plan.owner[some]], real))
        order = torch.cat([*torch.where(whole), *torch.where(~whole)]).argsort()
        return torch.cat(parts, dim=1)[:, order] + level[plan.owner]

    def _sliced(
        self, values: Float[Tensor, "m q c 1"], kind: Float[Tensor, "q h"], real: Bool[Tensor, "q c"] | None
    ) -> Float[Tensor, "m q h"]:
        """Vectors of chunks, few enough at once; where there are more, the backward pass computes them again."""
        count = len(values)
        flat, kinds = values.flatten(0, 1), kind.expand(count, -1, -1).flatten(0, 1)
        reals = None if real is None else real.expand(count, -1, -1).flatten(0, 1)
        again = len(flat) > self.config.slice and torch.is_grad_enabled()
        parts = []
        for start in range(0, len(flat), self.config.slice):
            part = slice(start, start + self.config.slice)
            inputs = flat[part], kinds[part], None if reals is None else reals[part]
            parts.append(checkpoint(self.chunk, *inputs, use_reentrant=False) if again else self.chunk(*inputs))
        return torch.cat(parts).unflatten(0, (count, -1))

    def layer_codes(self, networks: Networks) -> Float[Tensor, "m t h"]:
        """One vector a tensor (step e)."""
        plan = _plan(networks.architecture.layout, self.config.chunk, self.config.granularity)
        kind, level = self.codes(plan)
        chunks = self.chunk_codes(networks, plan)
        parts = []
        for tensors, places in plan.alike:
            sets = chunks[:, places].flatten(0, 1)
            large = self.large_layer_set is not None and sets.shape[1] > self.config.many
            known = self.large_layer_set(sets) if large and self.large_layer_set is not None else self.layer_set(sets)
            parts.append(self.layer_vector(known).unflatten(0, (-1, len(tensors))))
        order = torch.cat([tensors for tensors, _ in plan.alike]).argsort()
        return torch.cat(parts, dim=1)[:, order] + kind + level

    def encode(self, networks: Networks) -> Float[Tensor, "m h"]:
        """One vector a network (step f)."""
        return self.network_vector(self.network_set(self.layer_codes(networks)))


class ChunkSet(SNE):
    """SNE whose chunks are read in order.

    >>> ChunkSet.name
    'chunk-set'
    """

    name = "chunk-set"
    chunk_encoder = OrderedChunk


def sinusoids(level: Int64[Tensor, " t"], width: int) -> Float[Tensor, "t h"]:
    """Sines and cosines of a level at geometrically falling frequencies (Vaswani et al., 2017).

    >>> sinusoids(torch.tensor([0]), 4)
    tensor([[0., 0., 1., 1.]])
    """
    frequency = 10_000.0 ** (-torch.arange((width + 1) // 2) * 2 / width)
    angle = level[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :width]
