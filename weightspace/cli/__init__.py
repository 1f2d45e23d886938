"""The command line: what the commands are called, and how errors reach the user.

A command is a function elsewhere, named here by its import path and loaded when it is called; its signature is the
options, its docstring the help page. It returns nothing, and raises errors of `weightspace.errors`.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.text import Text

from weightspace import __version__
from weightspace.allocation import keep_freed_memory
from weightspace.cli.recipes import published_recipe
from weightspace.errors import WeightspaceError

COMMANDS = {
    "demo": ("weightspace.cli.demo:demo", "Run everything on scikit-learn's digits: train, learn, predict, generate."),
    "fit": ("weightspace.cli.encode:fit", "Train an encoder on a zoo, or with `fit diffusion` a generator."),
    "embed": ("weightspace.cli.encode:embed", "Write the embeddings of a zoo's checkpoints."),
    "predict": ("weightspace.cli.evaluate:predict", "Predict properties of unseen networks from their weights."),
    "benchmark": ("weightspace.cli.benchmark:benchmark", "Compare encoders on zoos: same splits, same targets."),
    "sample": ("weightspace.cli.sample:sample", "Generate new networks."),
    "evaluate": ("weightspace.cli.evaluate:evaluate", "Measure generated networks beside their baselines."),
    "novelty": (
        "weightspace.cli.evaluate:novelty",
        "Say whether networks are copies of a zoo's; also `evaluate novelty`.",
    ),
    "transfer": (
        "weightspace.cli.evaluate:transfer",
        "Train networks for another task or with few images; also `evaluate transfer`.",
    ),
    "ensemble": ("weightspace.cli.ensemble:ensemble", "Let the networks of a zoo answer together, and measure it."),
    "distill": ("weightspace.cli.ensemble:distill", "Train one network on what the networks of a zoo say together."),
    "report": ("weightspace.cli.report:report", "Write the page of a zoo or of a run."),
}
ZOO_COMMANDS = {
    "train": ("weightspace.cli.zoo:train", "Train a zoo, or finish one that was interrupted."),
    "info": ("weightspace.cli.zoo:info", "Say what is in a zoo."),
    "check": ("weightspace.cli.zoo:check", "Compare a zoo's files with what was committed."),
    "import": ("weightspace.cli.zoo_files:import_", "Make a zoo of checkpoints from elsewhere."),
    "export": ("weightspace.cli.zoo_files:export", "Write a zoo as files that other programs read."),
    "push": ("weightspace.cli.zoo_files:push", "Upload a zoo to the Hugging Face Hub."),
    "pull": ("weightspace.cli.zoo_files:pull", "Copy a zoo from the Hugging Face Hub."),
    "recipes": ("weightspace.cli.recipes:recipes", "List the published zoos and what they cost here."),
}
ALIGN_COMMANDS = {
    "zoo": ("weightspace.cli.align:zoo", "Write a zoo whose networks lie in one order of hidden units."),
    "pair": (
        "weightspace.cli.align:pair",
        "Measure the loss barrier between two networks, before and after alignment.",
    ),
}
MANIFOLD_COMMANDS = {
    "fit": ("weightspace.cli.manifold:fit", "Train a hypernetwork on images; its samples are networks."),
    "sample": ("weightspace.cli.manifold:sample", "Draw networks from it."),
}
DIFFUSION_COMMANDS = {
    "fit": ("weightspace.cli.diffusion:fit", "Train a diffusion or flow on a zoo; `sample` draws networks from it."),
    "gpt": ("weightspace.cli.diffusion:gpt", "Train G.pt: from a checkpoint to one with the loss that is asked for."),
}
TASK_COMMANDS = {
    "train": ("weightspace.cli.tasks:train", "Train a meta-zoo: many networks, each on some classes of a data set."),
    "fit": ("weightspace.cli.tasks:fit", "Learn from a meta-zoo which networks data sets have."),
}
USER_ERROR, INTERRUPTED, UNREAD = 2, 130, 141
"""Exit codes; the last one when the reader of a pipe has gone, as of a program that the signal ends."""
SPELLINGS: dict[tuple[str, ...], list[str]] = {
    ("fit", "manifold"): ["manifold", "fit"],
    ("evaluate", "novelty"): ["novelty"],
    ("evaluate", "transfer"): ["transfer"],
    ("fit", "diffusion"): ["diffusion", "fit"],
    ("fit", "gpt"): ["diffusion", "gpt"],
}
"""Other ways to begin a command: every method can be fitted by `fit METHOD`, whatever it learns from."""
app = App(
    name="weightspace",
    help="Learn from populations of neural networks: train zoos, embed weights, read properties, generate networks.",
    help_epilogue="Start with `weightspace demo`. Help on a command: `weightspace zoo train --help`.",
    version=__version__,
    version_flags=["--version"],
    result_action="return_none",
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative_iterable=(), consume_multiple=True),  # --epochs 0 1 5, and no --empty-epochs
)
zoo_app = App(
    name="zoo",
    help="Train, import, export and share zoos of networks, or look into one.",
    sort_key=0.5,
    config=published_recipe,
)
align_app = App(name="align", help="Bring networks into one order of hidden units.", sort_key=0.7)
manifold_app = App(
    name="manifold", help="Generate networks without a zoo: a hypernetwork learned from images.", sort_key=4.5
)
diffusion_app = App(
    name="diffusion", help="Generate networks from a zoo: diffusion, flow matching, G.pt.", sort_key=4.6
)
tasks_app = App(name="tasks", help="Learn from many tasks to generate networks for data sets never seen.", sort_key=4.7)
for _nested in (zoo_app, align_app, manifold_app, diffusion_app, tasks_app):
    app.command(_nested)
_APPS = (
    (app, COMMANDS),
    (zoo_app, ZOO_COMMANDS),
    (align_app, ALIGN_COMMANDS),
    (manifold_app, MANIFOLD_COMMANDS),
    (diffusion_app, DIFFUSION_COMMANDS),
    (tasks_app, TASK_COMMANDS),
)
for _app, _commands in _APPS:
    for _order, (_name, (_path, _help)) in enumerate(_commands.items()):
        _app.command(_path, name=_name, help=_help, sort_key=_order)


app.meta.suppress_keyboard_interrupt = False


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    debug: Annotated[bool, Parameter(negative="", help="Show the traceback of an error.")] = False,
) -> int:
    """Run one command and turn the user's errors into one sentence and an exit code."""
    keep_freed_memory()
    try:
        app(tokens, exit_on_error=False, print_error=False, result_action="return_none")
    except (WeightspaceError, CycloptsError, OSError) as error:
        if debug:
            raise
        _say(_sentence(error))
        return USER_ERROR
    except KeyboardInterrupt:
        if debug:
            raise
        _say("interrupted")
        return INTERRUPTED
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for the user's error, 130 when interrupted, 141 when unread.

    Args:
        arguments: The words after the program's name; those of the process if left out.

    >>> main(["--version"])
    0.1.0
    0
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    words[:2] = SPELLINGS.get(tuple(words[:2]), words[:2])
    try:
        return app.meta(words, result_action="return_value") or 0
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # rich has silenced the output and wants to end
            return UNREAD
        raise


def _say(sentence: str) -> None:
    Console(stderr=True).print(Text.assemble(("error: ", "bold red"), sentence), soft_wrap=True)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:  # a full disk, a folder without permission
        return f"{error.strerror}: {os.fspath(error.filename)}" if error.filename else error.strerror
    return " ".join(str(error).split())
