"""Compiled steps do what the others do. In processes of their own: the checks of shapes and types are off there."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from weightspace.errors import ConfigError
from weightspace.networks import compilation
from weightspace.networks.optimisers import PopulationOptimiser

BOTH = """
import sys
from functools import partial

import torch

from weightspace.networks import CNN, MLP, SIREN, compilation, fitting, population
from weightspace.networks.population import Hyperparameters, initial_rows, train_population
from weightspace.networks.siren import pixel_grid

backend, kind, optimiser = sys.argv[1:]
limited = partial(compilation.compiled_step, backend=backend)
population.compiled_step = fitting.compiled_step = limited
network = {
    "mlp": MLP(image_shape=(1, 4, 4), hidden=(5,)),
    "norm": CNN(image_shape=(1, 4, 4), channels=(3,), kernels=(3,), pools=(2,), batch_norm=True),
    "siren": SIREN(hidden=(4,)),
}[kind]
generator = torch.Generator().manual_seed(0)
seeds = torch.tensor([3, 5, 8])
h = Hyperparameters(
    seeds=seeds,
    learning_rate=torch.tensor([1e-2, 3e-3, 1e38]),  # the last one diverges
    weight_decay=torch.tensor([0.0, 1e-3, 0.0]),
    dropout=torch.tensor([0.0, 0.4, 0.2]),
    train_fraction=torch.tensor([1.0, 0.5, 1.0]),
)
rows = initial_rows(network, seeds, "siren" if kind == "siren" else "kaiming_uniform", torch.ones(3))
options = {"epochs": 2, "optimiser": optimiser, "schedule": "one_cycle"}
if kind == "siren":
    train = partial(fitting.fit_population, network, rows, h, pixel_grid(4, 4), torch.rand(3, 16, 1), batch_size=8)
else:
    images, labels = torch.randn(20, 1, 4, 4, generator=generator), torch.randint(10, (20,), generator=generator)
    train = partial(train_population, network, rows, h, images, labels, batch_size=10)
usual, compiled = (list(train(**options, compile=compile)) for compile in (False, True))
assert usual[-1][2].tolist() == [0, 0, 1] and not usual[-1][1].equal(usual[0][1])
for (epoch, expected, diverged), (other, found, too) in zip(usual, compiled, strict=True):
    assert epoch == other and diverged.equal(too)
    # float32, sums in another order; of the one that diverges, on its way to infinity, only that it is finite
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-4, atol=1e-6)
    assert found.isfinite().all()
assert not backend.startswith("counted") or len(programs) == 1
print("equal")
"""
COUNTED = """
import torch
programs = []

def counted(graph, examples):
    programs.append(graph)
    return graph.forward

torch._dynamo.register_backend(counted, name="counted")
"""
"""A backend that runs what it is given as it is, and counts: one program for all steps."""


def run(script: str, *arguments: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.stdout.endswith("equal\n"), ended.stderr[-3000:]


@pytest.mark.parametrize(("kind", "optimiser"), [("norm", "adam")])
def test_a_compiled_step_is_one_program_and_gives_the_same_networks(kind, optimiser):
    run(COUNTED + BOTH, "counted", kind, optimiser)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "optimiser"), [("norm", "sgd"), ("siren", "adam")])
def test_the_compilers_programs_give_the_same_networks(kind, optimiser):
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler here")
    run(BOTH, "inductor", kind, optimiser)


def optimiser() -> PopulationOptimiser:
    one = torch.ones(1)
    return PopulationOptimiser("sgd", torch.ones(1, 2), one, one, one, schedule="constant", steps=1)


def test_without_a_compiler_it_is_refused(monkeypatch):
    monkeypatch.setattr(compilation.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler"):
        compilation.compiled_step(lambda state, factors: state, optimiser())


def test_a_step_that_breaks_the_graph_is_refused():
    def step(state, factors):
        torch._dynamo.graph_break()
        return state

    with pytest.raises(ConfigError, match="cannot be compiled, train without it"):
        optimiser().take(compilation.compiled_step(step, optimiser(), backend="eager"))
