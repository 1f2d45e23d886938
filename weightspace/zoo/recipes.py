"""The published zoos by name: each a recipe, to be trained whole or made smaller.

Numbers are from the papers and their released code where those say them. What they leave open is ours, and stands in
`docs/how-to/recipes.md`: the grid of the EuroSAT zoo, the widths and factors of Arch 1 and Arch 2, rates and lengths
of the SIREN zoos, epochs of the Wild Park, and the zoos of multi-layer perceptrons and transformers.

    <set>-cnn-seed, -hyp-fix, -hyp-rand    Schürholt et al. (2022), CNN-s; <set>-cnn-l-... their CNN-l
    <set>-small-cnn                        Unterthiner et al. (2020)
    <set>-arch1, <set>-arch2               Andreis et al. (2023)
    cifar10-wild-park                      Kofinas et al. (2024)
    <set>-siren, <set>-siren-dws           Zhou et al. (2023), Navon et al. (2023)
    sine-siren                             Navon et al. (2023)
    <set>-resnet18                         Schürholt et al. (2022)
"""

from dataclasses import replace
from functools import cache

from weightspace.errors import unknown_name
from weightspace.networks.optimisers import OptimiserName
from weightspace.zoo.recipe import WAVES, WILD_PARK, Recipe

ALL_ACTIVATIONS = ("tanh", "relu", "sigmoid", "gelu")
ALL_INITS = ("uniform", "normal", "kaiming_uniform", "kaiming_normal")


def names() -> list[str]:
    """Names of the published zoos.

    >>> "mnist-cnn-seed" in names()
    True
    """
    return sorted(_recipes())


def by_name(name: str, **changes: object) -> Recipe:
    """The recipe of a published zoo.

    Args:
        changes: Fields of `Recipe` that should be otherwise. With fewer epochs and no `checkpoints` the published
            ones are kept as far as they are reached, and the last epoch.

    Raises:
        UnknownName: There is no such zoo.
        ConfigError: A change is impossible.

    >>> by_name("mnist-cnn-seed").models, by_name("mnist-cnn-hyp-fix", epochs=2).checkpoints
    (1000, (0, 1, 2))
    """
    recipes = _recipes()
    if name not in recipes:
        raise unknown_name("recipe", name, recipes)
    recipe = recipes[name]
    epochs = changes.get("epochs")
    if isinstance(epochs, int) and "checkpoints" not in changes and recipe.checkpoints:
        changes["checkpoints"] = (*(epoch for epoch in recipe.checkpoints if epoch < epochs), epochs)
    return replace(recipe, **changes)  # type: ignore[arg-type]


@cache
def _recipes() -> dict[str, Recipe]:
    recipes = _model_zoos() | _resnets() | _small_cnns() | _two_architectures() | _sirens() | _transformers()
    recipes["cifar10-wild-park"] = Recipe(
        data="cifar10", network=WILD_PARK, models=2800, epochs=100, batch_size=512, sampling="grid",
        learning_rate=(1e-3,), weight_decay=(0.0,), init=("torch",), init_scale=(1.0,), train_fraction=(1.0,),
        activation=("relu", "gelu", "tanh", "sigmoid", "leaky_relu"), optimiser=("adamw",),
    )  # fmt: skip
    recipes["digits-mlp"], recipes["digits-cnn"] = Recipe(), Recipe(network="cnn")
    for name, data in (("mnist", "mnist"), ("fashion-mnist", "fashion_mnist"), ("usps", "usps")):
        recipes[f"{name}-mlp"] = Recipe(data=data)
    return recipes


# ---- Model Zoos (Schürholt et al., 2022): CNN-s, CNN-l and ResNet-18

_SMALL: dict[str, Recipe] = {
    "mnist": Recipe(data="mnist"),
    "fashion-mnist": Recipe(data="fashion_mnist"),
    "usps": Recipe(data="usps", side=28),
    "svhn": Recipe(data="svhn", grey=True, side=28, crop=True),
    "cifar10": Recipe(data="cifar10", side=28),
    "stl10": Recipe(data="stl10", side=28),
    "eurosat": Recipe(data="eurosat", side=28),
}
"""Images of the CNN-s zoos: one or three channels of 28x28."""
_LARGE = {"cifar10": Recipe(data="cifar10"), "stl10": Recipe(data="stl10", side=32)}

Seed = tuple[str, str, float, float]
_SEED: dict[str, Seed] = {
    "mnist": ("tanh", "uniform", 3e-4, 0.0),
    "fashion-mnist": ("tanh", "uniform", 3e-4, 0.0),
    "usps": ("tanh", "uniform", 3e-4, 1e-3),
    "svhn": ("tanh", "uniform", 3e-3, 0.0),
    "cifar10": ("gelu", "kaiming_uniform", 1e-4, 1e-2),
    "stl10": ("tanh", "kaiming_uniform", 1e-4, 1e-3),
    "eurosat": ("gelu", "kaiming_uniform", 1e-4, 1e-2),  # as of CIFAR-10: the published one is not known
}
"""Activation, initialisation, learning rate and weight decay of the zoos of one configuration; all with Adam."""

Grid = tuple[tuple[OptimiserName, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...], int]
_DIGITS: Grid = (("adam", "sgd"), (1e-3, 1e-4), (1e-3, 1e-4), (0.0, 0.5), 2560)
_OTHERS: Grid = (("adam", "sgd"), (1e-3, 1e-4), (1e-2, 1e-3), (0.0, 0.5), 2560)
_COLOUR: Grid = (("adam", "sgd"), (1e-3,), (1e-2, 1e-3), (0.0, 0.5), 1280)
_GRIDS: dict[str, Grid] = {
    "mnist": _DIGITS,
    "fashion-mnist": _DIGITS,
    "usps": _OTHERS,
    "stl10": _OTHERS,
    "cifar10": _COLOUR,
    "eurosat": _COLOUR,  # as of CIFAR-10
    "svhn": (("sgd",), (1e-2, 1e-3, 1e-4), (0.0, 1e-3, 1e-1), (0.0, 0.3, 0.5), 4320),
}
"""Optimisers, learning rates, weight decays, dropout rates and number of models: ten a combination."""


def _model_zoos() -> dict[str, Recipe]:
    recipes = {}
    for label, network, images in (("cnn", "cnn_s", _SMALL), ("cnn-l", "cnn_l", _LARGE)):
        for name, base in images.items():
            common = replace(
                base, network=network, epochs=50, checkpoints=tuple(range(51)), batch_size=10, sampling="grid",
                init_scale=(1.0,), init_bias=0.01, train_fraction=(1.0,),
            )  # fmt: skip
            activation, init, rate, decay = _SEED[name]
            recipes[f"{name}-{label}-seed"] = replace(
                common, models=1000, activation=(activation,), init=(init,), optimiser=("adam",),
                learning_rate=(rate,), weight_decay=(decay,), dropout=(0.0,),
            )  # fmt: skip
            optimisers, rates, decays, dropouts, models = _GRIDS[name]
            grid = replace(
                common, models=models, activation=ALL_ACTIVATIONS, init=ALL_INITS, optimiser=optimisers,
                learning_rate=rates, weight_decay=decays, dropout=dropouts,
            )  # fmt: skip
            recipes[f"{name}-{label}-hyp-rand"] = grid
            recipes[f"{name}-{label}-hyp-fix"] = replace(grid, repeat_seeds=True)
    return recipes


def _resnets() -> dict[str, Recipe]:
    base = Recipe(
        network="resnet18", models=1000, epochs=60, checkpoints=tuple(range(61)), batch_size=128, sampling="grid",
        learning_rate=(0.1,), weight_decay=(5e-4,), dropout=(0.0,), init=("kaiming_uniform",), init_scale=(1.0,),
        activation=("relu",), optimiser=("sgd",), schedule="one_cycle", train_fraction=(1.0,), unit_models=1,
    )  # fmt: skip
    cifar10 = replace(base, data="cifar10", epochs=50, checkpoints=tuple(range(51)), batch_size=256,
                      learning_rate=(0.05,))  # fmt: skip
    return {
        "cifar10-resnet18": cifar10,
        "cifar100-resnet18": replace(base, data="cifar100"),
        "tiny-imagenet-resnet18": replace(base, data="tiny_imagenet"),
    }


# ---- Small CNN Zoo (Unterthiner et al., 2020)


def _small_cnns() -> dict[str, Recipe]:
    """A random search; the released code penalises squares without a half, so its penalty counts twice here."""
    base = Recipe(
        network="small_cnn", models=30_000, epochs=86, checkpoints=(0, 1, 2, 3, 20, 40, 60, 80, 86), batch_size=512,
        learning_rate=(5e-4, 5e-2), weight_decay=(2e-8, 2e-2), dropout=(0.0, 0.7), init_std=(1e-3, 0.5),
        init=("normal", "truncated_normal", "xavier_normal", "kaiming_normal", "orthogonal"),
        activation=("relu", "tanh"), optimiser=("adam", "rmsprop", "sgd"), momentum=(0.0,), grey=True,
    )  # fmt: skip
    images = {"mnist": "mnist", "fashion-mnist": "fashion_mnist", "cifar10": "cifar10", "svhn": "svhn"}
    return {f"{name}-small-cnn": replace(base, data=data) for name, data in images.items()}


# ---- Arch 1 and Arch 2 (Andreis et al., 2023)


def _two_architectures() -> dict[str, Recipe]:
    base = Recipe(
        models=2000, epochs=20, batch_size=128, learning_rate=(3e-4, 3e-2), weight_decay=(1e-8, 1e-2),
        dropout=(0.0, 0.5), init=("kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal"),
        activation=("relu", "tanh"), optimiser=("adam", "sgd"),
    )  # fmt: skip
    return {
        f"{name}-{network}": replace(base, data=name.replace("-", "_"), network=network)
        for name in ("mnist", "fashion-mnist", "cifar10", "svhn")
        for network in ("arch1", "arch2")
    }


# ---- SIREN: one network a signal


def _sirens() -> dict[str, Recipe]:
    base = Recipe(
        models=70_000, epochs=1000, checkpoints=(1000,), batch_size=1024, sampling="grid", learning_rate=(1e-3,),
        weight_decay=(0.0,), init=("siren",), init_scale=(1.0,),
    )  # fmt: skip
    recipes = {}
    for name, data, models in (("mnist", "mnist", 70_000), ("fashion-mnist", "fashion_mnist", 70_000),
                               ("cifar10", "cifar10", 60_000)):  # fmt: skip
        recipes[f"{name}-siren"] = replace(base, data=data, network="siren", models=models)
        recipes[f"{name}-siren-dws"] = replace(base, data=data, network="siren_dws", models=models)
    recipes["sine-siren"] = replace(
        base, data=WAVES, network="siren_wave", models=1000, epochs=1500, checkpoints=(1500,), batch_size=2000,
        weight_decay=(1e-4,),
    )  # fmt: skip
    return recipes


# ---- Transformers


def _transformers() -> dict[str, Recipe]:
    base = Recipe(
        models=1000, epochs=20, batch_size=128, learning_rate=(3e-4, 3e-3), weight_decay=(1e-4, 1e-1),
        init=("xavier_uniform", "xavier_normal", "torch"), activation=("gelu", "relu"), optimiser=("adamw",),
        schedule="one_cycle", unit_models=8,
    )  # fmt: skip
    return {
        "mnist-transformer": replace(base, data="mnist", network="transformer"),
        "fashion-mnist-transformer": replace(base, data="fashion_mnist", network="transformer"),
        "mnist-vit": replace(base, data="mnist", network="vit"),
        "cifar10-vit": replace(base, data="cifar10", network="vit"),
        "cifar100-vit": replace(base, data="cifar100", network="vit"),
    }
