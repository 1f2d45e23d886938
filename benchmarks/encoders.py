"""Encoders: processor time of training and inference, each beside the flat perceptron; and SNE beside its plain form.

python benchmarks/encoders.py

One core, about two minutes. 64 networks of the Small CNN Zoo (4970 parameters; a perceptron of a SIREN's size for
encoders that read nothing else), batches of 32: forward, backward and a step of Adam for training. Core-seconds a 1000
networks, the better of two, and the ratio to the flat perceptron in the same run. SNE's attention shortcuts are checked
to give the same outputs as plain attention blocks.
"""

from collections.abc import Callable
from time import process_time

import torch

from weightspace import encoders
from weightspace.encoders.sne import MAB, SNE, ScalarMAB, SetToVector, SNEConfig
from weightspace.errors import LayoutError
from weightspace.networks import MLP, PooledCNN
from weightspace.views.architecture import Architecture, Networks

COUNT, BATCH, ROUNDS = 64, 32, 2


def core_seconds(module: encoders.WeightEncoder, some: Networks) -> tuple[float, float]:
    """Of training and of inference, for 1000 networks."""
    adam = torch.optim.Adam(module.parameters(), lr=1e-4)
    batches = [some[i : i + BATCH] for i in range(0, COUNT, BATCH)]

    def train() -> None:
        for batch in batches:
            adam.zero_grad()
            module.train()(batch).square().mean().backward()
            adam.step()

    @torch.no_grad()
    def infer() -> None:
        for batch in batches:
            module.eval()(batch)

    return best(train), best(infer)


def best(work: Callable[[], None]) -> float:
    """Processor time of one core for 1000 networks; the first call warms up."""
    work()
    times = []
    for _ in range(ROUNDS):
        start = process_time()
        work()
        times.append(process_time() - start)
    return min(times) / COUNT * 1000


class PlainPool(SetToVector):
    """Pooling with keys and values of every element."""

    def forward(self, x: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
        """One vector a set."""
        return self.attention(self.seed.expand(len(x), -1, -1), torch.relu(self.before(x)), real)[:, 0]


def plain_sne(fast: SNE) -> SNE:
    """The same encoder with general attention blocks everywhere."""
    plain = SNE(SNEConfig(), [], 1)
    plain.load_state_dict(fast.state_dict())
    for module in plain.modules():
        if isinstance(module, ScalarMAB):
            module.__class__ = MAB
        elif isinstance(module, SetToVector):
            module.__class__ = PlainPool
    return plain


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    zoos = {}
    for network in (PooledCNN(), MLP(image_shape=(1, 1, 2), hidden=(32, 32), classes=1)):
        architecture = Architecture.of(network)
        zoos[type(network).__name__] = Networks.of(
            0.1 * torch.randn(COUNT, architecture.layout.parameters), architecture
        )
    print(f"{COUNT} networks, one thread; core-seconds a 1000 networks, and ratio to flat")
    print("encoder             networks     parameters   training  ratio   inference  ratio")
    flat: dict[str, tuple[float, float]] = {}
    for encoder in sorted(encoders.weight_encoders(), key=lambda found: (found.name != "flat", found.name)):
        for name, some in zoos.items():
            try:
                module = encoder(encoder.Config(), [some.architecture], 1)
            except LayoutError:
                continue
            if name == "MLP" and encoder.name not in ("flat", "dws"):
                continue
            module.prepare([some])
            training, inference = core_seconds(module, some)
            if encoder.name == "flat":
                flat[name] = training, inference
            ratios = training / flat[name][0], inference / flat[name][1]
            count = sum(p.numel() for p in module.parameters())
            print(
                f"{encoder.name:18}  {name:11} {count:11,}  {training:9.2f} {ratios[0]:6.1f}   {inference:9.3f} "
                f"{ratios[1]:6.1f}"
            )
    some = zoos["PooledCNN"]
    fast = SNE(SNEConfig(), [some.architecture], 1)
    fast.prepare([some])
    plain = plain_sne(fast)
    with torch.no_grad():
        torch.testing.assert_close(fast(some[:8]), plain(some[:8]), rtol=1e-4, atol=1e-5)
    ours, theirs = core_seconds(fast, some)[0], core_seconds(plain, some)[0]
    print(
        f"SNE, training: {ours:.1f} core-s a 1000 with shortcuts, {theirs:.1f} with plain attention: "
        f"{theirs / ours:.2f} times"
    )


if __name__ == "__main__":
    main()
