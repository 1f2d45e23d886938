"""`weightspace zoo recipes`, and the option `--recipe` of `weightspace zoo train`."""

from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path

from cyclopts import App, Token
from cyclopts.argument import ArgumentCollection
from rich.console import Console
from rich.table import Table

OPTION = "--recipe"


def published_recipe(app: App, commands: Sequence[str], arguments: ArgumentCollection) -> None:
    """Fill the options that the user did not give from the recipe named by `--recipe`, as a configuration file would.

    Raises:
        UnknownName: There is no such recipe.
    """
    chosen = next((argument for argument in arguments if OPTION in argument.names and argument.has_tokens), None)
    if chosen is None:
        return
    from weightspace.zoo import recipes  # here, as every command of `zoo` comes by

    name = chosen.tokens[-1].value
    open_options = {a.keys[0]: a for a in arguments if len(a.keys) == 1 and not a.has_tokens}
    epochs = [a.tokens[-1].value for a in arguments if a.keys == ("epochs",) and a.has_tokens]
    # what is no number is refused when the option itself is read
    changes = {"epochs": int(epochs[0])} if epochs and epochs[0].isdecimal() and int(epochs[0]) else {}
    for field, value in asdict(recipes.by_name(name, **changes)).items():
        if field not in open_options or value is None or value is False:
            continue
        for index, one in enumerate(value if isinstance(value, tuple) else (value,)):
            token = Token(keyword=f"--{field.replace('_', '-')}", value=str(one), source=f"recipe {name}", index=index)
            open_options[field].append(token)


def recipes(pattern: str = "*", *, measure: bool = True, data_root: Path | None = None) -> None:
    """List the published zoos, and what they cost on this machine.

    Networks a minute are measured: a few steps and a part of the evaluation, for the recipes whose images are there,
    times the cores. Hours are those of all models and epochs.

    Args:
        pattern: Names to list, with wildcards: `mnist-*`.
        measure: Whether to measure; without, nothing is read.
        data_root: Folder of image data sets; the environment variable WEIGHTSPACE_DATA by default.
    """
    from weightspace.zoo import recipes as published
    from weightspace.zoo.cost import costs

    names = [name for name in published.names() if fnmatch(name, pattern)]
    table = Table("recipe", "network", "parameters", "models", "epochs", "models a minute", "hours")
    table.columns[0].no_wrap = True
    for column in table.columns[2:]:
        column.justify = "right"
    for cost in costs(names, measure=measure, root=data_root):
        recipe = published.by_name(cost.name)
        rate, hours = cost.models_per_minute, cost.hours
        table.add_row(
            cost.name, recipe.network, cost.parameters, f"{recipe.models:,}", str(recipe.epochs),
            "" if rate is None else f"{rate:.3g}", "" if hours is None else f"{hours:.3g}",
        )  # fmt: skip
    Console().print(table)
