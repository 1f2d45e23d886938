"""SANE: preparing a zoo, training, and drawing networks, beside the published pipeline's structure.

python benchmarks/sane.py: two cores, about two minutes.

Steps of training are taken in float32 and under automatic mixed precision in bfloat16 (`--precision bf16-mixed`); the
latter is measured against the plain step in the same precision, and against the plain step in float32. Attention in
bfloat16 is written out on processors: its line has the fused kernel as the plain way.

The plain way is what the field's scripts do. A file a checkpoint; the last one of each model is matched by coordinate
descent (the loop of `alignment.py`), its permutation applied to all; layers are standardised and cut one by one. For
training every sample is stored in permuted copies of all its tokens, of which a batch picks one a sample and cuts a
window; views are encoded one after the other, with positions a sample and attention as matrices. One kernel density a
latent scalar is fitted and sampled.

CNN-s networks (2464 parameters, 48 tokens), independent initialisations. Processor time of one thread, the better of
several alternating turns; loading is from files in the system's cache. Peak memory is that of a process, over what it
has after its imports; Linux alone tells it.
"""

import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import process_time

import polars as pl
import torch
from alignment import fastest, published_matching
from sklearn.neighbors import KernelDensity
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace import networks
from weightspace.encoders.preparation import Preparation
from weightspace.encoders.sane import SANE, SANEModule
from weightspace.encoders.sane_config import SANEConfig
from weightspace.encoders.transformer import attention, nt_xent
from weightspace.generators.kde import KDEConfig, draw
from weightspace.networks.layout import Layout
from weightspace.symmetry import PermutationGroup, chain_groups, random_permutations
from weightspace.zoo import Zoo
from weightspace.zoo import open as open_zoo

NETWORK = networks.by_name("cnn_s", (1, 28, 28), 10)
LAYOUT = Layout.of(NETWORK.build())
GROUPS = chain_groups(LAYOUT)
CHECKPOINTS, TOKEN, WINDOW, BATCH = 3, 201, 32, 32
State = dict[str, Tensor]


def some_zoo(models: int) -> Zoo:
    """Runs of three checkpoints each, of which the later ones are a little further."""
    g = torch.Generator().manual_seed(0)
    start = torch.randn(models, 1, LAYOUT.parameters, generator=g)
    steps = 0.1 * torch.randn(models, CHECKPOINTS, LAYOUT.parameters, generator=g).cumsum(1)
    table = pl.DataFrame(
        {
            "model": [f"{i // CHECKPOINTS:04d}" for i in range(models * CHECKPOINTS)],
            "step": [*range(CHECKPOINTS)] * models,
        }
    )
    header = {"name": "benchmark", "network": networks.to_json(NETWORK)}
    return Zoo.in_memory((start + steps).flatten(0, 1), LAYOUT, table, header)


# --- the plain way ---------------------------------------------------------------------------------------------------


def weights_of(state: State) -> Iterator[tuple[str, Tensor]]:
    """The matrix of each layer, its bias as last column."""
    for name, value in state.items():
        if name.endswith("weight"):
            bias = state.get(name.replace("weight", "bias"))
            matrix = value.reshape(len(value), -1)
            yield name, matrix if bias is None else torch.cat([matrix, bias[:, None]], dim=1)


def plain_tokens(state: State) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, mask and positions of one network, layer by layer."""
    tokens, mask, positions = [], [], []
    for number, (_, matrix) in enumerate(weights_of(state)):
        pieces = math.ceil(matrix.shape[1] / TOKEN)
        padded = F.pad(matrix, (0, pieces * TOKEN - matrix.shape[1]))
        real = F.pad(torch.ones_like(matrix), (0, pieces * TOKEN - matrix.shape[1]))
        tokens.append(padded.reshape(-1, TOKEN))
        mask.append(real.reshape(-1, TOKEN))
        channel = torch.arange(len(matrix)).repeat_interleave(pieces)
        positions.append(torch.stack([torch.zeros_like(channel), torch.full_like(channel, number), channel], dim=1))
    where = torch.cat(positions)
    where[:, 0] = torch.arange(len(where))
    return torch.cat(tokens), torch.cat(mask), where


def permuted_state(state: State, groups: tuple[PermutationGroup, ...], permutation: dict[str, Tensor]) -> State:
    """One network in another order of units, tensor by tensor."""
    made = dict(state)
    for group in groups:
        for place in group.places:
            index = (permutation[group.name][:, None] * place.block + torch.arange(place.block)).flatten()
            made[place.tensor] = made[place.tensor].index_select(place.axis, index)
    return made


def units_moved(before: State, after: State, groups: tuple[PermutationGroup, ...]) -> dict[str, Tensor]:
    """The permutation that a matching found, read from the biases that it moved."""
    found = {}
    for group in groups:
        bias = next(place.tensor for place in group.places if place.tensor.endswith("bias"))
        found[group.name] = (after[bias][:, None] == before[bias].double()[None]).int().argmax(1)
    return found


def plain_preparation(
    folder: Path, models: int, reference: State, statistics: dict[str, tuple[float, float]]
) -> Tensor:
    """Load, match, permute, standardise and cut; one network after the other."""
    generator, samples = torch.Generator().manual_seed(0), []
    for model in range(models):
        states = [torch.load(folder / f"{model}-{step}.pt", weights_only=True) for step in range(CHECKPOINTS)]
        matched = published_matching(reference, states[-1], GROUPS, generator)
        permutation = units_moved(states[-1], matched, GROUPS)
        for state in states:
            aligned = permuted_state(state, GROUPS, permutation)
            for name in aligned:
                mean, std = statistics[name.rpartition(".")[0]]
                aligned[name] = (aligned[name] - mean) / std
            samples.append(plain_tokens(aligned)[0])
    return torch.stack(samples)


def stored_copies(zoo: Zoo, copies: int) -> list[Tensor]:
    """Each sample's tokens and so many permuted copies of them."""
    generator, samples = torch.Generator().manual_seed(0), []
    for row in zoo.weights():
        state = LAYOUT.unflatten(row)
        drawn = random_permutations(GROUPS, copies, generator)
        views = [plain_tokens(state)[0]]
        for i in range(copies):
            permutation = {group.name: drawn[k][i] for k, group in enumerate(GROUPS)}
            views.append(plain_tokens(permuted_state(state, GROUPS, permutation))[0])
        samples.append(torch.stack(views))
    return samples


class PlainModule(SANEModule):
    """The same parameters; attention as matrices, positions a sample."""

    def encode(self, tokens: Tensor, positions: Tensor, shown: Tensor | None = None) -> Tensor:
        """Latents."""
        return self.latent_out(self.blocks(self.encoder, self.token_in(tokens) + self.position(positions)))

    def decode(self, latents: Tensor, positions: Tensor) -> Tensor:
        """Tokens."""
        return self.token_out(self.blocks(self.decoder, self.latent_in(latents) + self.position(positions)))

    @staticmethod
    def blocks(blocks: nn.Sequential, x: Tensor) -> Tensor:
        """Attention written out."""
        for block in blocks:
            y = block.attention_norm(x)
            q, k, v = block.attention_in(y).split(y.shape[2], dim=2)
            q, k, v = (part.view(*part.shape[:2], block.heads, -1).transpose(1, 2) for part in (q, k, v))
            scores = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).softmax(3)
            x = x + block.attention_out((scores @ v).transpose(1, 2).contiguous().view(*y.shape))
            x = x + block.mlp_out(F.gelu(block.mlp_in(block.mlp_norm(x))))
        return x


def plain_batch(samples: list[Tensor], mask: Tensor, positions: Tensor, some: list[int]) -> list[Tensor]:
    """Two views of a window of some samples, collated one by one; noise on both."""
    start = int(torch.randint(len(mask) - WINDOW + 1, ()))
    columns: list[list[Tensor]] = [[], [], [], []]
    for i in some:
        views = samples[i][[0, int(torch.randint(1, len(samples[i]), ()))]].clone()[:, start : start + WINDOW]
        views = views * (1 + 0.1 * torch.randn_like(views))
        for column, value in zip(
            columns,
            (*views, mask[start : start + WINDOW].clone(), positions[start : start + WINDOW].clone()),
            strict=True,
        ):
            column.append(value)
    return [torch.stack(column) for column in columns]


def plain_loss(module: PlainModule, batch: list[Tensor], config: SANEConfig) -> Tensor:
    """Views one after the other; the error over all entries, padding too."""
    first, second, mask, positions = batch
    latents = [module.encode(view, positions) for view in (first, second)]
    errors = [
        (mask * module.decode(latent, positions) - view).square().mean()
        for latent, view in zip(latents, (first, second), strict=True)
    ]
    contrast = nt_xent(*(module.project(latent) for latent in latents), config.temperature)
    return (1 - config.contrast) * sum(errors) / 2 + config.contrast * contrast


def plain_draw(latents: Tensor, n: int, bandwidth: float) -> Tensor:
    """One kernel density a latent scalar."""
    drawn = torch.empty(n, *latents.shape[1:])
    for token in range(latents.shape[1]):
        for value in range(latents.shape[2]):
            density = KernelDensity(bandwidth=bandwidth, kernel="gaussian").fit(latents[:, token, value, None].numpy())
            drawn[:, token, value] = torch.from_numpy(density.sample(n)[:, 0])
    return drawn


# --- comparisons -----------------------------------------------------------------------------------------------------


def line(name: str, unit: str, count: int, seconds: list[float], turns: str = "") -> str:
    """One line: both ways and their ratio."""
    ours, theirs = (count / each for each in seconds)
    return f"{name:>24}: {ours:.5g} {unit}/s, plain {theirs:.4g} {unit}/s, ratio {ours / theirs:.2f}{turns}"


def preparing(models: int, plain_models: int) -> str:
    """Load, align, standardise and tokenise."""
    zoo = some_zoo(models)
    fitted = Preparation.fit(zoo.take(range(64 * CHECKPOINTS)))
    sane = SANE(config(128, 2), fitted, zoo.header)
    state = LAYOUT.unflatten(fitted.reference)
    scale = {
        name: LAYOUT.unflatten(values) for name, values in (("mean", fitted.scale.mean), ("std", fitted.scale.std))
    }
    layers = {spec.layer_name: spec.name for spec in LAYOUT.tensors}
    statistics = {
        layer: (float(scale["mean"][name].flatten()[0]), float(scale["std"][name].flatten()[0]))
        for layer, name in layers.items()
    }
    found: dict[str, Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        zoo.save(Path(folder) / "zoo")
        for model in range(plain_models):
            for step, row in enumerate(zoo.weights()[model * CHECKPOINTS : (model + 1) * CHECKPOINTS]):
                torch.save(
                    {k: v.clone() for k, v in LAYOUT.unflatten(row).items()}, Path(folder) / f"{model}-{step}.pt"
                )

        def ours() -> None:
            opened = open_zoo(Path(folder) / "zoo")
            found["ours"] = sane.view.tokenise(fitted.apply(opened))

        def plain() -> None:
            found["plain"] = plain_preparation(Path(folder), plain_models, state, statistics)

        seconds = fastest(3, ours, plain, clock=process_time)
    both = [found["ours"][: len(found["plain"])], found["plain"]]
    same = float((both[0] == both[1]).flatten(1).all(1).float().mean())
    near = float((both[0] - both[1]).abs().mean())
    seconds[0] *= plain_models / models
    return line(
        "prepare a zoo", "models", plain_models, seconds,
        f"; {same:.0%} of the networks end in the same tokens, mean difference {near:.1e}",
    )  # fmt: skip


def config(width: int, depth: int, latent: int = 128) -> SANEConfig:
    """A size for CNN-s."""
    return SANEConfig(
        token_width=TOKEN, max_positions=(48, 5, 20), window=WINDOW, halo=8, width=width, heads=4, depth=depth,
        latent=latent,
    )  # fmt: skip


def training_step(width: int, depth: int, *, networks: int = 64, copies: int = 20, turns: int = 3) -> list[str]:
    """A step of training on a batch of windows, both views, drawn and learned from."""
    c, zoo = config(width, depth), some_zoo(networks // CHECKPOINTS + 1)
    sane = SANE(c, Preparation.fit(zoo, align=False), zoo.header)
    sane.module.reset(torch.Generator().manual_seed(0))
    rows, generator = sane.preparation.apply(zoo), torch.Generator().manual_seed(0)
    plain = PlainModule(c)
    plain.load_state_dict(sane.module.state_dict())
    samples = stored_copies(zoo.with_weights(rows), copies)
    _, mask, positions = plain_tokens(LAYOUT.unflatten(rows[0]))
    optimisers = [torch.optim.AdamW(sane.module.parameters(), fused=True), torch.optim.AdamW(plain.parameters())]

    def learn(optimiser: torch.optim.Optimizer, loss: Callable[[], Tensor], mixed: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            found = loss()
        optimiser.zero_grad()
        found.backward()
        nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
        optimiser.step()

    def our_batch() -> tuple:
        return sane._views(rows[torch.randperm(len(rows), generator=generator)[:BATCH]], generator)

    def their_batch() -> list[Tensor]:
        return plain_batch(samples, mask, positions, torch.randperm(len(samples))[:BATCH].tolist())

    def ours(mixed: bool) -> None:
        learn(optimisers[0], lambda: sane.module(*our_batch())["loss"], mixed)

    def theirs(mixed: bool) -> None:
        learn(optimisers[1], lambda: plain_loss(plain, their_batch(), c), mixed)

    ways = [partial(way, mixed) for mixed in (False, True) for way in (ours, theirs)]
    for way in ways:
        way()
    size = sum(p.numel() for p in plain.parameters()) / 1e6
    single, plain_single, half, plain_half = fastest(turns, *ways, clock=process_time)
    batches = fastest(turns, our_batch, their_batch, clock=process_time)
    against = f"; against plain in float32 {plain_single / half:.2f}"
    return [
        line(f"train, {size:.1f} M, float32", "windows", BATCH, [single, plain_single]),
        line(f"train, {size:.1f} M, bf16-mixed", "windows", BATCH, [half, plain_half], against),
        line("of this drawing windows", "windows", BATCH, batches),
    ]


def attending(width: int, *, windows: int = 64, heads: int = 4, turns: int = 20) -> str:
    """Attention in bfloat16, forward and backward: written out, as on processors, and the fused kernel."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, windows, heads, WINDOW, width, generator=generator).bfloat16().requires_grad_()

    def through(way: Callable[..., Tensor]) -> None:
        qkv.grad = None
        way(*qkv).sum().backward()

    ways = [partial(through, attention), partial(through, F.scaled_dot_product_attention)]
    return line(f"bf16 attention, heads of {width}", "windows", windows, fastest(turns, *ways, clock=process_time))


def drawing(prompts: int, n: int) -> str:
    """Latents of networks from the kernel density of each scalar."""
    latents = torch.randn(prompts, 48, 128, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)

    def ours() -> Tensor:
        return draw(latents, n, KDEConfig(mode="independent", bandwidth=0.2), generator)[0]

    def plain() -> Tensor:
        return plain_draw(latents, n, 0.2)

    return line("draw 100 networks", "networks", n, fastest(2, ours, plain, clock=process_time))


def high_water() -> int:
    """Most memory that this process has had, in kB; `getrusage` would count its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def peak(way: str) -> None:
    """Print the memory, in MB, that holding a zoo for training takes in a process of its own."""
    before = high_water()
    zoo = some_zoo(20)
    if way == "ours":
        sane = SANE(config(128, 2), Preparation.fit(zoo, align=False), zoo.header)
        rows, generator = sane.preparation.apply(zoo), torch.Generator().manual_seed(0)
        for _ in range(20):
            sane._views(rows[torch.randperm(len(rows), generator=generator)[:BATCH]], generator)
    else:
        samples = stored_copies(zoo, 200)
        _, mask, positions = plain_tokens(LAYOUT.unflatten(zoo.weights()[0]))
        for _ in range(20):
            plain_batch(samples, mask, positions, torch.randperm(len(samples))[:BATCH].tolist())
    print((high_water() - before) / 1024)


def memory() -> str:
    """Peak memory of both ways."""
    ours, plain = (
        float(subprocess.run([sys.executable, __file__, way], check=True, capture_output=True, text=True).stdout)
        for way in ("ours", "plain")
    )
    return f"{'peak memory':>24}: {ours:.0f} MB, plain {plain:.0f} MB for 60 checkpoints with 200 permuted copies"


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    jobs: list[Callable[[], str | list[str]]] = [
        lambda: preparing(models=600, plain_models=100),
        lambda: training_step(128, 2, turns=8),
        lambda: training_step(256, 4),
        lambda: attending(32),
        lambda: attending(64),
        lambda: drawing(prompts=15, n=100),
        memory,
    ]
    for job in jobs:
        found = job()
        print("\n".join([found] if isinstance(found, str) else found), flush=True)


if __name__ == "__main__":
    peak(sys.argv[1]) if len(sys.argv) > 1 else main()
