"""A chunked hypernetwork (von Oswald et al., 2020): one small network makes a row piece by piece.

    chunk k of the values = head(z, e_k)        e_k a learned embedding of the chunk

Parameters do not grow with the target but by an embedding a chunk; chunks know nothing of layers. The head starts so
that values have variance 1 (hyperfan, Chang et al., 2020), and a fixed factor behind it gives each weight the variance
of its own layer.

Axes: b latent (network), z latent scalar, k chunk, e value of an embedding, v value.
"""

from collections.abc import Sequence
from math import ceil

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightspace.generators.perceptron import perceptron


class Chunks(nn.Module):
    """Latents to values, chunk by chunk.

    >>> Chunks(latent=32, embedding=8, hidden=(16,), size=100, values=1210)(torch.zeros(2, 32)).shape
    torch.Size([2, 1210])
    """

    def __init__(self, *, latent: int, embedding: int, hidden: Sequence[int], size: int, values: int):
        super().__init__()
        self.values = values
        self.embeddings = nn.Parameter(torch.zeros(ceil(values / size), embedding))
        self.head = perceptron(latent + embedding, hidden, size)

    def reset(self, generator: torch.Generator) -> None:
        """Embeddings of deviation 1; the head is a perceptron like all others."""
        nn.init.normal_(self.embeddings, generator=generator)

    def forward(self, latents: Float[Tensor, "b z"]) -> Float[Tensor, "b v"]:
        """All chunks of all latents in one call; what the last chunk has too much is cut."""
        b, k = len(latents), len(self.embeddings)
        pairs = torch.cat([latents[:, None].expand(b, k, -1), self.embeddings.expand(b, k, -1)], dim=2)
        return self.head(pairs.flatten(0, 1)).reshape(b, -1)[:, : self.values]
