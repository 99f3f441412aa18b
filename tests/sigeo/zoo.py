"""Models of every kind that `capture` meets, each with inputs and labels of a number of samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 5


def images(samples: int) -> tuple[Tensor, ...]:
    return (torch.randn(samples, 3, 8, 8, dtype=torch.float64),)


def tokens(samples: int) -> tuple[Tensor, ...]:
    """As many tokens as samples, so that no size tells the two apart."""
    return (torch.randint(0, 20, (samples, samples)),)


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]


class Function(nn.Module):
    """A module of given parts and a function of them."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module | nn.Parameter):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = function

    def forward(self, *inputs):
        return self.function(self, *inputs)


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4),
        nn.GroupNorm(3, 12),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        *head(12),
    )


def smooth_convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 20, 3, padding="same"), nn.GELU(), nn.Conv2d(20, 9, 2, bias=False), nn.Tanh(),
        *head(9),
    )  # fmt: skip


def batch_norm() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Tanh(), nn.Conv2d(6, 7, 1),
        nn.BatchNorm2d(7, affine=False), *head(7),
    )  # fmt: skip
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model.eval()


def inverted_residual() -> nn.Module:
    """MobileNetV2-like: expansion, depthwise, projection, and a residual sum."""
    block = nn.Sequential(
        nn.Conv2d(8, 24, 1, bias=False), nn.GroupNorm(4, 24), nn.ReLU6(),
        nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.GroupNorm(4, 24), nn.ReLU6(),
        nn.Conv2d(24, 8, 1, bias=False),
    )  # fmt: skip
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        Function(lambda m, x: x + m.block(x), block=block),
        *head(8),
    )


def layer_scale() -> nn.Module:
    """ConvNeXt-like: depthwise 7x7, layer norm over channels, a bare scale."""

    def run(m, x):
        y = m.depthwise(x).permute(0, 2, 3, 1)
        y = m.out(F.gelu(m.into(m.norm(y)))) * m.gamma
        return x + y.permute(0, 3, 1, 2)

    block = Function(
        run, depthwise=nn.Conv2d(6, 6, 7, padding=3, groups=6), norm=nn.LayerNorm(6),
        into=nn.Linear(6, 24), out=nn.Linear(24, 6), gamma=nn.Parameter(torch.rand(6) + 0.5),
    )  # fmt: skip
    return nn.Sequential(nn.Conv2d(3, 6, 2, stride=2), block, *head(6))


def vision_transformer() -> nn.Module:
    def run(m, x):
        patches = m.patch(x).flatten(2).transpose(1, 2)
        z = torch.cat([m.token.expand(len(x), -1, -1), patches], 1) + m.place
        return m.out(m.norm(m.layer(z))[:, 0])

    return Function(
        run, patch=nn.Conv2d(3, 16, 4, stride=4), token=nn.Parameter(torch.randn(1, 1, 16)),
        place=nn.Parameter(torch.randn(1, 5, 16)), norm=nn.LayerNorm(16),
        layer=nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, norm_first=True),
        out=nn.Linear(16, CLASSES),
    )  # fmt: skip


def transformer(batch_first: bool = True) -> nn.Module:
    def run(m, t):
        z = m.embed(t) + m.place[: t.shape[1]]
        z = z if batch_first else z.transpose(0, 1)
        z = m.layer(z)
        return m.out((z if batch_first else z.transpose(0, 1)).mean(1))

    return Function(
        run, embed=nn.Embedding(20, 16), place=nn.Parameter(torch.randn(6, 16)),
        layer=nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=batch_first),
        out=nn.Linear(16, CLASSES),
    )  # fmt: skip


def attention_with_weights() -> nn.Module:
    def run(m, t):
        z = m.embed(t)
        y, weights = m.attention(z, z, z, need_weights=True)
        return m.out(y.mean(1) + weights.mean((1, 2))[:, None])

    return Function(
        run, embed=nn.Embedding(20, 16), out=nn.Linear(16, CLASSES),
        attention=nn.MultiheadAttention(16, 2, batch_first=True),
    )  # fmt: skip


def tied_embedding() -> nn.Module:
    def run(m, t):
        return F.linear(torch.tanh(m.body(m.embed(t))).mean(1), m.embed.weight)

    return Function(run, embed=nn.Embedding(20, 8), body=nn.Linear(8, 8))


def recurrent(kind: type[nn.Module], **options: object) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        def run(m, t):
            return m.out(m.cell(m.embed(t))[0][:, -1])

        width = 18 if options.get("bidirectional") else 9
        return Function(
            run, embed=nn.Embedding(20, 8), cell=kind(8, 9, batch_first=True, **options),
            out=nn.Linear(width, CLASSES),
        )  # fmt: skip

    return made


def siamese() -> nn.Module:
    """One encoder twice, on the two halves of the image."""

    def run(m, x):
        return m.out(torch.cat([m.encode(x[..., :4]), m.encode(x[..., 4:])], 1))

    encoder = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Flatten())
    return Function(run, encode=encoder, out=nn.Linear(2 * 5 * 6 * 2, CLASSES))


def towers() -> nn.Module:
    """Two towers stacked along the batch, one call for both."""

    def run(m, x):
        both = m.encode(torch.cat([x[..., :4], x[..., 4:]], 0))
        left, right = both.chunk(2)
        return m.out(left * right)

    encoder = nn.Sequential(nn.Conv2d(3, 5, 3), nn.GroupNorm(1, 5), nn.Tanh(), nn.Flatten())
    return Function(run, encode=encoder, out=nn.Linear(5 * 6 * 2, CLASSES))


def windows() -> nn.Module:
    """Swin-like: the image cut into windows that join the batch, and put together again."""

    def run(m, x):
        z = m.patch(x).permute(0, 2, 3, 1)  # [B, 4, 4, C]
        b = z.shape[0]
        z = torch.roll(z, (1, 1), (1, 2)).view(b, 2, 2, 2, 2, 12)
        z = z.permute(0, 1, 3, 2, 4, 5).reshape(b * 4, 4, 12)
        z = m.layer(z)
        z = z.view(b, 2, 2, 2, 2, 12).permute(0, 1, 3, 2, 4, 5).reshape(b, 16, 12)
        return m.out(z.mean(1))

    return Function(
        run, patch=nn.Conv2d(3, 12, 2, stride=2), out=nn.Linear(12, CLASSES),
        layer=nn.TransformerEncoderLayer(12, 3, 16, dropout=0.0, batch_first=True),
    )  # fmt: skip


def flattened(samples_first: bool) -> Callable[[], nn.Module]:
    """Tokens and samples flattened into one dimension, in either order."""

    def made() -> nn.Module:
        def run(m, t):
            z = m.embed(t)
            z = z if samples_first else z.transpose(0, 1)
            a, b, _ = z.shape
            z = m.body(z.reshape(a * b, 8)).view(a, b, 8)
            return m.out(z.mean(1 if samples_first else 0))

        return Function(
            run, embed=nn.Embedding(20, 8), body=nn.Linear(8, 8), out=nn.Linear(8, CLASSES)
        )

    return made


def click_through() -> nn.Module:
    """DLRM-like: dense features, bags of categories, pairwise products."""

    def run(m, dense, bags, single):
        vectors = [m.bottom(dense), m.bag(bags), m.table(single)]
        stacked = torch.stack(vectors, 1)
        products = torch.bmm(stacked, stacked.transpose(1, 2)).flatten(1)
        return m.top(torch.cat([vectors[0], products], 1))

    return Function(
        run, bottom=nn.Sequential(nn.Linear(4, 8), nn.ReLU()), table=nn.Embedding(30, 8),
        bag=nn.EmbeddingBag(40, 8, mode="mean"),
        top=nn.Sequential(nn.Linear(8 + 9, 16), nn.Tanh(), nn.Linear(16, CLASSES)),
    )  # fmt: skip


def click_inputs(samples: int) -> tuple[Tensor, ...]:
    return (
        torch.randn(samples, 4, dtype=torch.float64),
        torch.randint(0, 40, (samples, 3)),
        torch.randint(0, 30, (samples,)),
    )


def many_tables() -> nn.Module:
    """Tables alike, one with padding, one of another width, one that is looked up in twice."""

    def run(m, fields):
        vectors = [table(fields[:, index]) for index, table in enumerate(m.tables)]
        vectors += [m.padded(fields[:, 4]), m.wide(fields[:, 5]), m.tables[0](fields[:, 6])]
        return m.top(torch.tanh(torch.cat(vectors, 1)))

    return Function(
        run, tables=nn.ModuleList(nn.Embedding(7 + n, 3) for n in range(4)),
        padded=nn.Embedding(6, 3, padding_idx=2), wide=nn.Embedding(6, 5),
        top=nn.Linear(6 * 3 + 5, CLASSES),
    )  # fmt: skip


def slices() -> nn.Module:
    """Elastic widths: prefixes of the weights are used."""

    def run(m, x):
        z = F.conv2d(x, m.weight[:8], padding=1) * m.scale[:8]
        z = F.group_norm(torch.tanh(z), 2, m.gain[:8], m.shift[:8])
        return F.linear(z.mean((2, 3)), m.out.weight[:, :8], m.out.bias)

    return Function(
        run, weight=nn.Parameter(torch.randn(12, 3, 3, 3)), out=nn.Linear(12, CLASSES),
        scale=nn.Parameter(torch.rand(12, 1, 1) + 0.5), gain=nn.Parameter(torch.rand(12) + 0.5),
        shift=nn.Parameter(torch.randn(12)),
    )  # fmt: skip


def mixed_operation() -> nn.Module:
    """DARTS-like: operations weighed by the softmax of bare parameters."""

    def run(m, x):
        weights = m.alpha.softmax(0)
        z = torch.tanh(weights[0] * m.a(x) + weights[1] * m.b(x) + weights[2] * m.c(x))
        return m.out(z.mean((2, 3)))

    return Function(
        run, a=nn.Conv2d(3, 6, 3, padding=1), b=nn.Conv2d(3, 6, 1), c=nn.Conv2d(3, 6, 5, padding=2),
        alpha=nn.Parameter(torch.randn(3)), out=nn.Linear(6, CLASSES),
    )  # fmt: skip


def parametrized() -> nn.Module:
    return nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3)), nn.Tanh(), nn.Flatten(),
        nn.utils.parametrizations.orthogonal(nn.Linear(216, CLASSES)),
    )  # fmt: skip


def in_place_sum() -> nn.Module:
    def run(m, x):
        y = m.a(x)
        y += m.b(x)
        return m.out(torch.relu_(y).mean((2, 3)))

    return Function(run, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(3, 6, 1), out=nn.Linear(6, CLASSES))


def shared_module() -> nn.Module:
    def run(m, x):
        return m.out(m.conv(torch.tanh(m.conv(x))).mean((2, 3)))

    return Function(run, conv=nn.Conv2d(3, 3, 3, padding=1), out=nn.Linear(3, CLASSES))


def unused_operation() -> nn.Module:
    def run(m, x):
        m.unused(x)
        return m.out(torch.tanh(m.used(x)).mean((2, 3)))

    return Function(
        run, used=nn.Conv2d(3, 4, 3), unused=nn.Conv2d(3, 4, 3), out=nn.Linear(4, CLASSES)
    )


def branch() -> nn.Module:
    """Takes one way or another by the data's sign as a whole."""

    def run(m, x):
        y = m.a(x) if float(x.shape[-1]) > 4 else m.b(x)
        return m.out(torch.tanh(y).mean((2, 3)))

    return Function(run, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(3, 4, 3), out=nn.Linear(4, CLASSES))


def bare_matrix() -> nn.Module:
    def run(m, x):
        return torch.tanh(x.flatten(1) @ m.weight + m.bias) @ m.out.t()

    return Function(
        run, weight=nn.Parameter(0.1 * torch.randn(192, 7)), bias=nn.Parameter(torch.randn(7)),
        out=nn.Parameter(torch.randn(CLASSES, 7)),
    )  # fmt: skip


def norms() -> nn.Module:
    def run(m, x):
        z = torch.sigmoid(m.instance(m.conv(x)))
        z = torch.sigmoid(m.rms(z.flatten(2)).unflatten(2, (8, 8)))
        return m.out(torch.sigmoid(m.layer(z)).mean((2, 3)))

    return Function(
        run, conv=nn.Conv2d(3, 6, 3, padding=1), instance=nn.InstanceNorm2d(6, affine=True),
        rms=nn.RMSNorm(64), layer=nn.LayerNorm([6, 8, 8]), out=nn.Linear(6, CLASSES),
    )  # fmt: skip


def transposed() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(3, 6, 3, stride=2, output_padding=1, groups=3), nn.Tanh(),
        nn.Conv2d(6, 4, 3), *head(4),
    )  # fmt: skip


def signals() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(2), nn.Conv1d(3, 6, 5, padding=2, padding_mode="reflect"), nn.Tanh(),
        nn.Unflatten(2, (4, 4, 4)), nn.Conv3d(6, 5, (3, 1, 2)), nn.Tanh(), nn.Flatten(1),
        nn.Linear(120, CLASSES),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Tensor, ...]]]] = {
    "convolutions": (convolutions, images),
    "smooth convolutions": (smooth_convolutions, images),
    "batch norm": (batch_norm, images),
    "inverted residual": (inverted_residual, images),
    "layer scale": (layer_scale, images),
    "vision transformer": (vision_transformer, images),
    "transformer": (transformer, tokens),
    "transformer, sequence first": (lambda: transformer(False), tokens),
    "attention with weights": (attention_with_weights, tokens),
    "tied embedding": (tied_embedding, tokens),
    "lstm": (recurrent(nn.LSTM), tokens),
    "gru": (recurrent(nn.GRU, bidirectional=True), tokens),
    "siamese": (siamese, images),
    "towers": (towers, images),
    "windows": (windows, images),
    "flattened, samples first": (flattened(True), tokens),
    "flattened, tokens first": (flattened(False), tokens),
    "click-through": (click_through, click_inputs),
    "many tables": (many_tables, lambda samples: (torch.randint(0, 6, (samples, 7)),)),
    "slices": (slices, images),
    "mixed operation": (mixed_operation, images),
    "parametrized": (parametrized, images),
    "in-place sum": (in_place_sum, images),
    "shared module": (shared_module, images),
    "unused operation": (unused_operation, images),
    "branch": (branch, images),
    "bare matrix": (bare_matrix, images),
    "norms": (norms, images),
    "transposed": (transposed, images),
    "signals and volumes": (signals, images),
}


def made(name: str, samples: int) -> tuple[nn.Module, tuple[Tensor, ...], Tensor]:
    """A model in float64, its inputs and labels."""
    build, inputs = MODELS[name]
    return build().double(), inputs(samples), torch.arange(samples) % CLASSES
