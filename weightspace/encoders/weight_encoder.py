"""What an encoder that learns from targets is: a module from networks to embeddings, and from these to outputs.

One file with a configuration and a subclass of `WeightEncoder` is a new method; `Predictor` trains, saves and applies
it, and `weightspace benchmark --encoder my_module:MyEncoder` compares it with the others.

Axes: m network, d value of an embedding, o output, e member of an ensemble.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightspace.errors import LayoutError
from weightspace.networks.layout import Layout
from weightspace.training import TrainingConfig
from weightspace.views.architecture import Architecture, Networks


@dataclass(frozen=True, kw_only=True)
class PredictorTraining(TrainingConfig):
    """How encoders are trained on targets.

    >>> PredictorTraining().epochs
    40
    """

    epochs: int = 40
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    warmup: float = 0.1
    permute: bool = False
    """Show training networks with their hidden units in a new random order each time."""
    invariance: float = 0.0
    """λ of the logit-invariance regulariser (Moskalev et al., 2023; "SNE", section 5); costs a second pass."""
    noise: float = 0.0
    """Deviation of Gaussian noise on training weights, in deviations of all of them."""


class WeightEncoder(nn.Module, ABC):
    """An encoder of networks' weights.

    A subclass has a frozen dataclass `Config`, makes its parts in `__init__(config, architectures, outputs)` (among
    them `self.head`, from embeddings to outputs), and says in `encode` what the embedding of networks is.
    """

    name: ClassVar[str]
    Config: ClassVar[type]
    optimisation: ClassVar[PredictorTraining] = PredictorTraining()
    """How it is trained where the caller says nothing else."""
    head: nn.Module

    @abstractmethod
    def __init__(self, config: Any, architectures: Sequence[Architecture], outputs: int):
        """Make the parts.

        Args:
            config: Of the class's `Config`.
            architectures: Those of the training networks.
            outputs: Values wanted of each network.

        Raises:
            LayoutError: The method cannot read such networks.
        """
        super().__init__()

    def prepare(self, training: Sequence[Networks]) -> None:
        """See all training networks once, to keep statistics of them in buffers; by default nothing is kept."""

    @abstractmethod
    def encode(self, networks: Networks) -> Float[Tensor, "m d"]:
        """Embeddings of networks of one architecture.

        Raises:
            LayoutError: The method, or this instance of it, cannot read networks of this architecture.
        """

    def forward(self, networks: Networks) -> Float[Tensor, "*e m o"]:
        """Outputs: logits of shares and classes, standardised values of numbers.

        In training the members of an ensemble may answer one by one, `[e, m, o]`; each has then its own loss.
        """
        return self.head(self.encode(networks))


class ScalarScale(nn.Module):
    """Standardises all weights of all networks by one mean and one deviation, those of the training networks.

    Weights of a network are not standardised by their own statistics: how large they are is what tells most about it.

    >>> from weightspace.networks import MLP
    >>> some = Networks.of(3 * torch.randn(9, 1210) + 1, Architecture.of(MLP(hidden=(16,))))
    >>> scale = ScalarScale()
    >>> scale.prepare([some])
    >>> float(scale(some.rows).std().round(decimals=3))
    1.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def prepare(self, training: Sequence[Networks]) -> None:
        """Keep the statistics of these networks."""
        count = sum(some.rows.numel() for some in training)
        mean = sum(float(some.rows.double().sum()) for some in training) / count
        variance = sum(float((some.rows.double() - mean).square().sum()) for some in training) / count
        self.mean.fill_(mean)
        self.std.fill_(variance**0.5 if variance > 0 else 1.0)

    def forward(self, weights: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Standardised weights."""
        return (weights - self.mean) / self.std

    def rows(self, networks: Networks, *, centred: bool = True) -> Float[Tensor, "m p"]:
        """Standardised weights of networks; divided by the deviation alone if not centred."""
        return self(networks.rows) if centred else networks.rows / self.std


class TensorScale(nn.Module):
    """Standardises each tensor of networks of one layout by its own mean and deviation.

    For networks whose tensors differ by orders of magnitude, such as SIRENs, whose hidden weights are divided by ω.

    >>> from weightspace.networks import SIREN
    >>> siren = Architecture.of(SIREN())
    >>> some = Networks.of(torch.randn(9, 1185) * torch.linspace(0.1, 9, 1185), siren)
    >>> scale = TensorScale(siren.layout)
    >>> scale.prepare([some])
    >>> float(scale.rows(some)[:, -33:-1].std().round(decimals=1))
    1.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layout: Layout):
        super().__init__()
        self.layout = layout
        self.sizes = torch.tensor([spec.size for spec in layout.tensors])
        self.register_buffer("mean", torch.zeros(len(self.sizes)))
        self.register_buffer("std", torch.ones(len(self.sizes)))

    def prepare(self, training: Sequence[Networks]) -> None:
        """Keep the statistics of these networks."""
        rows = torch.cat([some.rows for some in training]).double()
        for number, values in enumerate(rows.split(self.sizes.tolist(), dim=1)):
            self.mean[number] = values.mean()
            self.std[number] = values.std(correction=0).clamp_min(1e-8)

    def rows(self, networks: Networks, *, centred: bool = True) -> Float[Tensor, "m p"]:
        """Standardised weights of networks; divided by the deviations alone if not centred.

        Raises:
            LayoutError: They are of another layout.
        """
        found = networks.architecture.layout.digest
        if found != self.layout.digest:
            raise LayoutError(
                f"the encoder standardises each tensor of layout {self.layout.digest} and cannot read layout {found}; "
                "fit it with by_tensor=False"
            )
        sizes = self.sizes.to(self.std.device)
        mean, std = (some.repeat_interleave(sizes) for some in (self.mean, self.std))
        return (networks.rows - mean) / std if centred else networks.rows / std


def weight_scale(by_tensor: bool, architectures: Sequence[Architecture]) -> ScalarScale | TensorScale:
    """One scale for all weights of any networks, or one for each tensor of networks of one layout.

    Raises:
        LayoutError: Tensors shall have their own, and there are several layouts.
    """
    if not by_tensor:
        return ScalarScale()
    digests = sorted({architecture.layout.digest for architecture in architectures})
    if len(digests) > 1:
        raise LayoutError(
            f"tensors can be standardised one by one only where all networks have one layout, not {digests}; leave "
            "by_tensor out"
        )
    return TensorScale(architectures[0].layout)


def perceptron(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these widths with an activation between each two.

    >>> len(perceptron(56, 1000, 1000, 1))
    5
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])
