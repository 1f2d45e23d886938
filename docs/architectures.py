"""Published kinds of networks, written small, on which symmetries are found and proved.

Each function builds a module and an input for it. Defaults are small, for tests; `write_symmetry_architectures.py` asks
for the published sizes. Untrained: symmetries do not depend on the values of weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightspace.networks import CNN, MLP, ResNet18, cnn_l, cnn_s

Built = tuple[nn.Module, tuple[Tensor, ...]]


def mlp(hidden: tuple[int, ...] = (7, 5), activation: str = "relu") -> Built:
    network = MLP(image_shape=(1, 4, 4), hidden=hidden, classes=3, activation=activation)
    return network.build(), (torch.zeros(4, 1, 4, 4),)


def small_cnn(config: CNN | None = None) -> Built:
    config = config or cnn_s((1, 28, 28), 10)
    return config.build(), (torch.zeros(2, *config.image_shape),)


def large_cnn() -> Built:
    return small_cnn(cnn_l((3, 32, 32), 10))


def resnet18(width: int = 4, size: int = 8) -> Built:
    return ResNet18(width=width, image_shape=(3, size, size)).build(), (torch.zeros(2, 3, size, size),)


class Bottleneck(nn.Module):
    """1x1, 3x3 (in groups for ResNeXt), 1x1, around a shortcut (He et al., 2016; Xie et al., 2017)."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3, self.bn3 = nn.Conv2d(middle, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return torch.relu(self.bn3(self.conv3(x)) + shortcut)


def resnet50(
    width: int = 5, blocks: tuple[int, ...] = (2, 1), size: int = 16, expand: int = 4, groups: int = 1
) -> Built:
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    channels = width
    for stage, count in enumerate(blocks):
        middle = width * 2**stage * (2 if groups > 1 else 1)
        outputs = expand * width * 2**stage
        for i in range(count):
            layers.append(Bottleneck(channels, middle, outputs, 2 if stage and not i else 1, groups))
            channels = outputs
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
    return nn.Sequential(*layers, *head), (torch.zeros(2, 3, size, size),)


def resnext(width: int = 6, blocks: tuple[int, ...] = (1, 1), size: int = 16, groups: int = 4) -> Built:
    return resnet50(width, blocks, size, groups=groups)


def vgg(plan: tuple[int, ...] = (4, 0, 6, 6, 0), hidden: int = 8, size: int = 8) -> Built:
    """Convolutions with batch-norm; 0 is a pooling (Simonyan and Zisserman, 2015)."""
    layers: list[nn.Module] = []
    channels, positions = 3, size
    for outputs in plan:
        if outputs:
            layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            channels = outputs
        else:
            layers.append(nn.MaxPool2d(2))
            positions //= 2
    head = [nn.Flatten(), nn.Linear(channels * positions**2, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, 10)]
    return nn.Sequential(*layers, *head), (torch.zeros(2, 3, size, size),)


class InvertedResidual(nn.Module):
    """Expand, depthwise, project (MobileNetV2; Sandler et al., 2018)."""

    def __init__(self, inputs: int, outputs: int, expand: int, stride: int):
        super().__init__()
        middle = inputs * expand
        self.expand = nn.Sequential(nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(middle, middle, 3, stride=stride, padding=1, groups=middle, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU6(),
        )
        self.project = nn.Sequential(nn.Conv2d(middle, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def mobilenet(
    stem: int = 4, plan: tuple[tuple[int, int, int, int], ...] = ((2, 6, 2, 2),), head: int = 9, size: int = 8
) -> Built:
    """Plan of (expansion, channels, blocks, first stride)."""
    layers: list[nn.Module] = [nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU6()]
    channels = stem
    for expand, outputs, count, stride in plan:
        for i in range(count):
            layers.append(InvertedResidual(channels, outputs, expand, 1 if i else stride))
            channels = outputs
    layers += [nn.Conv2d(channels, head, 1, bias=False), nn.BatchNorm2d(head), nn.ReLU6()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(head, 10)]
    return nn.Sequential(*layers), (torch.zeros(2, 3, size, size),)


class DenseLayer(nn.Module):
    """Its input beside what it adds (Huang et al., 2017)."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(y)))], 1)


def densenet(stem: int = 4, growth: int = 3, blocks: tuple[int, ...] = (2, 2), size: int = 8) -> Built:
    layers: list[nn.Module] = [nn.Conv2d(3, stem, 3, padding=1, bias=False)]
    channels = stem
    for block, count in enumerate(blocks):
        for _ in range(count):
            layers.append(DenseLayer(channels, growth))
            channels += growth
        if block < len(blocks) - 1:
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False)]
            layers.append(nn.AvgPool2d(2))
            channels //= 2
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
    return nn.Sequential(*layers), (torch.zeros(2, 3, size, size),)


class VisionTransformer(nn.Module):
    """Patches, class token, table of positions, encoder layers of torch (Dosovitskiy et al., 2021)."""

    def __init__(self, width: int, heads: int, depth: int, patch: int, size: int):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width))
        layers = [
            nn.TransformerEncoderLayer(width, heads, 4 * width, activation="gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        ]
        self.layers = nn.Sequential(*layers)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.layers(x))[:, 0])


def vit(width: int = 8, heads: int = 2, depth: int = 2, patch: int = 4, size: int = 8) -> Built:
    return VisionTransformer(width, heads, depth, patch, size), (torch.zeros(2, 3, size, size),)


class GPTBlock(nn.Module):
    """Causal attention with one map for queries, keys and values, then a GELU network (Radford et al., 2019)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.c_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.c_attn(self.ln_1(x)).split(width, dim=2)
        q, k, v = (part.view(batch, length, self.heads, width // self.heads).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).contiguous().view(batch, length, width))
        return x + self.c_out(F.gelu(self.c_fc(self.ln_2(x))))


class GPT(nn.Module):
    """A decoder whose output map is its embedding."""

    def __init__(self, vocabulary: int, context: int, width: int, heads: int, depth: int):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(GPTBlock(width, heads) for _ in range(depth))
        self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


def gpt2(vocabulary: int = 11, context: int = 6, width: int = 8, heads: int = 2, depth: int = 2) -> Built:
    tokens = torch.arange(2 * min(context, 8)).view(2, -1) % vocabulary
    return GPT(vocabulary, context, width, heads, depth), (tokens,)


class LlamaBlock(nn.Module):
    """RMS norm, rotary positions, queries that share keys and values, gated network (Touvron et al., 2023)."""

    def __init__(self, width: int, heads: int, kv_heads: int, hidden: int):
        super().__init__()
        self.head = width // heads
        self.input_norm, self.post_norm = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.q_proj = nn.Linear(width, heads * self.head, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * self.head, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * self.head, bias=False)
        self.o_proj = nn.Linear(heads * self.head, width, bias=False)
        self.gate_proj, self.up_proj = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.input_norm(x)
        q, k, v = (p(y).unflatten(-1, (-1, self.head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q), rotate(k)
        repeats = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o_proj(y.transpose(1, 2).flatten(2))
        y = self.post_norm(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


def rotate(x: Tensor) -> Tensor:
    """Rotary positions (Su et al., 2021): pairs of values of a head turn with the position."""
    half = x.shape[-1] // 2
    rates = 10000 ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
    angles = torch.outer(torch.arange(x.shape[-2], dtype=torch.float64, device=x.device), rates)
    cos, sin = (torch.cat([part, part], -1).to(x.dtype) for part in (angles.cos(), angles.sin()))
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Llama(nn.Module):
    """Llama-type blocks between an embedding and a map of its own."""

    def __init__(self, vocabulary: int, width: int, heads: int, kv_heads: int, hidden: int, depth: int):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(LlamaBlock(width, heads, kv_heads, hidden) for _ in range(depth))
        self.norm, self.lm_head = nn.RMSNorm(width, eps=1e-6), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


def llama(
    vocabulary: int = 11, width: int = 16, heads: int = 4, kv_heads: int = 2, hidden: int = 10, depth: int = 2
) -> Built:
    return Llama(vocabulary, width, heads, kv_heads, hidden, depth), (torch.arange(10).view(2, 5),)


class Recurrent(nn.Module):
    """Embedding, recurrent layers, a map of the last states."""

    def __init__(self, cell: type[nn.RNNBase], embedding: int, hidden: int, layers: int, bidirectional: bool):
        super().__init__()
        self.embed = nn.Embedding(12, embedding)
        self.cells = cell(embedding, hidden, layers, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(hidden * (1 + bidirectional), 5)

    def forward(self, tokens: Tensor) -> Tensor:
        out, _ = self.cells(self.embed(tokens))
        return self.head(out[:, -1])


def lstm(embedding: int = 5, hidden: int = 6, layers: int = 2, bidirectional: bool = True) -> Built:
    return Recurrent(nn.LSTM, embedding, hidden, layers, bidirectional), (torch.arange(12).view(2, 6),)


def gru(embedding: int = 5, hidden: int = 6, layers: int = 2, bidirectional: bool = False) -> Built:
    return Recurrent(nn.GRU, embedding, hidden, layers, bidirectional), (torch.arange(12).view(2, 6),)


class Down(nn.Sequential):
    """Two convolutions of one width."""

    def __init__(self, inputs: int, outputs: int):
        first, second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        super().__init__(first, nn.BatchNorm2d(outputs), nn.ReLU(), second, nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """Contracting and expanding path with concatenated shortcuts (Ronneberger et al., 2015)."""

    def __init__(self, width: int, depth: int):
        super().__init__()
        widths = [width * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList(Down(a, b) for a, b in pairwise([3, *widths]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in reversed(list(pairwise(widths))))
        self.merge = nn.ModuleList(Down(2 * a, a) for a in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        shortcuts = []
        for block in self.down[:-1]:
            shortcuts.append(block(x))
            x = F.max_pool2d(shortcuts[-1], 2)
        x = self.down[-1](x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([shortcuts.pop(), up(x)], 1))
        return self.head(x)


def unet(width: int = 4, depth: int = 2, size: int = 8) -> Built:
    return UNet(width, depth), (torch.zeros(1, 3, size, size),)


def conv1d(width: int = 6) -> Built:
    layers = [nn.Conv1d(2, width, 5), nn.ReLU(), nn.AvgPool1d(2), nn.Conv1d(width, width + 1, 3, padding="same")]
    return nn.Sequential(*layers, nn.GELU(), nn.Flatten(), nn.Linear(6 * (width + 1), 3)), (torch.zeros(2, 2, 16),)


def conv3d(width: int = 4) -> Built:
    layers = [nn.Conv3d(1, width, 3), nn.BatchNorm3d(width), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(width, width + 1, 1)]
    head = [nn.LeakyReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(width + 1, 3)]
    return nn.Sequential(*layers, *head), (torch.zeros(2, 1, 6, 6, 6),)


def group_norm(width: int = 6, groups: int = 3) -> Built:
    layers = [nn.Conv2d(1, width, 3), nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, 5, 3)]
    tail = [nn.InstanceNorm2d(5, affine=True), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)]
    return nn.Sequential(*layers, *tail), (torch.zeros(2, 1, 8, 8),)


class Sine(nn.Module):
    """The sine of 30 x."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * x)


def siren(hidden: int = 7, layers: int = 2) -> Built:
    """Coordinates to colours (Sitzmann et al., 2020)."""
    widths = [2, *[hidden] * layers]
    parts = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), Sine())]
    return nn.Sequential(*parts, nn.Linear(hidden, 3)), (torch.zeros(9, 2),)


class SqueezeExcite(nn.Module):
    """Channels weighted by what all channels hold (Hu et al., 2018)."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, width, 3), nn.Linear(width, 4)
        self.squeeze, self.excite = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.conv(images))
        weight = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3))))))
        return self.head((x * weight[:, :, None, None]).amax((2, 3)))


def squeeze_excite(width: int = 6, inner: int = 4) -> Built:
    return SqueezeExcite(width, inner), (torch.zeros(2, 3, 6, 6),)


@dataclass(frozen=True)
class Architecture:
    """A kind of network, small and in its published size."""

    name: str
    small: Callable[[], Built]
    published: Callable[[], Built]
    """The size of the results page; some are narrower or shallower than published, as the name says."""


ARCHITECTURES = (
    Architecture("MLP 16-512-512-512-3", mlp, lambda: mlp((512, 512, 512))),
    Architecture("CNN-s", small_cnn, small_cnn),
    Architecture("CNN-l", large_cnn, large_cnn),
    Architecture("ResNet-18, width 64", resnet18, lambda: resnet18(64, 16)),
    Architecture("ResNet-50", resnet50, lambda: resnet50(64, (3, 4, 6, 3), 32)),
    Architecture("ResNeXt-50, half width, 16 groups", resnext, lambda: resnext(32, (3, 4, 6, 3), 32, 16)),
    Architecture(
        "VGG-16 with batch-norm, 32x32 images",
        vgg,
        lambda: vgg((64, 64, 0, 128, 128, 0, *(256,) * 3, 0, *(512,) * 3, 0, *(512,) * 3, 0), 512, 32),
    ),
    Architecture(
        "MobileNetV2",
        mobilenet,
        lambda: mobilenet(
            32,
            ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
            1280,
            32,
        ),
    ),
    Architecture("DenseNet-BC, growth 12, 3 blocks of 16", densenet, lambda: densenet(24, 12, (16, 16, 16), 16)),
    Architecture("ViT-S/16, 32x32 images", vit, lambda: vit(384, 6, 12, 16, 32)),
    Architecture("GPT-2 type, width 384, 6 heads, 6 blocks", gpt2, lambda: gpt2(5000, 256, 384, 6, 6)),
    Architecture("Llama-type, width 512, 8 heads on 2, 4 blocks", llama, lambda: llama(1000, 512, 8, 2, 1376, 4)),
    Architecture("LSTM, 2 layers both ways", lstm, lambda: lstm(100, 128)),
    Architecture("GRU, 2 layers", gru, lambda: gru(100, 128)),
    Architecture("U-Net, width 64", unet, lambda: unet(64, 4, 16)),
    Architecture("Conv1d", conv1d, lambda: conv1d(64)),
    Architecture("Conv3d", conv3d, lambda: conv3d(32)),
    Architecture("CNN with group and instance norm", group_norm, lambda: group_norm(64, 8)),
    Architecture("SIREN, 3 layers of 256", siren, lambda: siren(256, 3)),
    Architecture("Squeeze and excitation", squeeze_excite, lambda: squeeze_excite(64, 16)),
)
