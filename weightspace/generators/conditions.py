"""Conditions: what is asked of a generated network, as numbers that a denoiser understands.

A conditioner is a module `[b, ...] -> [b, c]` that is trained with the denoiser; `TableConditioner` makes one of
columns of the zoo's table. Anything else that describes a network in a tensor, such as examples of the data set that it
was trained on, can be the input of another module.

Axes: b network, v column, c value of a condition.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.encoders.pretrained import structure
from weightspace.errors import ConfigError, ZooError, unknown_name

Asked = Mapping[str, object]
"""Column to the value that all networks should have, or to one value for each of them."""


@runtime_checkable
class Conditioner(Protocol):
    """A module that makes conditions, `[b, ...] -> [b, c]`, and knows where its inputs come from."""

    name: ClassVar[str]
    """Under which a saved one is found again, see `CONDITIONERS`."""

    @property
    def width(self) -> int:
        """Values in a condition, c."""
        ...

    def given(self, table: pl.DataFrame) -> Float[Tensor, "b ..."]:
        """Inputs for the networks of a zoo's table."""
        ...

    def asked(self, wanted: Any, n: int) -> Float[Tensor, "n ..."]:
        """Inputs for `n` networks that are to be made."""
        ...

    def __call__(self, given: Float[Tensor, "b ..."]) -> Float[Tensor, "b c"]:
        """Conditions; a NaN in one means that nothing is asked."""
        ...

    def to_json(self) -> dict[str, Any]:
        """What `from_json` needs to make the module again, without its weights."""
        ...

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Conditioner":
        """The module, to be filled with its weights."""
        ...


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a zoo's table in a condition: numbers are standardised, names are coded one-hot.

    >>> Column(name="config.init", values=("normal", "uniform")).width
    2
    """

    name: str
    values: tuple[str, ...] = ()
    """Names that occur, sorted; empty for numbers."""
    mean: float = 0.0
    std: float = 1.0

    @property
    def width(self) -> int:
        """Values in the condition."""
        return len(self.values) or 1

    @classmethod
    def of(cls, values: pl.Series) -> "Column":
        """What training networks say of a column: metrics, factors, or names such as layouts and architectures.

        Raises:
            ConfigError: Values are missing or not finite, or all the same.
        """
        if values.null_count() or (values.dtype.is_float() and not values.is_finite().all()):
            raise ConfigError(
                f"column {values.name!r} has missing values, so it cannot be a condition; select networks"
            )
        if values.n_unique() < 2:
            raise ConfigError(f"column {values.name!r} is the same for all networks, so nothing can be learned from it")
        if values.dtype.is_numeric():
            numbers = values.cast(pl.Float64).to_numpy()
            return cls(name=values.name, mean=float(numbers.mean()), std=float(numbers.std()))
        return cls(name=values.name, values=tuple(values.cast(pl.String).unique().sort()))

    def numbers(self, values: Sequence[object]) -> Float[Tensor, " b"]:
        """Numbers as they are; names as their place among `values`.

        Raises:
            ConfigError: A value is no number.
            UnknownName: No training network had such a name.
        """
        if not self.values:
            try:
                numbers = torch.tensor([float(value) for value in values])  # type: ignore[arg-type]
            except (TypeError, ValueError) as error:
                raise ConfigError(f"condition {self.name!r} must be numbers: {error}") from error
            if not bool(numbers.isfinite().all()):
                raise ConfigError(f"condition {self.name!r} must be finite numbers, got {list(values)[:3]}")
            return numbers
        known = {name: float(place) for place, name in enumerate(self.values)}
        words = [str(value).lower() if isinstance(value, bool) else str(value) for value in values]  # as polars writes
        for word in words:
            if word not in known:
                raise unknown_name(f"value of {self.name}", word, self.values)
        return torch.tensor([known[word] for word in words])


class TableConditioner(nn.Module):
    """Columns of a table as a condition; nothing in it is learned, and all of it is saved.

    >>> table = pl.DataFrame({"metric.loss": [1.0, 3.0], "config.init": ["uniform", "normal"]})
    >>> conditioner = TableConditioner.of(table, table.columns)
    >>> conditioner(conditioner.given(table))
    tensor([[-1.,  0.,  1.],
            [ 1.,  1.,  0.]])
    """

    name: ClassVar[str] = "table"

    def __init__(self, columns: Sequence[Column]):
        super().__init__()
        self.columns = tuple(columns)

    @classmethod
    def of(cls, table: pl.DataFrame, names: Sequence[str]) -> "TableConditioner":
        """Statistics of the columns of training networks.

        Raises:
            UnknownName: There is no such column.
            ConfigError: A column cannot be a condition.
        """
        for name in names:
            if name not in table.columns:
                raise unknown_name("column", name, table.columns)
        return cls([Column.of(table[name]) for name in names])

    @property
    def width(self) -> int:
        """Values in a condition."""
        return sum(column.width for column in self.columns)

    def given(self, table: pl.DataFrame) -> Float[Tensor, "b v"]:
        """The input of the module for the networks of a table.

        Raises:
            ZooError: A column is missing.
        """
        if missing := [column.name for column in self.columns if column.name not in table.columns]:
            raise ZooError(f"the condition needs the column {missing[0]!r}, which this zoo lacks")
        return torch.stack([column.numbers(table[column.name].to_list()) for column in self.columns], dim=1)

    def asked(self, wanted: Asked, n: int) -> Float[Tensor, "n v"]:
        """The input of the module for `n` networks that are asked for.

        Raises:
            UnknownName: The generator was not fitted with such a column, or never saw such a value.
            ConfigError: A column is left out, or there are not as many values as networks.

        >>> TableConditioner([Column(name="metric.loss")]).asked({"metric.loss": 0.5}, 2)
        tensor([[0.5000],
                [0.5000]])
        """
        values = self.values(wanted, n)
        return torch.stack([column.numbers(values[column.name]) for column in self.columns], dim=1)

    def values(self, wanted: Asked, n: int) -> dict[str, list]:
        """What is asked of each of `n` networks, by column; errors as of `asked`."""
        names = [column.name for column in self.columns]
        for name in wanted:
            if name not in names:
                raise unknown_name("condition", name, names)
        if missing := [name for name in names if name not in wanted]:
            raise ConfigError(f"the generator was fitted with the condition {missing[0]!r}: say what it should be")
        found: dict[str, list] = {}
        for name in names:
            value = wanted[name]
            if isinstance(value, Tensor | np.ndarray):
                value = value.tolist()
            found[name] = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * n
            if len(found[name]) != n:
                raise ConfigError(f"condition {name!r} has {len(found[name])} values for {n} networks")
        return found

    def forward(self, given: Float[Tensor, "b v"]) -> Float[Tensor, "b c"]:
        """Standardised numbers and one-hot names, side by side."""
        parts = []
        for column, values in zip(self.columns, given.unbind(1), strict=True):
            if column.values:
                parts.append(F.one_hot(values.long(), len(column.values)).to(given))
            else:
                parts.append(((values - column.mean) / column.std)[:, None])
        return torch.cat(parts, dim=1)

    def to_json(self) -> dict[str, Any]:
        """The columns, as plain data."""
        return {"columns": [asdict(column) for column in self.columns]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "TableConditioner":
        """The conditioner that `to_json` wrote.

        >>> table = pl.DataFrame({"metric.loss": [1.0, 3.0]})
        >>> conditioner = TableConditioner.of(table, table.columns)
        >>> TableConditioner.from_json(conditioner.to_json()).columns == conditioner.columns
        True
        """
        return cls([structure(column, Column) for column in data["columns"]])


CONDITIONERS: dict[str, type[Conditioner]] = {TableConditioner.name: TableConditioner}
"""Conditioners that saved generators may have, by name."""


def conditioner_to_json(conditioner: Conditioner) -> dict[str, Any]:
    """A conditioner without its weights, as plain data."""
    return {"kind": conditioner.name} | conditioner.to_json()


def conditioner_from_json(data: dict[str, Any]) -> Conditioner:
    """The conditioner that `conditioner_to_json` wrote, to be filled with its weights.

    Raises:
        UnknownName: There is none of this kind.
    """
    kind = str(data.get("kind"))
    if kind not in CONDITIONERS:
        raise unknown_name("conditioner", kind, CONDITIONERS)
    return CONDITIONERS[kind].from_json({name: value for name, value in data.items() if name != "kind"})
