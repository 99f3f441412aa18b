"""Small models that the toolkit's tests measure, and the state that they must come back to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def golden_net() -> nn.Sequential:
    """The network of the golden numbers."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


class Unreached(nn.Module):
    """A network with a convolution that the loss does not reach."""

    def __init__(self):
        super().__init__()
        self.used = nn.Conv2d(3, 4, 3)
        self.dead = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(F.relu(self.used(x)).mean((2, 3)))


class Recurrent(nn.Module):
    """An embedding, an LSTM, dropout and a tied head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 6, sparse=True)
        self.lstm = nn.LSTM(6, 8, batch_first=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, tokens):
        return self.head(self.drop(self.lstm(self.embed(tokens))[0][:, -1]))


class TwoInputs(nn.Module):
    """Takes two tensors, by position or by name."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 5), nn.Linear(3, 5)

    def forward(self, a, b):
        return self.left(a) * torch.tanh(self.right(b))


def image_batches(count: int = 4, size: int = 16, dtype: torch.dtype = torch.float32):
    """Batches of random images with labels."""
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(size, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype),
            torch.randint(0, 5, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def stored_rows(model: nn.Module, batches, *, lr: float = 0.0, loss_fn=F.cross_entropy):
    """Gradients of every batch as published code keeps them, the losses, the last weights.

    Changes the model.
    """
    rows, losses = [], []
    model.train()
    for inputs, labels in batches:
        model.zero_grad(set_to_none=True)
        loss = loss_fn(model(inputs), labels)
        loss.backward()
        rows.append(
            {
                n: torch.zeros_like(p) if p.grad is None else p.grad.to_dense().clone()
                for n, p in model.named_parameters()
            }
        )
        losses.append(loss.item())
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= lr * p.grad
    return rows, losses, {n: p.detach().clone() for n, p in model.named_parameters()}


def state_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_unchanged(model, before):
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
