"""A hypernetwork that learns the manifold of good weights (Deutsch, Nijkamp and Yang, 2019).

Latents are mapped to networks that are accurate, and diverse beyond the symmetries that leave a function unchanged:

    L = λ · mean cross-entropy - H(gauge(rows))          ("Manifold hypernetwork", equation 1)

It needs no zoo, only images and labels. Here L / λ is minimised: the same optimum, but the size of its gradient does
not depend on λ, so that one clipping threshold serves all, and an infinite λ is plain accuracy.

Axes: m network, z latent scalar, p parameter, b image of a network, n image, k class, t point of a path, l layer,
q value of its code.
"""

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl
import torch
from huggingface_hub import ModelHubMixin
from jaxtyping import Float, Int64
from safetensors.torch import save
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from weightspace import networks, training
from weightspace.datasets import Dataset
from weightspace.encoders.pretrained import local_folder, structure
from weightspace.errors import ConfigError, WeightspaceError, unknown_name
from weightspace.generators.batch_norm import calibration_images, with_batch_statistics, with_running_statistics
from weightspace.generators.entropy import ORDERS, Norm, entropy, neighbour_distances
from weightspace.generators.gauge import Gauge, Order
from weightspace.generators.hypergan import AdversarialConfig, Adversary, code_shape, pretrain_mixer
from weightspace.generators.hypernetwork import Hypernetwork, HypernetworkConfig
from weightspace.generators.pretrained import (
    CARD,
    CONFIG,
    FORMAT,
    FORMAT_VERSION,
    MODEL,
    fill,
    provenance,
    read_config,
    read_tensors,
)
from weightspace.generators.warm_start import WarmStart
from weightspace.networks import SIREN, Classifier, Network
from weightspace.networks.layout import RUNNING
from weightspace.networks.population import as_classifier
from weightspace.training import TrainingConfig
from weightspace.zoo import Zoo
from weightspace.zoo.writer import write_file

VALIDATION_BATCHES, VALIDATION_IMAGES = 8, 500
_DRAWN_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class ManifoldConfig:
    """The hypernetwork and what it is trained for.

    >>> ManifoldConfig(accuracy_weight=-1.0)
    Traceback (most recent call last):
    weightspace.errors.ConfigError: accuracy_weight must be positive, got -1.0
    """

    hypernetwork: HypernetworkConfig = field(default_factory=HypernetworkConfig)
    prior: Literal["uniform", "normal"] = "uniform"
    """Of each latent scalar: U(-1, 1) or N(0, 1)."""
    accuracy_weight: float = 1e3
    """λ: smaller is more diverse; infinite trains for accuracy alone."""
    diversity_warmup: float = 0.0
    """Share of the steps in which 1/λ grows from zero to its value."""
    dimension: int | None = None
    """Dimension of the manifold in the entropy, d; that of the latents when missing."""
    norm: Norm = "L2"
    """Norm of distances between networks."""
    neighbour: int = 1
    """Which nearest neighbour the entropy is made of."""
    fix_scale: bool = True
    """Entropy of weights whose scale symmetry is fixed."""
    fix_shift: bool = True
    """The same for the shift of all logits."""
    fix_sign: bool = False
    """The same for the sign of units of odd activations, and of weights before a batch normalisation."""
    fix_order: Order = "none"
    """The same for the order of units, see `Gauge.of`."""
    prior_std: float | None = None
    """Deviation of a Gaussian prior of every weight, whose -E log p is added to the loss. Without gauges, and with λ
    the number of training images, this is variational inference (Bayes by hypernet, Pawlowski et al., 2017)."""
    adversarial: AdversarialConfig | None = None
    """HyperGAN's term of diversity, a discriminator of codes; beside the entropy, unless λ is infinite. It wants a
    normal prior and codes of one size, as with `share="layer"`."""
    images: int = 48
    """Images of each network in a step; each network has its own. Networks of a step are the batch of the training."""
    epoch_steps: int = 100
    """Steps from one validation to the next."""

    def __post_init__(self):
        for name, known in (("prior", ("uniform", "normal")), ("norm", ORDERS), ("fix_order", get_args(Order))):
            if getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)
        if not self.accuracy_weight > 0:
            raise ConfigError(f"accuracy_weight must be positive, got {self.accuracy_weight}")
        if not 0 <= self.diversity_warmup <= 1:
            raise ConfigError(f"diversity_warmup must lie between 0 and 1, got {self.diversity_warmup}")
        for name in ("neighbour", "images", "epoch_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.prior_std is not None and not self.prior_std > 0:
            raise ConfigError(f"prior_std must be positive, got {self.prior_std}")
        if self.dimension is not None and self.dimension < 1:
            raise ConfigError(f"dimension must be at least 1, got {self.dimension}")


@dataclass(frozen=True, kw_only=True)
class ManifoldTraining(TrainingConfig):
    """How a hypernetwork is trained: defaults of 2000 steps.

    >>> ManifoldTraining().batch_size
    24
    """

    epochs: int = 20
    batch_size: int = 24
    """Networks in a step."""
    learning_rate: float = 3e-3
    weight_decay: float = 0.0


class Manifold(ModelHubMixin, library_name="weightspace", model_card_template=CARD):
    """A fitted hypernetwork: draws networks, and walks between them in the latent space.

    Made by `Manifold.fit` or `Manifold.from_pretrained`.
    """

    name = "manifold"

    def __init__(
        self,
        network: Classifier,
        config: ManifoldConfig,
        header: dict,
        calibration: Float[Tensor, "n c h w"] | None = None,
    ):
        self.network = network
        self.config = config
        self.header: dict = json.loads(json.dumps(header))  # as a file gives it back
        """Network, data set and, with `fit`, how it was trained."""
        self.calibration = calibration
        """Training images for running statistics; `None` if the network has no batch normalisation."""
        self.gauge = Gauge.of(
            network, scale=config.fix_scale, shift=config.fix_shift, sign=config.fix_sign, order=config.fix_order
        )
        self.layout = self.gauge.layout
        self.module = Hypernetwork(self.gauge.symmetry, config.hypernetwork)
        self._free = self.gauge.parameters()
        self._target = with_batch_statistics(network.build())

    @classmethod
    def fit(
        cls,
        network: Network,
        data: Dataset,
        *,
        config: ManifoldConfig | None = None,
        optimisation: TrainingConfig = ManifoldTraining(),
        warm_start: WarmStart | None = None,
        folder: Path | str | None = None,
    ) -> "Manifold":
        """Train a hypernetwork for a network and a task.

        Args:
            network: The target: any classifier whose symmetries can be traced, batch normalisation and residual
                streams included.
            data: Training images; validation images choose the epoch that is kept.
            optimisation: `batch_size` is the number of networks in a step, an epoch has `config.epoch_steps` steps.
            warm_start: A zoo whose networks the hypernetwork learns to make first.
            folder: Where everything is saved; an interrupted training continues there.

        Raises:
            ConfigError: Two networks a step are too few for the entropy or for batch normalisation.
            DatasetError: The images have another shape than the network's.
            LayoutError: The network cannot be traced.
            ZooError: The warm start has another layout than the network.

        >>> from weightspace import datasets
        >>> short = TrainingConfig(epochs=1, batch_size=4, accelerator="cpu")
        >>> fitted = Manifold.fit(
        ...     networks.MLP(), datasets.load("digits"), config=ManifoldConfig(epoch_steps=2), optimisation=short)
        >>> fitted.sample(3, seed=0).models
        ['generated-0000', 'generated-0001', 'generated-0002']
        """
        config = config or ManifoldConfig()
        if optimisation.batch_size <= config.neighbour:
            raise ConfigError(
                f"{optimisation.batch_size} networks a step have no {config.neighbour}-th neighbours: enlarge "
                "batch_size"
            )
        network = as_classifier(network, data.train_images)
        header = {
            "name": cls.name,
            "network": networks.to_json(network),
            "dataset": {"name": data.name, "digest": data.digest, "image_shape": list(data.image_shape)},
        }
        fitted = cls(network, config, header, calibration_images(network, data, optimisation.seed))
        module, codes = fitted._prepared(optimisation, warm_start)
        start = (warm_start.zoo.digest, warm_start.steps, warm_start.batch) if warm_start else ()
        count, steps = optimisation.batch_size, optimisation.epochs * config.epoch_steps

        def prior(generator: torch.Generator) -> tuple[Tensor, ...]:
            return (torch.randn(count, *codes, generator=generator),) if codes else ()

        def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
            for _ in range(config.epoch_steps):
                chosen = torch.randint(len(data.train_labels), (count, config.images), generator=generator)
                latents = fitted.latents(count, generator)
                yield latents, data.train_images[chosen], data.train_labels[chosen], *prior(generator)

        def validation(generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
            for _ in range(VALIDATION_BATCHES):
                chosen = torch.randperm(len(data.validation_labels), generator=generator)[:VALIDATION_IMAGES]
                images, labels = data.validation_images[chosen], data.validation_labels[chosen]
                latents = fitted.latents(count, generator)
                yield latents, images.expand(count, *images.shape), labels.expand(count, -1), *prior(generator)

        with tempfile.TemporaryDirectory() as scratch:
            target = Path(folder or scratch)
            history = training.train(
                module,
                lambda module, batch: fitted.objective(module, *batch, steps=steps),
                batches, config.epoch_steps, validation, optimisation, target,
                label="training the hypernetwork", identity=repr((network, config, data.digest, *start)),
            )  # fmt: skip
            fitted.module.eval()
            fitted.header |= {"fit": provenance(optimisation, data, history)}
            if folder is not None:
                fitted.save_pretrained(target)
        return fitted

    def _prepared(
        self, optimisation: TrainingConfig, warm_start: WarmStart | None
    ) -> tuple[nn.Module, tuple[int, ...]]:
        """What is to be trained, as it starts, and number and size of the codes that a discriminator judges."""
        generator = torch.Generator().manual_seed(optimisation.seed)
        self.module.reset(generator)
        rate = optimisation.learning_rate
        if warm_start is not None:
            warm_start.fit(self.module, self.gauge, self.latents, learning_rate=rate, generator=generator)
        if self.config.adversarial is None:
            return self.module, ()
        adversary = Adversary(self.module, self.config.adversarial)
        adversary.reset(generator)
        pretrain_mixer(self.module, self.latents, self.config.adversarial, learning_rate=rate, generator=generator)
        return adversary, code_shape(self.module)

    def objective(
        self,
        module: nn.Module,
        latents: Float[Tensor, "m z"],
        images: Float[Tensor, "m b c h w"],
        labels: Int64[Tensor, "m b"],
        prior: Float[Tensor, "m l q"] | None = None,
        *,
        steps: int,
    ) -> dict[str, Tensor]:
        """Loss of some networks, each on images of its own, with its parts and the diagnostics of section 6.

        Args:
            prior: Draws that a discriminator compares codes with; `module` is an `Adversary` then.

        Returns:
            loss, cross_entropy, entropy and, with a prior, surprise, with a discriminator, mixer and discriminator
            (nats), accuracy, separation: the mean distance to
            the nearest network over the norm. In evaluation mode, where all networks see the same images, also
            accuracy_std, accuracy_min, disagreement of two networks, and the entropy without gauge; and loss, by which
            the epoch is chosen, is the share of wrong predictions: the cross-entropy of sure networks rises long
            before that.
        """
        rows, verdicts = (module(latents), {}) if prior is None else module(latents, prior)
        rows = rows.float()
        logits = self.logits(rows, images)
        cross_entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        hits = (logits.argmax(2) == labels).float().mean(1)
        config, free = self.config, self._free.to(rows.device)
        dimension = config.dimension or config.hypernetwork.latent
        share = torch.tensor(1 / config.accuracy_weight)
        if module.training and config.diversity_warmup:
            share = share * (self.module.steps / (config.diversity_warmup * steps)).clamp(max=1.0)
        with torch.set_grad_enabled(torch.is_grad_enabled() and math.isfinite(config.accuracy_weight)):
            gauged = self.gauge.fixed(rows)[:, free]
            diversity = entropy(gauged, dimension=dimension, k=config.neighbour, norm=config.norm)
        parts = {"loss": cross_entropy - share * diversity, "cross_entropy": cross_entropy, "entropy": diversity}
        if config.prior_std is not None:  # up to the constant of the Gaussian
            parts["surprise"] = rows[:, free].square().sum(1).mean() / (2 * config.prior_std**2)
            parts["loss"] = parts["loss"] + share * parts["surprise"]
        if config.adversarial is not None:
            parts |= verdicts
            parts["loss"] = parts["loss"] + config.adversarial.weight * verdicts["mixer"] + verdicts["discriminator"]
        with torch.no_grad():
            near = neighbour_distances(gauged, norm=config.norm) / gauged.norm(ORDERS[config.norm], dim=1)
            parts |= {"accuracy": hits.mean(), "separation": near.mean()}
            if not module.training:
                plain = entropy(rows[:, free], dimension=dimension, k=config.neighbour, norm=config.norm)
                votes = F.one_hot(logits.argmax(2), logits.shape[2]).sum(0)
                pairs = len(rows) * (len(rows) - 1)
                parts |= {"accuracy_std": hits.std(), "accuracy_min": hits.min(), "entropy_without_gauge": plain}
                parts["loss"] = 1 - hits.mean()
                parts["disagreement"] = 1 - (votes * (votes - 1)).sum(1).float().mean() / pairs
        return parts

    def logits(self, rows: Float[Tensor, "m p"], images: Float[Tensor, "m b c h w"]) -> Float[Tensor, "m b k"]:
        """Logits of every network on its own images, batch normalisation with statistics of these images."""
        state = {name: value for name, value in self.layout.unflatten(rows).items() if not name.endswith(RUNNING)}
        return vmap(lambda state, x: functional_call(self._target, state, (x,)))(state, images)

    def latents(self, n: int, generator: torch.Generator) -> Float[Tensor, "m z"]:
        """Draws from the prior."""
        shape = (n, self.config.hypernetwork.latent)
        if self.config.prior == "normal":
            return torch.randn(shape, generator=generator)
        return 2 * torch.rand(shape, generator=generator) - 1

    @torch.no_grad()
    def rows(self, latents: Float[Tensor, "m z"]) -> Float[Tensor, "m p"]:
        """The networks of latents; a network does not depend on those it is made with."""
        self.module.eval()
        rows = torch.cat([self.module(some) for some in latents.split(_DRAWN_AT_ONCE)])
        return rows if self.calibration is None else with_running_statistics(self.network, rows, self.calibration)

    def path(
        self, start: Float[Tensor, "m z"], end: Float[Tensor, "m z"], points: int
    ) -> tuple[Float[Tensor, "t m p"], Float[Tensor, "t m p"]]:
        """Networks between pairs of latents: along the straight line of latents, and along that of weights.

        >>> fitted = Manifold(networks.MLP(), ManifoldConfig(), {})
        >>> learned, straight = fitted.path(torch.zeros(2, 32), torch.ones(2, 32), points=5)
        >>> straight.shape, torch.equal(learned[-1], straight[-1])
        (torch.Size([5, 2, 1060]), True)
        """
        share = torch.linspace(0, 1, points)[:, None, None]
        learned = self.rows(torch.lerp(start, end, share).flatten(0, 1)).unflatten(0, (points, -1))
        straight = torch.lerp(learned[0], learned[-1], share)
        if self.calibration is not None:
            flat = with_running_statistics(self.network, straight.flatten(0, 1), self.calibration)
            straight = flat.unflatten(0, (points, -1))
        return learned, straight

    def sample(self, n: int, seed: int = 0) -> Zoo:
        """Draw networks.

        Returns:
            A zoo in memory.

        Raises:
            ConfigError: n is below 1.
        """
        if n < 1:
            raise ConfigError(f"the number of networks to draw must be at least 1, got {n}")
        rows = self.rows(self.latents(n, torch.Generator().manual_seed(seed)))
        table = pl.DataFrame({"model": [f"generated-{i:04d}" for i in range(n)], "step": [0] * n})
        return Zoo.in_memory(rows, self.layout, table, self.header)

    def _save_pretrained(self, save_directory: Path) -> None:
        config = asdict(self.config)
        if not math.isfinite(self.config.accuracy_weight):
            config["accuracy_weight"] = "inf"  # JSON has no infinity
        content = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "method": self.name,
            "config": config,
            "header": self.header,
        }
        tensors = {f"module.{name}": value.contiguous() for name, value in self.module.state_dict().items()}
        if self.calibration is not None:
            tensors["calibration"] = self.calibration.contiguous()
        write_file(save_directory / MODEL, save(tensors))
        write_file(save_directory / CONFIG, json.dumps(content, indent=1).encode())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "Manifold":
        """The generator in a folder, or in a repository on the Hugging Face Hub.

        Args:
            options: For the Hub: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

        Raises:
            WeightspaceError: There is no such folder or repository, or it is damaged or of another method.
        """
        folder = local_folder(pretrained_model_name_or_path, [CONFIG, MODEL], **options)
        content = read_config(folder / CONFIG, cls.name)
        config = structure(content["config"], ManifoldConfig)
        tensors = read_tensors(folder)
        network = networks.from_json(content["header"]["network"])
        if isinstance(network, SIREN):
            raise WeightspaceError(f"{folder} was made for a SIREN, which is no classifier; fit the generator again")
        fitted = cls(network, config, content["header"], tensors.pop("calibration", None))
        fill(fitted.module, tensors, folder)
        return fitted
