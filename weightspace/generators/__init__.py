"""Generators: latents or noise to networks, one file a method; and the simple baselines beside them."""

from pathlib import Path

from weightspace.errors import WeightspaceError, unknown_name
from weightspace.generators.conditions import Conditioner, TableConditioner
from weightspace.generators.dataset_conditioner import DatasetConditioner, DatasetEncoderConfig
from weightspace.generators.denoisers import ConvDenoiser, MLPDenoiser, TransformerDenoiser
from weightspace.generators.denoising import DDPM, Flow
from weightspace.generators.diffusion import Diffusion, DiffusionConfig, DiffusionTraining
from weightspace.generators.for_data import fit_for_data, sample_for_data
from weightspace.generators.gpt import GPT, GPTConfig, GPTTraining
from weightspace.generators.hypergan import AdversarialConfig
from weightspace.generators.hypernetwork import HypernetworkConfig
from weightspace.generators.kde import KDE, KDEConfig
from weightspace.generators.manifold import Manifold, ManifoldConfig, ManifoldTraining
from weightspace.generators.pretrained import method_of
from weightspace.generators.rpg import PermutationState, RecurrentDenoiser
from weightspace.generators.spaces import Components, Latents, Rows
from weightspace.generators.token_space import Tokens
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
    "HypernetworkConfig",
    "KDEConfig",
    "Latents",
    "MLPDenoiser",
    "Manifold",
    "ManifoldConfig",
    "ManifoldTraining",
    "PermutationState",
    "RecurrentDenoiser",
    "Rows",
    "TableConditioner",
    "Tokens",
    "TransformerDenoiser",
    "WarmStart",
    "fit_for_data",
    "load",
    "sample_for_data",
]

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
