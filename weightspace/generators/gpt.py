"""G.pt: from a checkpoint and its loss to a checkpoint with the loss that is asked for (Peebles et al., 2022, §3).

    p(θ* | θ, ℓ*, ℓ)        θ, θ* two checkpoints of one run with metrics ℓ, ℓ*

A transformer denoises θ*: its tokens are chunks of the noisy θ* and of θ, and the scalars time, ℓ* - ℓ, ℓ* and ℓ. It
predicts the data, as a change of θ; untrained it gives θ back. Hidden units of both are renumbered alike, at random, in
every training step.

Axes: b pair or network, p parameter, k chunk, v value in a chunk, w width, r run.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import torch
from huggingface_hub import ModelHubMixin
from jaxtyping import Float, Int64
from safetensors.torch import save
from torch import Tensor, nn

from weightspace import training
from weightspace.encoders.pretrained import local_folder, provenance, structure
from weightspace.errors import ConfigError, unknown_name
from weightspace.generators import pretrained
from weightspace.generators.denoising import DDPM, Noised, denoising_loss
from weightspace.generators.moving_average import Averaged
from weightspace.generators.pretrained import CARD, CONFIG, FORMAT, FORMAT_VERSION, MODEL
from weightspace.generators.spaces import require_layout
from weightspace.networks import Layout
from weightspace.training import TrainingConfig
from weightspace.views.architecture import Architecture, architecture_of
from weightspace.zoo import Zoo
from weightspace.zoo.writer import LOCATION, write_file

SCALARS = 4
"""Time, ℓ* - ℓ, ℓ* and ℓ."""
FREQUENCIES, HIGHEST = 128, 14
"""Of the embedding of a scalar: 2^0 to 2^14, as many sines and cosines."""
SPREAD = 0.538
"""Deviation of all weights after scaling."""
VALIDATION_PAIRS = 512
_AT_ONCE = 1024  # networks in one evaluation


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Sizes of the transformer, and how it is trained; the paper's are 1536, 12 heads or 16, and 12 blocks.

    >>> GPTConfig(width=10, heads=4)
    Traceback (most recent call last):
    weightspace.errors.ConfigError: width 10 must be a multiple of the 4 heads
    """

    metric: str = "metric.validation_loss"
    """Column that prompts are about."""
    width: int = 192
    heads: int = 4
    depth: int = 4
    """Blocks."""
    chunk: int = 1000
    """Most weights of a layer in one token."""
    steps: int = 1000
    """Noise levels of training, linear."""
    sampling_steps: int = 50
    """Noise levels that a sampler visits."""
    average: float = 0.995
    """Share of itself that the moving average of weights keeps in a step; the average is what samples."""
    permuted: bool = True
    """Renumber hidden units at random, both checkpoints of a pair alike."""
    epoch_steps: int = 100
    """Steps from one validation to the next."""

    def __post_init__(self):
        if min(self.width, self.heads, self.depth, self.chunk, self.epoch_steps) < 1:
            raise ConfigError(f"width, heads, depth, chunk and epoch_steps must be at least 1, got {self}")
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} must be a multiple of the {self.heads} heads")
        if not 0 <= self.average < 1:
            raise ConfigError(f"average must lie in [0, 1), got {self.average}")
        self.process  # its own checks  # noqa: B018

    @property
    def process(self) -> DDPM:
        """Predicts the data; noise of a sampling step is the larger of the two usual ones."""
        return DDPM(steps=self.steps, target="data", variance="fixed_large", sampling_steps=self.sampling_steps)


@dataclass(frozen=True, kw_only=True)
class GPTTraining(TrainingConfig):
    """How G.pt is trained: defaults of 3000 steps.

    >>> GPTTraining().weight_decay
    0.1
    """

    epochs: int = 30
    batch_size: int = 128
    """Pairs in a step."""
    learning_rate: float = 4e-4
    weight_decay: float = 0.1
    warmup: float = 0.1
    gradient_norm: float = 0.75


def chunk_index(layout: Layout, size: int) -> Int64[Tensor, "k v"]:
    """Parameters in each token, at most `size` and never of two layers; -1 is padding.

    >>> chunk_index(Layout.of(nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))), 3)
    tensor([[ 0,  1,  2],
            [ 3, -1, -1],
            [ 4,  5,  6]])
    """
    layers: dict[str, list[Tensor]] = {}
    for spec in layout.tensors:
        part = layout.slices[spec.name]
        layers.setdefault(spec.layer_name, []).append(torch.arange(part.start, part.stop))
    chunks = [chunk for parts in layers.values() for chunk in torch.cat(parts).split(size)]
    return nn.utils.rnn.pad_sequence(chunks, batch_first=True, padding_value=-1)


def scalar_embedding(values: Float[Tensor, "*b"]) -> Float[Tensor, "*b 257"]:
    """Sines and cosines of a number at frequencies from 1 to 2^14, and the number.

    >>> scalar_embedding(torch.tensor([0.5])).shape
    torch.Size([1, 257])
    """
    angle = values[..., None] * 2 ** torch.linspace(0, HIGHEST, FREQUENCIES, device=values.device)
    return torch.cat([angle.sin(), angle.cos(), values[..., None]], dim=-1)


class GPTModule(nn.Module):
    """The transformer over chunks of two checkpoints and four scalars."""

    index: Tensor

    def __init__(self, config: GPTConfig, layout: Layout):
        super().__init__()
        index = chunk_index(layout, config.chunk)
        self.register_buffer("index", index, persistent=False)
        k, v = index.shape
        self.enter = nn.Parameter(torch.zeros(2 * k, v, config.width))  # a linear map for each token
        self.enter_scalars = nn.Parameter(torch.zeros(SCALARS, 2 * FREQUENCIES + 1, config.width))
        self.enter_norm = nn.LayerNorm(config.width)
        self.positions = nn.Parameter(torch.zeros(2 * k + SCALARS, config.width))
        block = nn.TransformerEncoderLayer(
            config.width, config.heads, 4 * config.width, dropout=0.0, activation="gelu", batch_first=True,
            norm_first=True,
        )  # fmt: skip
        norm = nn.LayerNorm(config.width)
        self.blocks = nn.TransformerEncoder(block, config.depth, norm, enable_nested_tensor=False)
        self.leave = nn.Parameter(torch.zeros(k, config.width, v))

    def reset(self, generator: torch.Generator) -> None:
        """Draw initial weights, N(0, 0.02²), biases and positions zero; the prediction starts as the start itself."""
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        nn.init.zeros_(self.positions)
        nn.init.zeros_(self.leave)

    def forward(
        self,
        noisy: Float[Tensor, "b p"],
        time: Float[Tensor, " b"],
        start: Float[Tensor, "b p"],
        wanted: Float[Tensor, " b"],
        known: Float[Tensor, " b"],
    ) -> Float[Tensor, "b p"]:
        """What the noisy checkpoint is made of, where a network `start` of metric `known` has come to `wanted`."""
        real = self.index >= 0
        chunks = torch.cat([noisy[:, self.index], start[:, self.index]], dim=1)  # b 2k v
        chunks = torch.where(real.repeat(2, 1), chunks, 0.0)
        scalars = scalar_embedding(torch.stack([time, wanted - known, wanted, known], dim=1))  # b 4 257
        tokens = torch.cat(
            [
                torch.einsum("bkv,kvw->bkw", chunks, self.enter),
                torch.einsum("bsv,svw->bsw", scalars, self.enter_scalars),
            ],
            dim=1,
        )
        hidden = self.blocks(self.enter_norm(tokens) + self.positions)
        change = torch.einsum("bkw,kwv->bkv", hidden[:, : len(self.index)], self.leave)
        return start + torch.zeros_like(start).index_copy(1, self.index[real], change[:, real])


class GPT(ModelHubMixin, library_name="weightspace", model_card_template=CARD):
    """A fitted G.pt: moves checkpoints to the metric that is asked for, in one step.

    Made by `GPT.fit` or `GPT.from_pretrained`.
    """

    name = "gpt"

    def __init__(self, layout: Layout, config: GPTConfig, header: dict, scale: float = 1.0):
        self.layout, self.config = layout, config
        self.header: dict = json.loads(json.dumps(header))  # as a file gives it back
        """Header of the zoo that it was fitted on; with `fit`, how."""
        self.scale = scale
        """What weights are multiplied with."""
        self.module = GPTModule(config, layout)

    @classmethod
    def fit(
        cls,
        train: Zoo,
        *,
        validation: Zoo,
        config: GPTConfig | None = None,
        optimisation: TrainingConfig = GPTTraining(),
        folder: Path | str | None = None,
    ) -> "GPT":
        """Train on pairs of checkpoints of a zoo, in the order of units that they have.

        Args:
            train: Runs of one layout with at least two checkpoints each.
            validation: Other runs; their loss chooses the epoch that is kept.
            optimisation: An epoch has `config.epoch_steps` steps.
            folder: Where everything is saved; an interrupted training continues there.

        Raises:
            ConfigError: A run has one checkpoint, or the metric of one is not known.
            UnknownName: The zoo has no such metric.
            LayoutError: The zoo mixes layouts, or its groups cannot be traced.
            ZooError: A checkpoint has NaN weights.
        """
        config = config or GPTConfig()
        require_layout(validation, train.layout)
        scale = SPREAD / float(train.weights().std())
        fitted = cls(train.layout, config, train.header, scale)
        fitted.module.reset(torch.Generator().manual_seed(optimisation.seed))
        pairs, held_out = (_Pairs.of(part, config.metric, scale) for part in (train, validation))
        architecture = fitted.architecture if config.permuted else None

        def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
            for _ in range(config.epoch_steps):
                yield pairs.batch(optimisation.batch_size, config.process, architecture, generator)

        def in_order(generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
            yield held_out.batch(VALIDATION_PAIRS, config.process, architecture, generator)

        module = Averaged(fitted.module, config.average)
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(folder or scratch)
            history = training.train(
                module, _loss, batches, config.epoch_steps, in_order, optimisation, target, label="training G.pt",
                identity=repr((config, train.digest, validation.digest)),
            )  # fmt: skip
            fitted.module.load_state_dict(module.average.state_dict())
            fitted.module.eval()
            fitted.header |= {"fit": provenance(optimisation, train, history) | {"runs": len(train.models)}}
            if folder is not None:
                fitted.save_pretrained(target)
        return fitted

    @cached_property
    def architecture(self) -> Architecture:
        """Units that may be renumbered in the networks it was fitted on."""
        return architecture_of(self.header, self.layout)

    @torch.no_grad()
    def sample(self, starts: Zoo, wanted: float | Sequence[float], *, steps: int | None = None, seed: int = 0) -> Zoo:
        """Move checkpoints to a metric.

        Args:
            starts: Networks with the metric in their table, for example untrained ones.
            wanted: The metric that all should have, or one for each.
            steps: Noise levels that the sampler visits; `config.sampling_steps` when missing.

        Returns:
            A zoo in memory with the factors of the starts, their names in `start`, and what was asked in `asked.*`.

        Raises:
            ConfigError: There are not as many wishes as starts.
            LayoutError: The starts have another layout.
            UnknownName: Their table lacks the metric.
        """
        require_layout(starts, self.layout)
        asked = torch.full((len(starts),), float(wanted)) if isinstance(wanted, float | int) else torch.tensor(wanted)
        if len(asked) != len(starts):
            raise ConfigError(f"{len(asked)} wishes for {len(starts)} networks: give one, or one for each")
        known = _metric(starts, self.config.metric)
        rows, asked = starts.weights().float() * self.scale, asked.float()
        self.module.eval()

        def predict(noisy: Tensor, time: Tensor) -> Tensor:
            parts = torch.arange(len(noisy)).split(_AT_ONCE)
            return torch.cat([self.module(noisy[i], time[i], rows[i], asked[i], known[i]) for i in parts])

        generator = torch.Generator().manual_seed(seed)
        drawn = self.config.process.sample(predict, tuple(rows.shape), generator, steps=steps)
        table = starts.table.select("model", pl.col("^config\\..*$")).with_columns(
            pl.col("model").alias("start"),
            pl.Series("model", [f"generated-{i:04d}" for i in range(len(starts))]),
            pl.lit(0, pl.Int64).alias("step"),
            pl.Series(f"asked.{self.config.metric}", asked.tolist()),
        )
        return Zoo.in_memory(drawn / self.scale, self.layout, table, starts.header)

    def recursive(
        self,
        starts: Zoo,
        wanted: float | Sequence[float],
        rounds: int,
        measure: Callable[[Zoo], Sequence[float]],
        *,
        steps: int | None = None,
        seed: int = 0,
    ) -> list[Zoo]:
        """Prompt again and again, each time from what came out, with the metric that it has (recursive prompting).

        Args:
            rounds: How often; 1 is `sample`.
            measure: The metric of networks, on validation data.

        Returns:
            The networks of every round, with their measured metric.

        Raises:
            ConfigError: `rounds` is below 1.
        """
        if rounds < 1:
            raise ConfigError(f"recursive prompting needs at least 1 round, got {rounds}")
        found: list[Zoo] = []
        for number in range(rounds):
            made = self.sample(found[-1] if found else starts, wanted, steps=steps, seed=seed + number)
            made = made.with_columns(**{self.config.metric: list(measure(made))})
            found.append(made)
        return found

    def _save_pretrained(self, save_directory: Path) -> None:
        content = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "method": self.name,
            "config": asdict(self.config),
            "layout": self.layout.to_json(),
            "scale": self.scale,
            "header": self.header,
        }
        tensors = {f"module.{name}": value.contiguous() for name, value in self.module.state_dict().items()}
        write_file(save_directory / MODEL, save(tensors))
        write_file(save_directory / CONFIG, json.dumps(content, indent=1).encode())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "GPT":
        """The generator in a folder, or in a repository on the Hugging Face Hub.

        Args:
            options: For the Hub: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

        Raises:
            WeightspaceError: There is no such folder or repository, or it is damaged or of another method.
        """
        folder = local_folder(pretrained_model_name_or_path, [CONFIG, MODEL], **options)
        content = pretrained.read_config(folder / CONFIG, cls.name)
        config = structure(content["config"], GPTConfig)
        fitted = cls(Layout.from_json(content["layout"]), config, content["header"], float(content["scale"]))
        pretrained.fill(fitted.module, pretrained.read_tensors(folder), folder)
        return fitted


@dataclass(frozen=True)
class _Pairs:
    """Checkpoints of runs, side by side: those of run r are `start[r]` to `start[r] + size[r]`."""

    rows: Float[Tensor, "m p"]
    metric: Float[Tensor, " m"]
    start: Int64[Tensor, " r"]
    size: Int64[Tensor, " r"]

    @classmethod
    def of(cls, zoo: Zoo, metric: str, scale: float) -> "_Pairs":
        zoo.require_finite("training G.pt")
        run = torch.tensor(zoo.table["model"].rank("dense").to_list()) - 1
        size = run.bincount()
        if bool((size < 2).any()):
            lonely = zoo.table["model"].unique().sort()[int(size.argmin())]
            raise ConfigError(
                f"run {lonely!r} has one checkpoint, but G.pt learns from pairs: give it more, or leave it"
            )
        order = run.argsort(stable=True)
        return cls(zoo.weights().float()[order] * scale, _metric(zoo, metric)[order], size.cumsum(0) - size, size)

    def batch(
        self, count: int, process: DDPM, architecture: Architecture | None, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Noisy target, time, target; start, and the metrics of target and start."""
        run = torch.randint(len(self.size), (count,), generator=generator)
        first = (torch.rand(count, generator=generator) * self.size[run]).long()
        ahead = 1 + (torch.rand(count, generator=generator) * (self.size[run] - 1)).long()
        start = self.start[run] + first
        target = self.start[run] + (first + ahead) % self.size[run]
        both = torch.cat([self.rows[start], self.rows[target]], dim=1)
        if architecture is not None:
            both = permuted_alike(both, architecture, generator)
        before, after = both.chunk(2, dim=1)
        return *process.noised(after, generator), before, self.metric[target], self.metric[start]


def permuted_alike(
    both: Float[Tensor, "b _"], architecture: Architecture, generator: torch.Generator
) -> Float[Tensor, "b _"]:
    """Pairs of networks, side by side, with their units in a random order that is the same in both."""
    state = generator.get_state()
    first, second = both.chunk(2, dim=1)
    first = architecture.permuted(first, generator)
    generator.set_state(state)
    return torch.cat([first, architecture.permuted(second, generator)], dim=1)


def _metric(zoo: Zoo, name: str) -> Float[Tensor, " m"]:
    if name not in zoo.table.columns:
        raise unknown_name("metric", name, [column for column in zoo.table.columns if column not in LOCATION])
    values = zoo.table[name].cast(pl.Float64)
    if values.null_count() or not values.is_finite().all():
        raise ConfigError(f"{name} of some checkpoints of {zoo!r} is missing or not finite: select others")
    return torch.from_numpy(values.to_numpy().copy()).float()


def _loss(module: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
    noisy, time, target, start, wanted, known = batch
    loss = denoising_loss(lambda *point: module(*point[:2], start, wanted, known), Noised(noisy, time, target))
    return {"loss": loss}
