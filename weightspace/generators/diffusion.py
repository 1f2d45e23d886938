"""Diffusion and flow generators of networks: a process, a denoiser and a space, fitted to a zoo.

    networks → space (rows, principal components, latents) → noise and back (DDPM, DDIM, flow matching) → networks

Conditions are what is asked of a network: metrics, factors, architecture, or whatever a conditioner reads. Sources: Ho
et al. (2020), Lipman et al. (2023) and, for weights, p-diff (Wang et al., 2024), G.pt (Peebles et al., 2022) and D2NWG
(Soro et al., 2025); "Diffusion generators", sections 0, 5 and 6.

Axes: m network, n network drawn, d value of a point, c condition.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import cattrs
import polars as pl
import torch
from cattrs.strategies import configure_tagged_union
from huggingface_hub import ModelHubMixin
from jaxtyping import Bool, Float
from safetensors.torch import save
from torch import Tensor, nn

from weightspace import training
from weightspace.encoders.pretrained import local_folder, provenance
from weightspace.errors import ConfigError
from weightspace.generators import pretrained
from weightspace.generators.anchored import AnchoredDenoiser
from weightspace.generators.conditions import (
    Conditioner,
    TableConditioner,
    conditioner_from_json,
    conditioner_to_json,
)
from weightspace.generators.denoisers import Denoisers, MLPDenoiser
from weightspace.generators.denoising import Flow, Noised, Process, denoising_loss, guided
from weightspace.generators.moving_average import Averaged
from weightspace.generators.pretrained import CARD, CONFIG, FORMAT, FORMAT_VERSION, MODEL
from weightspace.generators.rpg import RecurrentDenoiser, TokenDenoiser
from weightspace.generators.spaces import AUTOENCODER, Rows, Space, space_from_files, space_to_files
from weightspace.generators.token_space import Tokens
from weightspace.training import TrainingConfig
from weightspace.zoo import Zoo
from weightspace.zoo.writer import write_file

FEW_RUNS = 200
"""Independent training runs below which averages and copies are to be expected."""
ACTIVATION = "config.activation"
VALIDATION_DRAWS = 4
"""Noise levels at which each validation network is judged in an epoch."""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """A process, a denoiser, and how the denoiser is trained.

    >>> DiffusionConfig(dropped=1.5)
    Traceback (most recent call last):
    weightspace.errors.ConfigError: dropped must lie in [0, 1), got 1.5
    """

    process: Process = field(default_factory=Flow)
    denoiser: Denoisers | RecurrentDenoiser | AnchoredDenoiser = field(default_factory=MLPDenoiser)
    average: float = 0.995
    """Share of itself that the moving average of weights keeps in a step; the average is what samples."""
    dropped: float = 0.1
    """Share of conditions that are withheld in training, so that guidance has something to start from."""
    epoch_steps: int = 100
    """Steps from one validation to the next."""

    def __post_init__(self):
        for name in ("average", "dropped"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if isinstance(self.denoiser, AnchoredDenoiser) and getattr(self.process, "target", "") != "data":
            raise ConfigError("an anchored denoiser predicts data: give a process with target data")
        if self.epoch_steps < 1:
            raise ConfigError(f"epoch_steps must be at least 1, got {self.epoch_steps}")


@dataclass(frozen=True, kw_only=True)
class DiffusionTraining(TrainingConfig):
    """How a denoiser is trained: defaults of 3000 steps.

    >>> DiffusionTraining().batch_size
    128
    """

    epochs: int = 30
    batch_size: int = 128
    """Networks in a step, drawn anew with a noise level of their own."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: float = 0.1


class ConditionedDenoiser(nn.Module):
    """A denoiser with the conditioner that is trained with it."""

    def __init__(self, denoiser: nn.Module, conditioner: Conditioner | None):
        super().__init__()
        self.denoiser = denoiser
        self.conditioner = cast(nn.Module | None, conditioner)  # every conditioner is a module

    def condition(self, given: Tensor | None) -> Float[Tensor, "b c"] | None:
        """What the denoiser is told, of what is given to the conditioner."""
        return None if given is None or self.conditioner is None else self.conditioner(given)

    def forward(
        self,
        noisy: Float[Tensor, "b *d"],
        time: Float[Tensor, " b"],
        given: Tensor | None = None,
        kept: Bool[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b *d"]:
        """The prediction; conditions that are not kept are withheld from the denoiser."""
        condition = self.condition(given)
        if condition is not None and kept is not None:
            condition = torch.where(kept[:, None], condition, torch.nan)
        return self.denoiser(noisy, time, condition)


class Diffusion(ModelHubMixin, library_name="weightspace", model_card_template=CARD):
    """A fitted diffusion or flow: draws networks, also under conditions.

    Made by `Diffusion.fit` or `Diffusion.from_pretrained`.
    """

    name = "diffusion"

    def __init__(self, space: Space, config: DiffusionConfig, header: dict, conditioner: Conditioner | None = None):
        self.space, self.config, self.conditioner = space, config, conditioner
        self.header: dict = json.loads(json.dumps(header))  # as a file gives it back
        """Header of the zoo that it was fitted on; with `fit`, how."""
        width = None if conditioner is None else conditioner.width
        self.denoiser = config.denoiser.build(space.shape, width)
        self.module = ConditionedDenoiser(self.denoiser, conditioner)

    @classmethod
    def fit(
        cls,
        train: Zoo,
        *,
        validation: Zoo,
        space: Space | None = None,
        condition: Sequence[str] | Conditioner = (),
        config: DiffusionConfig | None = None,
        optimisation: TrainingConfig = DiffusionTraining(),
        folder: Path | str | None = None,
    ) -> "Diffusion":
        """Train a denoiser on the networks of a zoo.

        Args:
            train: Networks of one layout: the last checkpoints of independent runs, unless the condition tells others
                apart.
            validation: Networks of other runs; their loss chooses the epoch that is kept.
            space: Where to diffuse, fitted on `train`; aligned rows when missing.
            condition: Columns of the zoo's table, or a conditioner that is trained with the denoiser.
            optimisation: An epoch has `config.epoch_steps` steps.
            folder: Where everything is saved; an interrupted training continues there.

        Raises:
            ConfigError: A condition is not known of all networks, or networks have several activations and the
                condition does not tell them apart.
            LayoutError: The networks have another layout than the space.
            ZooError: A checkpoint has NaN weights.

        >>> from weightspace.networks import Layout
        >>> layout = Layout.of(nn.Linear(3, 2))
        >>> def zoo(*names):
        ...     table = pl.DataFrame({"model": names, "step": [0] * len(names)})
        ...     return Zoo.in_memory(torch.randn(len(names), 8), layout, table, {})
        >>> short = TrainingConfig(epochs=1, batch_size=4, accelerator="cpu")
        >>> config = DiffusionConfig(denoiser=MLPDenoiser(width=8), epoch_steps=2)
        >>> fitted = Diffusion.fit(zoo("a", "b"), validation=zoo("c"), config=config, optimisation=short)
        >>> fitted.sample(3, seed=0).models
        ['generated-0000', 'generated-0001', 'generated-0002']
        """
        config, space = config or DiffusionConfig(), space or Rows.fit(train)
        conditioner: Conditioner | None = None
        if isinstance(condition, Conditioner):
            conditioner = condition
        elif condition:
            conditioner = TableConditioner.of(train.table, condition)
        _check_activations(train, conditioner)
        fitted = cls(space, config, train.header | {"activations": _activations(train)}, conditioner)
        generator = torch.Generator().manual_seed(optimisation.seed)
        fitted.denoiser.reset(generator)
        points, held_out = space.encode(train), space.encode(validation)
        given = None if conditioner is None else conditioner.given(train.table)
        held_given = None if conditioner is None else conditioner.given(validation.table)
        real = space.real if isinstance(space, Tokens) else None

        def batches(generator: torch.Generator) -> Iterator[tuple[Any, ...]]:
            for _ in range(config.epoch_steps):
                chosen = torch.randint(len(points), (optimisation.batch_size,), generator=generator)
                noised = config.process.noised(points[chosen], generator)
                kept = torch.rand(len(chosen), generator=generator) >= config.dropped
                yield *noised, None if given is None else given[chosen], kept

        def in_order(generator: torch.Generator) -> Iterator[tuple[Any, ...]]:
            for _ in range(VALIDATION_DRAWS):
                noised = config.process.noised(held_out, generator)
                yield *noised, held_given, torch.ones(len(held_out), dtype=torch.bool)

        def loss(module: nn.Module, batch: tuple[Any, ...]) -> dict[str, Tensor]:
            noisy, time, target, given, kept = batch
            noised = Noised(noisy, time, target)
            return {"loss": denoising_loss(lambda *point: module(*point[:2], given, kept), noised, real=real)}

        module = Averaged(fitted.module, config.average)
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(folder or scratch)
            history = training.train(
                module, loss, batches, config.epoch_steps, in_order, optimisation, target,
                label="training the denoiser", identity=repr((config, space.shape, train.digest, validation.digest)),
            )  # fmt: skip
            fitted.module.load_state_dict(module.average.state_dict())
            fitted.module.eval()
            fitted.header |= {"fit": provenance(optimisation, train, history) | {"runs": len(train.models)}}
            if folder is not None:
                fitted.save_pretrained(target)
        return fitted

    @property
    def warnings(self) -> list[str]:
        """What a user should know before using the samples."""
        runs = self.header.get("fit", {}).get("runs", FEW_RUNS)
        if runs >= FEW_RUNS:
            return []
        return [
            f"fitted on {runs} independent runs: below about {FEW_RUNS}, samples are averages or copies of them; "
            "evaluate their novelty"
        ]

    def points(
        self,
        n: int,
        *,
        condition: Any = None,
        steps: int | None = None,
        guidance: float = 1.0,
        generator: torch.Generator,
    ) -> Float[Tensor, "n *d"]:
        """Draw points of the space; arguments as of `sample`."""
        if n < 1:
            raise ConfigError(f"the number of networks to draw must be at least 1, got {n}")
        self.module.eval()
        told = None
        if condition is not None:
            if self.conditioner is None:
                raise ConfigError("this generator was fitted without a condition, so nothing can be asked of it")
            with torch.no_grad():
                told = self.module.condition(self.conditioner.asked(condition, n))
        predict = guided(self.denoiser, told, guidance)
        return self.config.process.sample(predict, (n, *self.space.shape), generator, steps=steps)

    def sample(
        self,
        n: int,
        *,
        condition: Any = None,
        steps: int | None = None,
        guidance: float = 1.0,
        seed: int = 0,
    ) -> Zoo:
        """Draw networks.

        Args:
            condition: Column to a value, or to one for each network; `None` asks for nothing, as in training where
                conditions were withheld. For another conditioner: whatever its `asked` takes.
            steps: Of the sampler; `config.process.sampling_steps` when missing.
            guidance: How far to go towards the condition: 1 as learned, more beyond.

        Returns:
            A zoo in memory, with columns `asked.*` of the condition.

        Raises:
            ConfigError: n or steps are impossible, a condition is incomplete, or there is guidance without one.
            UnknownName: The generator was not fitted with such a condition.
        """
        activations = self.header.get("activations", [])
        if len(activations) > 1 and condition is None:
            raise ConfigError(
                f"networks of {', '.join(activations)} would come mixed, and nobody could tell them apart: ask for one "
                f"with the condition {ACTIVATION!r}"
            )
        generator = torch.Generator().manual_seed(seed)
        points = self.points(n, condition=condition, steps=steps, guidance=guidance, generator=generator)
        with torch.no_grad():
            rows = self.space.decode(points)
        columns: dict[str, Any] = {"model": [f"generated-{i:04d}" for i in range(n)], "step": [0] * n}
        if len(activations) == 1:
            columns[ACTIVATION] = activations * n
        if isinstance(self.conditioner, TableConditioner) and condition is not None:
            columns |= {f"asked.{name}": values for name, values in self.conditioner.values(condition, n).items()}
            if f"asked.{ACTIVATION}" in columns:
                columns[ACTIVATION] = columns[f"asked.{ACTIVATION}"]
        return Zoo.in_memory(rows, self.space.layout, pl.DataFrame(columns), self.header | {"name": self.name})

    def _save_pretrained(self, save_directory: Path) -> None:
        space, tensors = space_to_files(self.space, save_directory)
        content = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "method": self.name,
            "config": _converter.unstructure(self.config),
            "space": space,
            "conditioner": None if self.conditioner is None else conditioner_to_json(self.conditioner),
            "header": self.header,
        }
        tensors |= {f"module.{name}": value.contiguous() for name, value in self.module.state_dict().items()}
        write_file(save_directory / MODEL, save(tensors))
        write_file(save_directory / CONFIG, json.dumps(content, indent=1).encode())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "Diffusion":
        """The generator in a folder, or in a repository on the Hugging Face Hub.

        Args:
            options: For the Hub: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

        Raises:
            WeightspaceError: There is no such folder or repository, or it is damaged or of another method.
        """
        folder = local_folder(pretrained_model_name_or_path, [CONFIG, MODEL, f"{AUTOENCODER}/*"], **options)
        content = pretrained.read_config(folder / CONFIG, cls.name)
        tensors = pretrained.read_tensors(folder)
        config = structured(content["config"], DiffusionConfig)
        space = space_from_files(content.get("space"), folder, tensors)
        conditioner = None if content.get("conditioner") is None else conditioner_from_json(content["conditioner"])
        fitted = cls(space, config, content["header"], conditioner)
        pretrained.fill(fitted.module, tensors, folder)
        return fitted


def structured(data: dict, kind: type) -> Any:
    """A configuration from plain data, with the parts that are one of several kinds; strict.

    Raises:
        ConfigError: A key is unknown, missing or has a wrong type.

    >>> structured(_converter.unstructure(DiffusionConfig()), DiffusionConfig) == DiffusionConfig()
    True
    """
    try:
        return _converter.structure(data, kind)
    except (cattrs.BaseValidationError, KeyError, TypeError, ValueError) as error:
        reason = "; ".join(cattrs.transform_error(error))
        raise ConfigError(f"this is not a stored {kind.__name__}: {reason}") from error


_converter = cattrs.Converter(forbid_extra_keys=True)
for _kinds in (Process, TokenDenoiser, Denoisers | RecurrentDenoiser | AnchoredDenoiser):
    configure_tagged_union(_kinds, _converter, tag_name="kind")


def _activations(zoo: Zoo) -> list[str]:
    return sorted(zoo.table[ACTIVATION].drop_nulls().unique()) if ACTIVATION in zoo.table.columns else []


def _check_activations(train: Zoo, conditioner: Conditioner | None) -> None:
    """A generated network without a known activation would be of no use."""
    found = _activations(train)
    told = isinstance(conditioner, TableConditioner) and ACTIVATION in [part.name for part in conditioner.columns]
    if len(found) > 1 and not told:
        raise ConfigError(
            f"the networks have several activations ({', '.join(found)}): select those of one, or make {ACTIVATION!r} "
            "a condition"
        )
