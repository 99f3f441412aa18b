"""Elastic linear layers and embeddings."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import skip_init

from sigeo.elastic.base import Elastic, count, fill, take
from sigeo_ext.gather import slices


class ElasticLinear(Elastic, nn.Linear):
    """An `nn.Linear` of which selected outputs and inputs run.

    Choice: ``outputs`` and ``inputs``.
    """

    dimensions = ("outputs", "inputs")

    def _sizes(self) -> dict[str, int]:
        return {"outputs": self.out_features, "inputs": self.in_features}

    def forward(self, input: Tensor, **choice: Any) -> Tensor:
        """[..., selected inputs] to [..., selected outputs]; masked: full width both."""
        return slices.linear(
            input,
            self.weight,
            self.bias,
            **self._current(choice),
            masked=self.masked,
            accumulate=self.accumulate,
        )

    def _plain(self, choice: dict[str, Any]) -> nn.Module:
        outputs, inputs = choice["outputs"], choice["inputs"]
        module: nn.Module = skip_init(
            nn.Linear,
            count(inputs, self.in_features),
            count(outputs, self.out_features),
            bias=self.bias is not None,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        weight = take(take(self.weight, outputs), inputs, 1)
        bias = None if self.bias is None else take(self.bias, outputs)
        return fill(module, {"weight": weight, "bias": bias})


class ElasticEmbedding(Elastic, nn.Embedding):
    """An `nn.Embedding` of which selected columns run; its rows stay.

    Choice: ``columns``. There is no masked mode, nor ``max_norm``, ``sparse`` or
    ``scale_grad_by_freq``.

    Raises:
        ValueError: One of these options is set.
    """

    dimensions = ("columns",)
    maskable = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in ("max_norm", "sparse", "scale_grad_by_freq"):
            if getattr(self, name):
                raise ValueError(
                    f"ElasticEmbedding: {name} must not be set, got {getattr(self, name)}"
                )

    def _sizes(self) -> dict[str, int]:
        return {"columns": self.embedding_dim}

    def forward(self, input: Tensor, **choice: Any) -> Tensor:
        """Any shape of tokens to [*shape, selected columns]."""
        return slices.embedding(
            input,
            self.weight,
            **self._current(choice),
            padding_idx=self.padding_idx,
            accumulate=self.accumulate,
        )

    def _plain(self, choice: dict[str, Any]) -> nn.Module:
        columns = choice["columns"]
        module: nn.Module = skip_init(
            nn.Embedding,
            self.num_embeddings,
            count(columns, self.embedding_dim),
            padding_idx=self.padding_idx,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        return fill(module, {"weight": take(self.weight, columns, 1)})
