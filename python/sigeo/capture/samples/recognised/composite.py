"""Attention, of which the parts are recognised, and recurrent layers, which run again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sigeo.capture.samples.axis import Axis, mark
from sigeo.capture.samples.following import seen_through
from sigeo.capture.samples.functions import tensors_in
from sigeo.capture.samples.recognised.registry import HANDLERS, Handler, handles

if TYPE_CHECKING:
    from sigeo.capture.samples.session import Session


@handles(F.multi_head_attention_forward)
def _attention(session: Session, *args: Any, **kwargs: Any) -> Any:
    """Seen through: its linear layers are recognised, everything between them is followed.

    Only the rows that may be added to keys and values are parameters that no linear layer takes.
    """
    output = seen_through(session.call, F.multi_head_attention_forward, args, kwargs)
    added = (*args[7:9], kwargs.get("bias_k"), kwargs.get("bias_v"))
    session.note_foreign(F.multi_head_attention_forward, added, {}, output)
    return output


def _recurrent(function: Any) -> Handler:
    """A recurrent layer: its module takes over; where its outputs' samples are is known here."""

    def handler(session: Session, input: Tensor, *rest: Any) -> Any:
        axis, batch_first = session.where(input), rest[-1]
        packed = not isinstance(batch_first, bool)
        if packed or not isinstance(axis, Axis) or input.dim() != 3:
            return NotImplemented
        if not axis.alone or axis.dim != (0 if batch_first else 1):
            return NotImplemented
        states = tensors_in(rest[0])
        if any(session.where(state) not in (None, axis.at(1)) for state in states):
            return NotImplemented
        output = function(input, *rest)
        mark(output[0], axis)
        for hidden in output[1:]:
            mark(hidden, axis.at(1))
        session.note_foreign(function, (input, *rest), {}, output)
        return output

    return handler


for _cell in (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu):
    HANDLERS[_cell] = _recurrent(_cell)
