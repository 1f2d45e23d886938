"""Spaces to generate networks in: their rows, principal components of these, or the latents of an autoencoder.

A space turns a zoo into points of about unit size and points into rows. It is fitted on training networks only. In rows
and components, networks are aligned, and the running variances of batch normalisation are replaced by logarithms, so
that no point decodes to a negative one (p-diff, Wang et al., 2024):

    u = log(v / (0.95 mean) + 0.05)        back: max(e^u - 0.05, 0.001) · 0.95 mean

Axes: m network, p parameter, k component, t token, z latent.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float
from sklearn.decomposition import PCA
from torch import Tensor

from weightspace.encoders import Autoencoder, load_autoencoder
from weightspace.encoders.preparation import aligned_rows, training_reference
from weightspace.errors import ConfigError, LayoutError, WeightspaceError, unknown_name
from weightspace.networks import Layout
from weightspace.zoo import Zoo

Scale = Literal["tensor", "parameter"]
AUTOENCODER = "autoencoder"
"""Folder of the autoencoder, beside the files of a generator of latents."""
COMPONENTS = 128
"""Principal components where none are asked for."""
_FLOOR, _SHARE, _LEAST = 0.05, 0.95, 1e-3


@runtime_checkable
class Space(Protocol):
    """What a generator needs to know of a space."""

    @property
    def layout(self) -> Layout:
        """Of the networks."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one point."""
        ...

    def encode(self, zoo: Zoo) -> Float[Tensor, "m *d"]:
        """Points of networks."""
        ...

    def decode(self, points: Float[Tensor, "m *d"]) -> Float[Tensor, "m p"]:
        """Rows in the units of the weights."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Aligned rows, each parameter less its mean, over a deviation of each tensor or of each parameter.

    Parameters that are the same in all training networks become 0, and the constant again.
    """

    layout: Layout
    reference: Float[Tensor, " p"] | None
    """What networks are aligned to; `None` leaves them in their own order."""
    mean: Float[Tensor, " p"]
    std: Float[Tensor, " p"]
    """0 where nothing varies."""
    variance: Float[Tensor, " p"]
    """Mean running variances, 1 elsewhere."""

    @classmethod
    def fit(cls, train: Zoo, *, scale: Scale = "tensor", align: bool = True, seed: int = 0) -> "Rows":
        """Reference and statistics of training networks.

        Args:
            scale: One deviation a tensor, which keeps the sizes of its parameters to each other, or one a parameter.
            align: Align to the mean of the best training networks.
            seed: Order of the groups in alignment.

        Raises:
            LayoutError: The zoo mixes layouts, or its networks cannot be aligned.
            ZooError: A checkpoint has NaN weights, or there is none.

        >>> import polars as pl
        >>> layout, table = Layout.of(torch.nn.Linear(3, 2)), pl.DataFrame({"model": ["a", "b"], "step": [0, 0]})
        >>> zoo = Zoo.in_memory(torch.randn(2, 8), layout, table, {})
        >>> space = Rows.fit(zoo)
        >>> torch.allclose(space.decode(space.encode(zoo)), zoo.weights(), atol=1e-6)
        True
        """
        if scale not in get_args(Scale):
            raise unknown_name("scale", scale, get_args(Scale))
        if not len(train):
            raise ConfigError("a space is fitted on networks with finite weights, and this selection of a zoo has none")
        train.require_finite("fitting a space")
        layout = train.layout
        reference = training_reference(train, seed) if align else None
        rows = train.weights() if reference is None else aligned_rows(train, reference)
        positive = running_variances(layout)
        variance = torch.ones(layout.parameters)
        variance[positive] = rows[:, positive].mean(0).clamp(min=1e-12)
        values = torch.where(positive, _logarithm(rows, variance), rows).double()
        mean, spread = values.mean(0), values.var(0, correction=0)
        constant = values.amax(0) == values.amin(0)
        if scale == "tensor":
            for part in layout.slices.values():
                spread[part] = spread[part].mean()
        std = torch.where(constant, 0.0, spread.sqrt())
        return cls(layout=layout, reference=reference, mean=mean.float(), std=std.float(), variance=variance)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one point."""
        return (self.layout.parameters,)

    def encode(self, zoo: Zoo) -> Float[Tensor, "m p"]:
        """Points of networks.

        Raises:
            LayoutError: The networks have another layout.
            ZooError: One has NaN weights.
        """
        require_layout(zoo, self.layout)
        zoo.require_finite("encoding")
        return self.encode_rows(zoo.weights() if self.reference is None else aligned_rows(zoo, self.reference))

    def encode_rows(self, rows: Float[Tensor, "m p"]) -> Float[Tensor, "m p"]:
        """Points of rows that are aligned already."""
        values = torch.where(running_variances(self.layout), _logarithm(rows, self.variance), rows)
        return torch.where(self.std > 0, (values - self.mean) / self.std, 0.0)

    def decode(self, points: Float[Tensor, "m p"]) -> Float[Tensor, "m p"]:
        """Rows in the units of the weights."""
        values = points * self.std + self.mean
        positive = running_variances(self.layout)
        if not positive.any():
            return values
        return torch.where(positive, (values.exp() - _FLOOR).clamp(min=_LEAST) * _SHARE * self.variance, values)


@dataclass(frozen=True, kw_only=True)
class Components:
    """Scores on the first principal components of aligned rows."""

    rows: Rows
    components: Float[Tensor, "k p"]
    """Orthonormal, by falling variance."""
    mean: Float[Tensor, " p"]
    std: Float[Tensor, " k"]
    """What each score is divided by."""

    @classmethod
    def fit(
        cls, train: Zoo, k: int | None = None, *, whiten: bool = True, align: bool = True, seed: int = 0
    ) -> "Components":
        """Principal components of a training zoo.

        Args:
            k: Components, fewer than there are networks; 128 when missing, or as many as there are.
            whiten: Divide each score by its own deviation, or else all by that of the first one.
            align: As of `Rows.fit`.
            seed: Order of the groups in alignment.

        Raises:
            ConfigError: There are not so many components.
            LayoutError: As of `Rows.fit`.
            ZooError: A checkpoint has NaN weights, or there is none.
        """
        rows = Rows.fit(train, align=align, seed=seed)
        points = rows.encode(train)
        most = min(len(points) - 1, points.shape[1])
        k = min(COMPONENTS, most) if k is None else k
        if not 1 <= k <= most:
            raise ConfigError(
                f"{len(points)} networks of {points.shape[1]} parameters have 1 to {most} principal components, not {k}"
            )
        found = PCA(k, random_state=seed).fit(points.numpy())
        std = torch.from_numpy(found.explained_variance_).float().sqrt()
        std = std if whiten else std[:1].expand(k).contiguous()
        if not bool((std > 0).all()):
            raise ConfigError(f"only {int((std > 0).sum())} principal components vary, fewer than {k}: ask for fewer")
        components, mean = (torch.from_numpy(part).float() for part in (found.components_, found.mean_))
        return cls(rows=rows, components=components, mean=mean, std=std)

    @property
    def layout(self) -> Layout:
        """Of the networks."""
        return self.rows.layout

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one point."""
        return (len(self.components),)

    def encode(self, zoo: Zoo) -> Float[Tensor, "m k"]:
        """Points of networks."""
        return (self.rows.encode(zoo) - self.mean) @ self.components.T / self.std

    def decode(self, points: Float[Tensor, "m k"]) -> Float[Tensor, "m p"]:
        """Rows in the units of the weights."""
        return self.rows.decode(points * self.std @ self.components + self.mean)


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Latents of a fitted autoencoder, each with mean 0 and deviation 1 over the training networks."""

    autoencoder: Autoencoder
    mean: Float[Tensor, "t z"]
    std: Float[Tensor, "t z"]

    @classmethod
    def fit(cls, train: Zoo, autoencoder: Autoencoder) -> "Latents":
        """Statistics of the latents of a training zoo, the one that the autoencoder was fitted on.

        Raises:
            LayoutError: The networks have another layout than those of the autoencoder.
        """
        latents = autoencoder.latents(train)
        std = latents.std(0, correction=0)
        return cls(autoencoder=autoencoder, mean=latents.mean(0), std=torch.where(std > 0, std, 1.0))

    @property
    def layout(self) -> Layout:
        """Of the networks."""
        return self.autoencoder.preparation.layout

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one point."""
        return tuple(self.mean.shape)

    def encode(self, zoo: Zoo) -> Float[Tensor, "m t z"]:
        """Points of networks."""
        return (self.autoencoder.latents(zoo) - self.mean) / self.std

    def decode(self, points: Float[Tensor, "m t z"]) -> Float[Tensor, "m p"]:
        """Rows in the units of the weights."""
        return self.autoencoder.decode(points * self.std + self.mean)


def running_variances(layout: Layout) -> Bool[Tensor, " p"]:
    """Which parameters are running variances.

    >>> running_variances(Layout.of(torch.nn.BatchNorm1d(1))).tolist()
    [False, False, False, True]
    """
    found = torch.zeros(layout.parameters, dtype=torch.bool)
    for spec in layout.tensors:
        found[layout.slices[spec.name]] = spec.role == "running_var"
    return found


def require_layout(zoo: Zoo, layout: Layout) -> None:
    """Refuse networks of another layout.

    Raises:
        LayoutError: They have one.
    """
    if zoo.layout != layout:
        raise LayoutError(
            f"the zoo has {zoo.layout.parameters} parameters in layout {zoo.layout.digest}, the generator was fitted "
            f"on {layout.parameters} in {layout.digest}; choose a zoo of the same architecture"
        )


def _logarithm(rows: Float[Tensor, "m p"], variance: Float[Tensor, " p"]) -> Float[Tensor, "m p"]:
    return (rows.clamp(min=0) / (_SHARE * variance) + _FLOOR).log()


def space_to_files(space: Space, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `space_from_files` needs, as plain data and tensors; an autoencoder is saved into the folder.

    Raises:
        ConfigError: The space is of no known kind.
    """
    from weightspace.generators.token_space import Tokens  # here, as it is made of rows

    if isinstance(space, Rows):
        tensors = {name: getattr(space, name) for name in ("reference", "mean", "std", "variance")}
        content: dict[str, Any] = {"kind": "rows", "layout": space.layout.to_json()}
    elif isinstance(space, Components):
        tensors = {name: getattr(space, name) for name in ("components", "mean", "std")}
        rows, inner = space_to_files(space.rows, folder)
        tensors |= {f"rows.{name.removeprefix('space.')}": value for name, value in inner.items()}
        content = {"kind": "components", "rows": rows}
    elif isinstance(space, Tokens):
        rows, inner = space_to_files(space.rows, folder)
        return {"kind": "tokens", "size": space.size, "rows": rows}, inner
    elif isinstance(space, Latents):
        tensors = {"mean": space.mean, "std": space.std}
        space.autoencoder.save_pretrained(folder / AUTOENCODER)
        content = {"kind": "latents"}
    else:
        kind = type(space).__name__
        raise ConfigError(f"a space of kind {kind} cannot be saved, only rows, components, latents and tokens")
    return content, {f"space.{name}": value.contiguous() for name, value in tensors.items() if value is not None}


def space_from_files(content: Any, folder: Path, tensors: dict[str, Tensor]) -> Space:
    """The space that `space_to_files` described.

    Args:
        tensors: Of the whole generator; those of the space are taken out.

    Raises:
        WeightspaceError: Something is missing or of an unknown kind.
    """
    from weightspace.generators.token_space import Tokens  # here, as it is made of rows

    try:
        if content["kind"] == "tokens":
            rows = space_from_files(content["rows"], folder, tensors)
            return Tokens(rows=cast(Rows, rows), size=content["size"])
        own = {name.removeprefix("space."): tensors.pop(name) for name in list(tensors) if name.startswith("space.")}
        kind = content["kind"]
        if kind == "latents":
            return Latents(autoencoder=load_autoencoder(folder / AUTOENCODER), **own)
        if kind == "components":
            inner = {f"space.{name.removeprefix('rows.')}": own.pop(name) for name in list(own) if "rows." in name}
            rows = space_from_files(content["rows"], folder, inner)
            return Components(rows=cast(Rows, rows), **own)
        if kind == "rows":
            return Rows(layout=Layout.from_json(content["layout"]), reference=own.pop("reference", None), **own)
    except (KeyError, TypeError) as error:
        raise WeightspaceError(f"{folder} does not describe its space ({error}); fit the generator again") from error
    raise unknown_name("kind of space", str(kind), ("rows", "components", "latents", "tokens"))
