"""Steps of populations as one compiled program, on a GPU replayed as one CUDA graph.

What differs between networks (learning rate, weight decay, momentum) are tensors, so it is data of the program; what
changes from step to step (the schedule, Adam's corrections) becomes tensors here, since a number in Python would be a
constant, and every step another program. Dropout masks are drawn outside, see `docs/decisions.md`. Nothing breaks the
graph: it is compiled whole or refused.
"""

import os
import shutil
from collections.abc import Sequence

import torch

from weightspace.errors import ConfigError
from weightspace.networks.optimisers import OptimiserState, PopulationOptimiser, Step


def compiled_step(step: Step, optimiser: PopulationOptimiser, *, backend: str = "inductor") -> Step:
    """The same step, compiled when it is first taken.

    Earlier compiled programs of this process are dropped: the next population is another program of the same code, and
    the compiler allows a piece of code only a few.

    Args:
        backend: Of `torch.compile`; others than `inductor` are for tests.

    Raises:
        ConfigError: There is no C++ compiler; or, when it is taken, the step cannot be compiled.
    """
    if backend == "inductor" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise ConfigError("compiling needs a C++ compiler, g++ or clang++: install one, or train without it")
    on_gpu = optimiser.rows.is_cuda
    torch.compiler.reset()
    # "reduce-overhead" are CUDA graphs; small networks spend their step on launching kernels
    mode = "reduce-overhead" if on_gpu and backend == "inductor" else None
    traced = False
    program = torch.compile(step, fullgraph=True, dynamic=False, mode=mode, backend=backend)

    def take(state: OptimiserState, factors: Sequence[float], *data: object) -> OptimiserState:
        nonlocal traced
        if not traced:
            step(state, factors, *data)  # fills what is computed once and kept, which the compiler cannot trace
            traced = True
        values = torch.tensor(factors, device=state.rows.device).unbind()
        if on_gpu:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            after = program(state, values, *data)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"the step of these networks cannot be compiled, train without it: {reason}") from error
        # the next replay of a CUDA graph writes where this one wrote
        return OptimiserState(*(part.clone() for part in after)) if on_gpu else after

    return take
