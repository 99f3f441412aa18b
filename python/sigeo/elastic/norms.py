"""Elastic norms."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import skip_init

from sigeo.elastic.base import Elastic, count, fill, take
from sigeo_ext.gather import slices


class _ElasticBatchNorm(Elastic, nn.modules.batchnorm._BatchNorm):
    """The part that does not depend on the number of dimensions."""

    dimensions = ("channels",)
    plain: type[nn.Module]

    def _sizes(self) -> dict[str, int]:
        return {"channels": self.num_features}

    def forward(self, input: Tensor, **choice: Any) -> Tensor:
        """[B, selected channels, *size]; masked: full width."""
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        tracks = self.training and self.track_running_stats
        momentum = self.momentum or 0.0
        if tracks and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the mean of all batches, whichever channels saw them
                momentum = 1 / float(self.num_batches_tracked)
        own = self.running_mean is None or self.training
        kept = tracks or not self.training
        return slices.batch_norm(
            input,
            self.running_mean if kept else None,
            self.running_var if kept else None,
            self.weight,
            self.bias,
            **self._current(choice),
            size=self.num_features,
            training=own,
            momentum=momentum,
            eps=self.eps,
            masked=self.masked,
        )

    def _plain(self, choice: dict[str, Any]) -> nn.Module:
        channels = choice["channels"]
        names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        given = {name: getattr(self, name) for name in names}
        like = next((t for t in given.values() if t is not None), None)
        module: Any = skip_init(
            self.plain,
            count(channels, self.num_features),
            eps=self.eps,
            momentum=self.momentum,
            device="cpu" if like is None else like.device,
            dtype=None if like is None else like.dtype,
        )
        # What is there, which the flags say of a norm as it was made.
        module.affine, module.track_running_stats = self.affine, self.track_running_stats
        for name, value in given.items():
            if value is None:
                setattr(module, name, None)
            elif value.dim():
                given[name] = take(value, channels)
        return fill(module, given)


class ElasticBatchNorm1d(_ElasticBatchNorm, nn.BatchNorm1d):
    """An `nn.BatchNorm1d` of which selected channels run.

    Choice: ``channels``. Running statistics are those of the channels, whatever subnet they were
    part of; evaluate a subnet after a few batches of its own in training mode.
    """

    plain = nn.BatchNorm1d


class ElasticBatchNorm2d(_ElasticBatchNorm, nn.BatchNorm2d):
    """An `nn.BatchNorm2d` of which selected channels run. As `ElasticBatchNorm1d`."""

    plain = nn.BatchNorm2d


class ElasticBatchNorm3d(_ElasticBatchNorm, nn.BatchNorm3d):
    """An `nn.BatchNorm3d` of which selected channels run. As `ElasticBatchNorm1d`."""

    plain = nn.BatchNorm3d


class ElasticLayerNorm(Elastic, nn.LayerNorm):
    """An `nn.LayerNorm` over one dimension of which selected features run.

    Choice: ``features``. Mean and variance are over the selected features; in masked mode over all.

    Raises:
        ValueError: More than one dimension.
    """

    dimensions = ("features",)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if len(self.normalized_shape) != 1:
            shape = list(self.normalized_shape)
            raise ValueError(f"ElasticLayerNorm: normalized_shape must be one size, got {shape}")

    def _sizes(self) -> dict[str, int]:
        return {"features": self.normalized_shape[0]}

    def forward(self, input: Tensor, **choice: Any) -> Tensor:
        """[..., selected features]; masked: full width."""
        return slices.layer_norm(
            input,
            self.weight,
            self.bias,
            **self._current(choice),
            size=self.normalized_shape[0],
            eps=self.eps,
            masked=self.masked,
        )

    def _plain(self, choice: dict[str, Any]) -> nn.Module:
        features = choice["features"]
        weight, bias = self.weight, self.bias
        module: nn.Module = skip_init(
            nn.LayerNorm,
            count(features, self.normalized_shape[0]),
            eps=self.eps,
            elementwise_affine=self.elementwise_affine,
            bias=bias is not None,
            device="cpu" if weight is None else weight.device,
            dtype=None if weight is None else weight.dtype,
        )
        parts = {"weight": weight, "bias": bias}
        return fill(module, {n: None if v is None else take(v, features) for n, v in parts.items()})
