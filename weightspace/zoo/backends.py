"""Where work units run: in this process, in a pool of processes, or on a Ray cluster.

A worker is the same function everywhere: one unit in, its part, rows and table out. Results come as they are finished.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import joblib
import numpy as np
import polars as pl

from weightspace.errors import ConfigError, MissingExtra, unknown_name
from weightspace.zoo.units import Unit

Backend = Literal["processes", "ray"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
Trained = tuple[str, np.ndarray, pl.DataFrame]
"""Part, rows and table of a unit."""
RETRIES = 5
"""How often a unit whose machine was lost is given to another one."""
WAITING = 2
"""Units in the queue of a cluster for every core it has."""


def run_units(
    work: Callable[[Unit], Trained], units: Sequence[Unit], *, backend: Backend = "processes", workers: int = 1
) -> Iterator[Trained]:
    """The results of the units as they are finished, in any order.

    Args:
        work: Trains a unit; it is sent to the workers, so it must be picklable.
        workers: Processes of `processes`; 1 means this process. A Ray cluster brings its own.

    Raises:
        UnknownName: There is no such backend.
        MissingExtra: Ray is not installed.
    """
    if backend not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS)
    if backend == "ray":
        yield from _on_ray(work, units)
    elif workers > 1:
        pool = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", batch_size=1, pre_dispatch=workers)
        yield from pool(joblib.delayed(work)(unit) for unit in units)
    else:
        yield from map(work, units)


def _call(work: Callable[[Unit], Trained], unit: Unit) -> Trained:
    return work(unit)  # Ray takes functions only, and work is a part of one


def _on_ray(work: Callable[[Unit], Trained], units: Sequence[Unit]) -> Iterator[Trained]:
    """A task a unit; Ray runs those of a lost machine again."""
    try:
        import ray
    except ImportError as error:
        raise MissingExtra(
            "the backend ray needs the package ray: install weightspace[ray], or leave --backend out"
        ) from error
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False)  # the cluster of RAY_ADDRESS or of this machine; a local one where there is none
    try:
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(_call)
        pending: deque[Unit] = deque(units)
        running: set[ray.ObjectRef] = set()
        while pending or running:
            room = WAITING * max(1, int(ray.cluster_resources().get("CPU", 1))) - len(running)
            running |= {task.remote(work, pending.popleft()) for _ in range(min(room, len(pending)))}
            done, _ = ray.wait(list(running), num_returns=1, timeout=5)  # machines may join meanwhile
            for reference in done:
                running.remove(reference)
                try:
                    yield ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error  # the worker's own error, without Ray's page around it
                except ray.exceptions.RayError as error:
                    raise ConfigError(
                        f"the Ray cluster lost a unit {RETRIES + 1} times ({type(error).__name__}): run the command "
                        "again to finish the zoo, with fewer tasks a machine if memory ran out"
                    ) from error
    finally:
        if started:
            ray.shutdown()
