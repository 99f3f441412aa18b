"""The batch axis through indices that the samples choose, grids, distances and complex numbers.

Every size is the batch's, so that a rule which goes by sizes would be found out.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sigeo import InputError
from sigeo.capture import capture
from tests.sigeo.sample_loop import SAMPLES, check
from tests.sigeo.zoo import CLASSES, Function

B = SAMPLES


def made(middle) -> nn.Module:
    """Takes tokens [B, B, B] through ``middle`` to [B, ..., B], and reads it off."""
    torch.manual_seed(0)
    model = Function(
        lambda m, x: m.out(middle(m, m.body(x).tanh())).flatten(1, -2).mean(1),
        body=nn.Linear(B, B),
        other=nn.Linear(B, 2 * B),
        out=nn.Linear(B, CLASSES),
    )
    model.register_buffer("table", torch.randn(B, B))
    return model.double()


def labelled():
    torch.manual_seed(1)
    return torch.randn(B, B, B, dtype=torch.float64), torch.arange(B) % CLASSES


def best(z):
    """A token of each sample [B], which it chooses."""
    return z.detach().sum(-1).argmax(-1)


def top_experts(m, z):
    scores, chosen = z.topk(2, -1)
    return torch.zeros_like(z).scatter(-1, chosen, scores.softmax(-1)) * z


def rotated(m, z):
    """Rotary positions by complex numbers."""
    pairs = torch.view_as_complex(z.reshape(len(z), B, -1, 2))
    turn = torch.polar(torch.ones(B, 3), torch.arange(3.0 * B).view(B, 3)).to(pairs.dtype)
    return torch.view_as_real(pairs * turn).flatten(2)


def warped(m, z):
    grid = m.other(z).view(-1, B, B, 2).tanh()
    return F.grid_sample(z[:, None], grid, align_corners=False).squeeze(1)


def aligned(m, z):
    theta = m.other(z.mean(1))[:, :6].view(-1, 2, 3)
    grid = F.affine_grid(theta, [len(z), 1, B, B], align_corners=False)
    return F.grid_sample(z[:, None], grid, align_corners=False).squeeze(1)


def own_kernels(m, z):
    """A convolution with weights of each sample's own, the samples as groups."""
    weight = m.other(z.mean(1)).view(-1, 2, B, 1).expand(-1, -1, -1, 3).transpose(1, 2)
    kernels = weight[:, :, :1].reshape(-1, 1, 3)
    folded = F.conv1d(z.reshape(1, -1, B), kernels, groups=kernels.shape[0], padding=1)
    return folded.view(-1, B, B)


def own_transposed(m, z):
    weight = m.other(z.mean(1)).view(-1, 1, 2 * B).unflatten(2, (-1, 3)).expand(-1, B, -1, -1)
    kernels = weight.reshape(-1, weight.shape[2], 3)
    folded = F.conv_transpose1d(z.reshape(1, -1, B), kernels, groups=len(z), padding=1)
    return folded.view(len(z), -1, B)


def own_kernels_on_constants(m, z):
    kernels = m.other(z.mean(1)).view(-1, 1, 2 * B)[..., :3]
    return F.conv1d(m.table.view(1, B, B)[:, :1], kernels, padding=1).view(-1, 1, B)


FOLLOWED = {
    "top experts": top_experts,
    "scatter to zeros": lambda m, z: z.new_zeros(z.shape).scatter_add(1, z.argsort(1), z),
    "index_add": lambda m, z: z.index_add(1, torch.arange(B).flip(0), z),
    "gathered": lambda m, z: z.gather(1, best(z)[:, None, None].expand(-1, 1, B)),
    "one token of each": lambda m, z: z[torch.arange(len(z)), best(z)][:, None],
    "behind a slice": lambda m, z: z[torch.arange(len(z)), :, best(z)][:, None],
    "some tokens of each": lambda m, z: z[torch.arange(len(z))[:, None], z.argsort(1)[:, :2, 0]],
    "constants by samples": lambda m, z: z + m.table[best(z)][:, None],
    "constants picked": lambda m, z: z * m.table.index_select(0, best(z))[:, None],
    "rotary": rotated,
    "fourier": lambda m, z: torch.fft.irfft2(torch.fft.rfft2(z), s=(B, B)) * torch.fft.fft(z).real,
    "warped": warped,
    "aligned": aligned,
    "distances": lambda m, z: torch.cdist(z, z.roll(1, 1)),
    "distances to constants": lambda m, z: torch.cdist(z, m.table),
    "own kernels": own_kernels,
    "own transposed kernels": own_transposed,
    "own kernels on constants": own_kernels_on_constants,
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_samples_choose_among_their_own(name):
    x, labels = labelled()
    stats = check(made(FOLLOWED[name]), (x,), labels, tolerance=1e-9)
    assert "ran again" not in repr(stats)


MIXED = {
    "gather": lambda m, z: z.gather(0, z.argsort(0)),
    "scatter": lambda m, z: z.scatter(0, z.argsort(0), z),
    "index_add": lambda m, z: z.index_add(0, torch.arange(B).flip(0), z),
    "index_add by samples": lambda m, z: z.index_add(1, best(z), z),
    "gather from another place": lambda m, z: z.gather(2, z.transpose(0, 1).argsort(-1)),
    "another's token": lambda m, z: z[torch.arange(B).flip(0), best(z)][:, None],
    "a token of all": lambda m, z: z[best(z)],
    "two places": lambda m, z: z[torch.arange(B)[:, None], best(z)],
    "distances": lambda m, z: torch.cdist(z[:, 0], z[:, 1])[..., None] * m.table[0],
    "fourier": lambda m, z: torch.fft.fft(z, dim=0).real,
    "grid": lambda m, z: F.grid_sample(
        z[None], m.table[:B, :2].view(1, 1, B, 2), align_corners=False
    ).view(B, 1, B),
    "kernels of two": lambda m, z: F.conv1d(
        z.reshape(1, -1, B), z.reshape(B, 2 * B, 3), groups=3, padding=1
    ).view(B, 1, B),
}


@pytest.mark.parametrize("name", MIXED)
def test_samples_that_choose_among_others_are_refused(name):
    model, (x, labels) = made(MIXED[name]), labelled()
    with pytest.raises(InputError, match=r"out.weight .* (samples|places)"), capture(model):
        F.cross_entropy(model(x), labels).backward()
