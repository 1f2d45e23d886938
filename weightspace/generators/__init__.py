"""Generators: latents or noise to networks, one file a method; and the simple baselines beside them."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from weightspace.errors import WeightspaceError, unknown_name
from weightspace.generators.batch_norm import conditioned, has_running_statistics
from weightspace.generators.conditions import Conditioner, TableConditioner
from weightspace.generators.dataset_conditioner import DatasetConditioner, DatasetEncoderConfig
from weightspace.generators.denoisers import ConvDenoiser, MLPDenoiser, TransformerDenoiser
from weightspace.generators.denoising import DDPM, Flow
from weightspace.generators.diffusion import Diffusion, DiffusionConfig, DiffusionTraining
from weightspace.generators.for_data import fit_for_data, sample_for_data
from weightspace.generators.gaussian import Gaussian, GaussianConfig
from weightspace.generators.gpt import GPT, GPTConfig, GPTTraining
from weightspace.generators.head import with_head
from weightspace.generators.hypergan import AdversarialConfig
from weightspace.generators.hypernetwork import HypernetworkConfig
from weightspace.generators.interpolation import Interpolation, InterpolationConfig
from weightspace.generators.kde import KDE, KDEConfig
from weightspace.generators.latent_gan import LatentGAN, LatentGANConfig
from weightspace.generators.latent_sampler import LatentSampler
from weightspace.generators.manifold import Manifold, ManifoldConfig, ManifoldTraining
from weightspace.generators.neighbourhood import Neighbourhood, NeighbourhoodConfig
from weightspace.generators.pretrained import method_of
from weightspace.generators.rpg import PermutationState, RecurrentDenoiser
from weightspace.generators.selection import Selected, SelectionConfig
from weightspace.generators.spaces import Components, Latents, Rows
from weightspace.generators.targeted import Region, Targeted
from weightspace.generators.token_space import Tokens
from weightspace.generators.uniform import Uniform, UniformConfig
from weightspace.generators.warm_start import WarmStart

__all__ = [
    "DDPM",
    "GPT",
    "KDE",
    "AdversarialConfig",
    "Components",
    "Conditioner",
    "ConvDenoiser",
    "DatasetConditioner",
    "DatasetEncoderConfig",
    "Diffusion",
    "DiffusionConfig",
    "DiffusionTraining",
    "Flow",
    "GPTConfig",
    "GPTTraining",
    "Gaussian",
    "GaussianConfig",
    "HypernetworkConfig",
    "Interpolation",
    "InterpolationConfig",
    "KDEConfig",
    "LatentGAN",
    "LatentGANConfig",
    "LatentSampler",
    "Latents",
    "MLPDenoiser",
    "Manifold",
    "ManifoldConfig",
    "ManifoldTraining",
    "Neighbourhood",
    "NeighbourhoodConfig",
    "PermutationState",
    "RecurrentDenoiser",
    "Region",
    "Rows",
    "Selected",
    "SelectionConfig",
    "TableConditioner",
    "Targeted",
    "Tokens",
    "TransformerDenoiser",
    "Uniform",
    "UniformConfig",
    "WarmStart",
    "conditioned",
    "fit_for_data",
    "has_running_statistics",
    "latent_sampler",
    "latent_samplers",
    "load",
    "sample_for_data",
    "sampler_config",
    "with_head",
]

_SAMPLERS: dict[str, type[LatentSampler]] = {
    sampler.name: sampler for sampler in (KDE, Uniform, Gaussian, Interpolation, Neighbourhood, LatentGAN)
}


def latent_samplers() -> list[str]:
    """Names of the samplers of an autoencoder's latents.

    >>> latent_samplers()
    ['gan', 'gaussian', 'interpolation', 'kde', 'neighbourhood', 'uniform']
    """
    return sorted(_SAMPLERS)


def latent_sampler(name: str) -> type[LatentSampler]:
    """The sampler of that name.

    Raises:
        UnknownName: There is none.

    >>> latent_sampler("kde").Config().mode
    'smooth'
    """
    if name not in _SAMPLERS:
        raise unknown_name("sampler", name, _SAMPLERS)
    return _SAMPLERS[name]


def sampler_config(name: str, **given: Any) -> Any:
    """Configuration of a sampler; what is `None` is as the method has it.

    Raises:
        UnknownName: There is no such sampler, or it has no such setting.
        ConfigError: A setting is out of range.

    >>> sampler_config("gaussian", rank=4, spread=None)
    GaussianConfig(rank=4, spread=1.0, sigma=None)
    """
    kind = latent_sampler(name).Config
    known = [field.name for field in fields(kind)]
    wanted = {setting: value for setting, value in given.items() if value is not None}
    for setting in wanted:
        if setting not in known:
            raise unknown_name(f"setting of the sampler {name!r}", setting, known)
    return kind(**wanted)


_FITTED: dict[str, type[Manifold] | type[Diffusion] | type[GPT]] = {
    method.name: method for method in (Manifold, Diffusion, GPT)
}


def load(folder: Path | str) -> Manifold | Diffusion | GPT:
    """The fitted generator in a folder, whatever its method.

    Raises:
        WeightspaceError: There is none, or it cannot be read.
    """
    method = method_of(Path(folder))
    if method is None:
        raise WeightspaceError(f"{folder} holds no fitted generator; make one with `weightspace fit`")
    if method not in _FITTED:
        raise unknown_name("generator", method, _FITTED)
    return _FITTED[method].from_pretrained(folder)
