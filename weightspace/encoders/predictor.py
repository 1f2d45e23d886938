"""Encoders that learn from targets: any weight encoder with a head, trained on columns of a zoo's table.

Targets may be several at once: shares such as accuracies by binary cross-entropy (Zhou et al., 2023; Andreis et al.,
2023), other numbers by squared error of standardised values, text and truth values by cross-entropy. The epoch with the
lowest validation loss is kept; test networks have no part in anything.

Axes: m network, o output, k class, d value of an embedding.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from huggingface_hub import ModelHubMixin
from jaxtyping import Float, Int64
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace import training
from weightspace.encoders.pretrained import (
    CARD,
    CONFIG,
    FORMAT,
    FORMAT_VERSION,
    MODEL,
    local_folder,
    provenance,
    read_config,
    structure,
)
from weightspace.encoders.weight_encoder import PredictorTraining, WeightEncoder
from weightspace.errors import ConfigError, WeightspaceError, unknown_name
from weightspace.views.architecture import Architecture, Networks, bundles, in_chunks
from weightspace.zoo import Zoo
from weightspace.zoo.writer import write_file

Batch = list[tuple[Networks, Tensor]]
"""Networks by architecture, and their targets `[m, t]` as `Target.read` gives them."""
DEFAULT_TARGETS = ("metric.test_accuracy",)
_ENCODED_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Target:
    """A column to predict, and the scale it is learned in.

    >>> table = pl.DataFrame({"metric.test_accuracy": [0.1, 0.9], "step": [0, 4]})
    >>> [Target.of(name, table).kind for name in table.columns]
    ['share', 'number']
    """

    column: str
    kind: Literal["share", "number", "class"]
    mean: float = 0.0
    std: float = 1.0
    """Of a number, over training networks."""
    log10: bool = False
    """Whether a number is learned by its logarithm."""
    classes: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """Outputs of the encoder for this target."""
        return len(self.classes) or 1

    @classmethod
    def of(cls, column: str, table: pl.DataFrame) -> "Target":
        """The target that a column of training networks makes.

        A `config.*` that is positive and spans more than a factor of 100 is learned by its logarithm.

        Raises:
            UnknownName: There is no such column.
            ConfigError: It has no values, or all are the same.
        """
        if column not in table.columns:
            raise unknown_name("target", column, table.columns)
        series = table[column].drop_nulls()
        if not series.dtype.is_numeric():
            names = tuple(series.cast(pl.String).unique().sort())
            if len(names) < 2:
                raise ConfigError(
                    f"target {column!r} has {len(names)} values among the training networks, 2 are needed"
                )
            return cls(column=column, kind="class", classes=names)
        log10 = column.startswith("config.") and _spans_orders(_numbers(series, log10=False))
        values = _numbers(series, log10)
        values = values[np.isfinite(values)]
        if not len(values) or values.min() == values.max():
            raise ConfigError(f"target {column!r} does not vary among the training networks; take another one")
        if not log10 and column.startswith("metric.") and values.min() >= 0 and values.max() <= 1:
            return cls(column=column, kind="share")
        return cls(column=column, kind="number", mean=float(values.mean()), std=float(values.std()), log10=log10)

    def read(self, table: pl.DataFrame) -> Float[Tensor, " m"]:
        """Values as they are learned: shares, standardised numbers, numbers of classes; NaN where there is none."""
        if self.kind == "class":
            number = {name: float(i) for i, name in enumerate(self.classes)}
            names = table[self.column].cast(pl.String).to_list()
            return torch.tensor([number.get(name, float("nan")) for name in names])
        values = _numbers(table[self.column], self.log10)
        scaled = values if self.kind == "share" else (values - self.mean) / self.std
        return torch.from_numpy(np.where(np.isfinite(scaled), scaled, np.nan)).float()

    def loss(self, outputs: Float[Tensor, "m o"], values: Float[Tensor, " m"]) -> Float[Tensor, ""]:
        """Mean loss of the networks that have a value; zero if none has."""
        known = values.isfinite()
        outputs, values = outputs[known], values[known]
        if not len(values):
            return outputs.sum()
        if self.kind == "class":
            return F.cross_entropy(outputs, values.long())
        if self.kind == "share":
            return F.binary_cross_entropy_with_logits(outputs[:, 0], values)
        return F.mse_loss(outputs[:, 0], values)

    def predicted(self, outputs: Float[Tensor, "m o"]) -> pl.Series:
        """What outputs say, in the units of the column."""
        if self.kind == "class":
            return pl.Series(self.column, [self.classes[i] for i in outputs.argmax(1).tolist()])
        values = outputs[:, 0].double()
        if self.kind == "share":
            return pl.Series(self.column, values.sigmoid().numpy())
        values = values * self.std + self.mean
        return pl.Series(self.column, (10**values if self.log10 else values).numpy())


class Predictor(ModelHubMixin, library_name="weightspace", model_card_template=CARD):
    """A trained weight encoder: embeds networks and predicts their targets. Made by `Predictor.fit` or `load`."""

    def __init__(
        self,
        module: WeightEncoder,
        config: Any,
        architectures: Sequence[Architecture],
        targets: Sequence[Target],
        header: dict,
    ):
        self.module = module
        self.config = config
        self.architectures = tuple(architectures)
        """Those of the training networks."""
        self.targets = tuple(targets)
        self.header = header
        """Header of the zoo that it was fitted on; with `fit`, how."""

    @classmethod
    def fit(
        cls,
        encoder: type[WeightEncoder],
        train: Zoo,
        *,
        validation: Zoo,
        targets: Sequence[str] = DEFAULT_TARGETS,
        config: Any = None,
        optimisation: PredictorTraining | None = None,
        folder: Path | None = None,
    ) -> "Predictor":
        """Train an encoder of networks on columns of the zoo's table.

        Args:
            encoder: Class of the method.
            validation: Networks that choose the epoch; of models that `train` does not have.
            targets: Columns; a `config.*` that is positive and spans more than a factor of 100 is learned in log10.
            config: Of `encoder.Config`; its defaults when missing.
            folder: Where it is saved, with its training log; a stopped training is continued there.

        Raises:
            ConfigError: A model is in both zoos, or a target has too few values.
            LayoutError: The method cannot read such networks.
            UnknownName: There is no such column.
            ZooError: A checkpoint has NaN weights.
        """
        config = encoder.Config() if config is None else config
        optimisation = optimisation or encoder.optimisation
        if shared := sorted(set(train.models) & set(validation.models)):
            raise ConfigError(f"model {shared[0]!r} is in the training and in the validation networks; split by model")
        for zoo in (train, validation):
            zoo.require_finite("training an encoder")
        chosen = [Target.of(name, train.table) for name in targets]
        sides = [_Side(zoo, chosen) for zoo in (train, validation)]
        architectures = [some.architecture for some in sides[0].bundles]
        # own streams: initial weights from torch's generator, restored afterwards; batches from the training's
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(optimisation.seed)
            module = encoder(config, architectures, sum(target.outputs for target in chosen))
            module.prepare(sides[0].bundles)
            spread = _spread(sides[0].bundles) if optimisation.noise else 0.0
            with tempfile.TemporaryDirectory() as temporary:
                history = training.train(
                    module,
                    lambda module, batch: _loss(module, batch, chosen, optimisation),
                    lambda generator: sides[0].shuffled(generator, optimisation, spread),
                    -(-len(train) // optimisation.batch_size),
                    lambda _: sides[1].batches(optimisation.batch_size),
                    optimisation,
                    folder or Path(temporary),
                    label=f"training {encoder.name}",
                    identity=repr((encoder.name, config, train.digest, validation.digest, chosen)),
                )
        fitted = cls(module, config, architectures, chosen, train.header | {"fit": {}})
        fitted.header["fit"] = provenance(optimisation, train, history)
        if folder is not None:
            fitted.save_pretrained(folder)
        return fitted

    @property
    def parameters(self) -> int:
        """Number of learned parameters."""
        return sum(p.numel() for p in self.module.parameters())

    def outputs(self, zoo: Zoo) -> Float[Tensor, "m o"]:
        """Outputs for every checkpoint, in table order: logits and standardised values.

        Raises:
            LayoutError: The method, or what it has learned, does not fit networks of this zoo.
        """
        return self._applied(zoo, self.module)

    def embed(self, zoo: Zoo) -> Float[Tensor, "m d"]:
        """Embeddings of every checkpoint, in table order.

        Raises:
            LayoutError: As in `outputs`.
        """
        return self._applied(zoo, self.module.encode)

    def predict(self, zoo: Zoo) -> pl.DataFrame:
        """Predicted targets of every checkpoint, in table order; a column a target, in its own units.

        Raises:
            LayoutError: As in `outputs`.
        """
        parts = self.outputs(zoo).split([target.outputs for target in self.targets], dim=1)
        return pl.DataFrame([target.predicted(part) for target, part in zip(self.targets, parts, strict=True)])

    def invariance_gap(self, zoo: Zoo, seed: int = 0) -> float:
        """Mean change of the outputs under random permutations of hidden units, in deviations of the outputs.

        Source: "SNE", section 5.
        """
        generator = torch.Generator().manual_seed(seed)
        changes, all_outputs = [], []
        for _, some in bundles(zoo):
            before = self._run(some, self.module)
            changes.append((self._run(some.permuted(generator), self.module) - before).abs())
            all_outputs.append(before)
        spread = torch.cat(all_outputs).std(0).clamp_min(1e-12)
        return float((torch.cat(changes).mean(0) / spread).mean())

    def _applied(self, zoo: Zoo, function: Any) -> Tensor:
        zoo.require_finite("encoding")
        parts = [(places, self._run(some, function)) for places, some in bundles(zoo)]
        if not parts:
            raise ConfigError(f"there is nothing to encode in {zoo!r}")
        places = torch.cat([place for place, _ in parts])
        return torch.cat([values for _, values in parts])[places.argsort()]

    def _run(self, some: Networks, function: Any) -> Tensor:
        self.module.eval()
        with torch.no_grad():
            return torch.cat([function(part) for part in in_chunks([some], _ENCODED_AT_ONCE)])

    # ---- files

    def _save_pretrained(self, save_directory: Path) -> None:
        content = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "method": self.module.name,
            "config": asdict(self.config),
            "architectures": [architecture.to_json() for architecture in self.architectures],
            "targets": [asdict(target) for target in self.targets],
            "header": self.header,
        }
        state = {name: value.contiguous() for name, value in self.module.state_dict().items()}
        write_file(save_directory / MODEL, save(state))
        write_file(save_directory / CONFIG, json.dumps(content, indent=1).encode())

    @classmethod
    def load(cls, folder: Path | str, encoder: type[WeightEncoder]) -> "Predictor":
        """The predictor in a folder, or in a repository of the Hugging Face Hub.

        Args:
            encoder: Class of its method.

        Raises:
            WeightspaceError: The folder is not there, damaged, of a newer version or of another method.
        """
        folder = local_folder(folder, [CONFIG, MODEL])
        content = read_config(folder)
        if content["method"] != encoder.name:
            raise ConfigError(f"{folder} holds a fitted {content['method']!r}, not {encoder.name!r}")
        if missing := [key for key in ("architectures", "targets") if key not in content]:
            raise WeightspaceError(f"{folder / CONFIG} lacks {missing[0]!r}; fit the encoder again")
        config = structure(content["config"], encoder.Config)
        targets = [structure(target, Target) for target in content["targets"]]
        architectures = [Architecture.from_json(architecture) for architecture in content["architectures"]]
        module = encoder(config, architectures, sum(target.outputs for target in targets))
        try:
            module.load_state_dict(load_file(folder / MODEL))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise WeightspaceError(f"cannot read the weights in {folder}: {error}; fit the encoder again") from error
        return cls(module, config, architectures, targets, content["header"])


class _Side:
    """Networks of one side of the split with their targets."""

    def __init__(self, zoo: Zoo, targets: Sequence[Target]):
        found = bundles(zoo)
        self.bundles = [some for _, some in found]
        values = torch.stack([target.read(zoo.table) for target in targets], dim=1)
        self.values = [values[places] for places, _ in found]
        self.owner = torch.cat([torch.full((len(some),), i) for i, some in enumerate(self.bundles)])
        self.place = torch.cat([torch.arange(len(some)) for some in self.bundles])

    def batches(self, size: int, order: Int64[Tensor, " m"] | None = None) -> Iterator[Batch]:
        order = torch.arange(len(self.owner)) if order is None else order
        for some in order.split(size):
            batch: Batch = []
            for owner in self.owner[some].unique().tolist():
                place = self.place[some[self.owner[some] == owner]]
                batch.append((self.bundles[owner][place], self.values[owner][place]))
            yield batch

    def shuffled(self, generator: torch.Generator, optimisation: PredictorTraining, spread: float) -> Iterable[Batch]:
        order = torch.randperm(len(self.owner), generator=generator)
        for batch in self.batches(optimisation.batch_size, order):
            changed: Batch = []
            for some, values in batch:
                rows = some.rows
                if optimisation.permute:
                    rows = some.architecture.permuted(rows, generator)
                if optimisation.noise:
                    rows = rows + optimisation.noise * spread * torch.randn(rows.shape, generator=generator)
                copies = Networks(rows, some.architecture, some.activations)
                changed.append((copies, values))
                if optimisation.invariance:
                    changed.append((copies.permuted(generator), values))
            yield changed


def _loss(
    module: nn.Module, batch: Batch, targets: Sequence[Target], optimisation: PredictorTraining
) -> dict[str, Tensor]:
    """Loss of a batch; in training with the regulariser each bundle is followed by its permuted copy."""
    outputs = [module(some) for some, _ in batch]
    if outputs[0].ndim == 3:  # an ensemble: each member has a loss of its own
        batch = [(some, values.repeat(len(outputs[0]), 1)) for some, values in batch]
        outputs = [part.flatten(0, 1) for part in outputs]
    paired = bool(optimisation.invariance) and module.training
    first = range(0, len(batch), 2 if paired else 1)
    together = torch.cat([outputs[i] for i in first])
    values = torch.cat([batch[i][1] for i in first])
    parts = together.split([target.outputs for target in targets], dim=1)
    losses = [target.loss(part, values[:, i]) for i, (target, part) in enumerate(zip(targets, parts, strict=True))]
    task = torch.stack(losses).mean()
    if not paired:
        return {"loss": task}
    gap = together - torch.cat([outputs[i + 1] for i in first])
    regulariser = gap.square().sum(1).mean() / 2
    return {"loss": task + optimisation.invariance * regulariser, "task": task, "invariance": regulariser}


def _numbers(series: pl.Series, log10: bool) -> np.ndarray:
    values = series.cast(pl.Float64).to_numpy()
    if not log10:
        return values
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log10(values)


def _spans_orders(values: np.ndarray) -> bool:
    return bool(len(values) and values.min() > 0 and values.max() > 100 * values.min())


def _spread(bundles: Sequence[Networks]) -> float:
    return float(torch.cat([some.rows.flatten() for some in bundles]).std())
