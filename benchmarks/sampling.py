"""Drawing latents at once against one density a latent scalar. python benchmarks/sampling.py

One core, about 15 s. Latents as a CNN-s has them in SANE (48 tokens of 128), 100 prompts, 100 draws, not decoded. The
plain way is that of the field's scripts: one `KernelDensity` of scikit-learn is fitted to each latent scalar and drawn
from. The likelihood of left-out prompts is compared with refitting a density for each of them. Processor time of one
thread; the best of three for what is fast.
"""

from collections.abc import Callable
from time import process_time

import numpy as np
import torch
from sklearn.neighbors import KernelDensity
from threadpoolctl import threadpool_limits
from torch import Tensor

from weightspace.generators import Gaussian, GaussianConfig, Interpolation, KDEConfig, LatentSampler, Uniform
from weightspace.generators.bandwidth import BANDWIDTHS, leave_one_out
from weightspace.generators.kde import draw

PROMPTS, TOKENS, LATENT, DRAWS, REPEATS = 100, 48, 128, 100, 3


class Latents:
    """In place of an autoencoder: densities ask for nothing of it."""

    header: dict = {}  # noqa: RUF012
    preparation = None

    def latents(self, zoo: object) -> None:
        """Unused."""

    def decode(self, latents: Tensor) -> None:
        """Unused."""


def seconds(act: Callable[[], object], repeats: int = REPEATS) -> float:
    times = []
    for _ in range(repeats):
        started = process_time()
        act()
        times.append(process_time() - started)
    return min(times)


def one_density_a_scalar(latents: np.ndarray, bandwidth: float) -> np.ndarray:
    columns = latents.reshape(len(latents), -1)
    drawn = [
        KernelDensity(bandwidth=bandwidth).fit(columns[:, [place]]).sample(DRAWS, random_state=place)[:, 0]
        for place in range(columns.shape[1])
    ]
    return np.stack(drawn, axis=1)


def refitted(points: np.ndarray) -> list[float]:
    found = []
    for bandwidth in BANDWIDTHS:
        left = [
            KernelDensity(bandwidth=bandwidth).fit(np.delete(points, i, axis=0)).score(points[i : i + 1])
            for i in range(len(points))
        ]
        found.append(float(np.mean(left)))
    return found


def main() -> None:
    torch.set_num_threads(1)
    latents = torch.randn(PROMPTS, TOKENS, LATENT, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with threadpool_limits(1):
        plain = seconds(lambda: one_density_a_scalar(latents.numpy(), 0.2), repeats=1)
        for mode in ("independent", "token", "joint", "smooth"):
            ours = seconds(lambda mode=mode: draw(latents, DRAWS, KDEConfig(mode=mode), generator))
            print(
                f"kde, {mode}: {1000 * ours:.1f} ms for {DRAWS} networks, plain {plain:.2f} s, ratio {plain / ours:.0f}"
            )
        samplers: list[LatentSampler] = [
            Uniform(Latents()),
            Gaussian(Latents()),
            Gaussian(Latents(), GaussianConfig(rank=16)),
            Interpolation(Latents()),
        ]
        for sampler in samplers:
            ours = seconds(lambda own=sampler: own.density(latents, generator)(DRAWS, generator))
            print(f"{sampler.config}: {1000 * ours:.1f} ms, ratio {plain / ours:.0f}")
        points = latents.flatten(1)[:, :LATENT]
        scaled = (points / points.std(0, correction=0)).numpy()
        theirs = seconds(lambda: refitted(scaled), repeats=1)
        ours = seconds(lambda: leave_one_out(points[:, None], "joint"))
        print(
            f"likelihood of {PROMPTS} left-out prompts at {len(BANDWIDTHS)} bandwidths: {1000 * ours:.1f} ms, refitted "
            f"{theirs:.2f} s, ratio {theirs / ours:.0f}"
        )


if __name__ == "__main__":
    main()
