"""The card of a zoo for a hub: what is in it, how its models differ, how good they are."""

import polars as pl

from weightspace.zoo.store import Zoo

BINS = 10
WIDTH = 40
"""Characters of the longest bar."""
MOST_VALUES = 8
"""Values of a factor that are listed; more of them are a range."""


def card(zoo: Zoo) -> str:
    """README of a repository with this zoo: YAML head, counts, generating factors, histogram of accuracy.

    >>> import torch
    >>> from weightspace.networks import Layout
    >>> table = pl.DataFrame({"model": ["a"], "step": [3], "metric.test_accuracy": [0.5]})
    >>> "1 model" in card(Zoo.in_memory(torch.zeros(1, 8), Layout.of(torch.nn.Linear(3, 2)), table, {"name": "tiny"}))
    True
    """
    name = str(zoo.header.get("name", "zoo"))
    steps = zoo.table["step"].unique().sort().to_list()
    span = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    layouts = zoo.table["layout"].value_counts(sort=True)
    sizes = {digest: sum(_size(t["shape"]) for t in tensors) for digest, tensors in zoo.header["layouts"].items()}
    lines = [
        "---", "tags:", "- weightspace", "- model-zoo", "---", "", f"# {name}", "",
        f"A zoo of trained neural networks: {_count(len(zoo.models), 'model')}, "
        f"{_count(len(zoo), 'checkpoint')} ({span}), {_count(len(layouts), 'layout')}.", "",
        "Read it with `weightspace zoo pull` or with any reader of parquet and safetensors: a row of "
        "`checkpoints/*.parquet` says in which line of which file of `weights/` a network lies, and `zoo.json` which "
        "tensor is where in a line.", "",
        "| layout | parameters | tensors | checkpoints |", "| --- | ---: | ---: | ---: |",
        *(f"| {digest} | {sizes[digest]} | {len(zoo.header['layouts'][digest])} | {count} |"
          for digest, count in layouts.iter_rows()),
    ]  # fmt: skip
    for key, title in (("network", "Network"), ("dataset", "Data set"), ("created_by", "Made by")):
        if zoo.header.get(key) is not None:
            lines += ["", f"**{title}.** {_words(zoo.header[key])}"]
    lines += _factors(zoo.table) + _accuracy(zoo)
    return "\n".join(lines) + "\n"


def _factors(table: pl.DataFrame) -> list[str]:
    columns = [name for name in table.columns if name.startswith("config.")]
    if not columns:
        return []
    lines = ["", "## Generating factors", "", "| factor | values |", "| --- | --- |"]
    for name in columns:
        values = table[name].drop_nulls().unique().sort()
        if values.dtype.is_numeric() and len(values) > MOST_VALUES:
            text = f"{_number(values[0])} to {_number(values[-1])}"
        else:
            text = ", ".join(map(_number, values[:MOST_VALUES]))
            text += f" and {len(values) - MOST_VALUES} more" if len(values) > MOST_VALUES else ""
        lines.append(f"| {name.removeprefix('config.')} | {text.replace('|', ' ').replace(chr(10), ' ')} |")
    return lines


def _accuracy(zoo: Zoo) -> list[str]:
    """Histogram over the last checkpoints, of the first kind of accuracy that is there."""
    for column in ("metric.test_accuracy", "metric.validation_accuracy", "metric.train_accuracy"):
        if column in zoo.table.columns and zoo.table[column].dtype.is_numeric():
            shares = zoo.last().table[column].cast(pl.Float64).drop_nulls().drop_nans()
            if len(shares):
                break
    else:
        return []
    bins = (shares * BINS).floor().clip(0, BINS - 1).cast(pl.Int64)
    counts = [int((bins == i).sum()) for i in range(BINS)]
    title = column.removeprefix("metric.").replace("_", " ")
    lines = ["", f"## {title.capitalize()} of the last checkpoints", "", "```text"]
    for place, count in enumerate(counts):
        bar = "█" * -(-count * WIDTH // max(counts))
        lines.append(f"{place / BINS:.1f} to {(place + 1) / BINS:.1f} {count:>7} {bar}".rstrip())
    return [*lines, "```"]


def _size(shape: list[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(inner)}" for key, inner in value.items())
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)
