"""One capture: what is called while a model runs, and what the backward pass gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from sigeo.capture.layers import Selection, select
from sigeo.capture.samples.axis import Axis, Lost, Where, mark, where
from sigeo.capture.samples.axis_rules import follow, indexed, leading, pointwise
from sigeo.capture.samples.embedding import LookUp, finish_all
from sigeo.capture.samples.fallback import CannotRunAgain, Fallback
from sigeo.capture.samples.follower import Follower
from sigeo.capture.samples.functions import (
    JOINS,
    LOSSES,
    OF_BATCH,
    POINTWISE,
    POOLS,
    is_served,
    tensors_in,
)
from sigeo.capture.samples.mode import LINEAR, Mode, eager, in_backward, linear_is
from sigeo.capture.samples.recognised import HANDLERS
from sigeo.capture.samples.uses import Plan, Record, Use, View, combined
from sigeo.capture.state import undistributed
from sigeo.errors import InputError
from sigeo_ext.sample_moments import SampleMoments

BatchNormPolicy = Literal["refuse", "frozen", "per_unit", "contribution"]


@dataclass
class Frame:
    """A module whose forward pass is running.

    Attributes:
        module: The module.
        args: It was called with.
        kwargs: It was called with.
        serial: Of the last use before it.
        fallback: Names of the parameters that it takes over for.
        buffers: What the pass may change and depend on, as spectral norm's; as it was before.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    serial: int
    fallback: set[str] = field(default_factory=set)
    buffers: dict[str, Tensor] = field(default_factory=dict)


class Session:
    """Recognises layers, follows the samples between them, collects what comes back."""

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        *,
        params: Selection,
        batch_dim: int,
        batch_norm: BatchNormPolicy,
        max_bytes: int,
        strict: bool,
    ):
        """Set up; nothing is recorded before `running`."""
        self.model, self.plan, self.batch_dim = model, plan, batch_dim
        self.batch_norm, self.max_bytes, self.strict = batch_norm, max_bytes, strict
        measured = None if params == "all" else select(model, params)
        self.records = {
            name: Record(name, p, measured is None or name in measured)
            for name, p in model.named_parameters()
            if p.requires_grad
        }
        self.unsupported: dict[str, str] = {}
        self.begun = self.finished = False
        self._finishing = False
        self._of_parameter = {id(r.parameter): r for r in self.records.values()}
        self.look_ups: list[LookUp] = []
        self._frames: list[Frame] = []
        self._serial = 0
        self._told = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Record while the body runs.

        Yields:
            Once, when calls are seen.
        """
        modules = list(self.model.named_modules())
        counters = [
            (m.num_batches_tracked, int(m.num_batches_tracked))
            for _, m in modules
            if isinstance(m, nn.modules.batchnorm._NormBase) and m.num_batches_tracked is not None
        ]
        hooks = [self.model.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True)]
        for module in self._owners(modules):
            hooks.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            hooks.append(
                module.register_forward_hook(self._leave, with_kwargs=True, always_call=True)
            )
        kept = [] if self.plan.grads else [(p, p.grad) for p in self.model.parameters()]
        for parameter, _ in kept:  # autograd fills it where modules differentiate themselves
            parameter.grad = None
        try:
            # Without gradients there is nothing to reduce.
            local = nullcontext() if self.plan.grads else undistributed(self.model)
            with local, eager(), Mode(self):
                yield
        finally:
            for hook in hooks:
                hook.remove()
            for parameter, grad in kept:
                parameter.grad = grad
            if self.batch_norm in ("frozen", "per_unit"):  # its running statistics do not move
                for counter, count in counters:
                    counter.fill_(count)

    @staticmethod
    def _owners(modules: Sequence[tuple[str, nn.Module]]) -> list[nn.Module]:
        """The modules that may have to take over for a parameter: it is in them or below them."""
        names = {""}
        for name, module in modules:
            if module._parameters:
                while name not in names:
                    names.add(name)
                    name = name.rpartition(".")[0]
        return [module for name, module in modules if name in names and not is_served(module)]

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._finishing:  # a module runs again for its units' gradients
            return
        with torch._C.DisableTorchFunction():
            self._note_inputs(tensors_in(args, kwargs))

    def _note_inputs(self, tensors: list[Tensor]) -> None:
        """Find the samples in a batch that the model is given.

        Raises:
            InputError: There is not one number of them, or another than before.
        """
        self._refuse_more()
        sizes = {t.shape[self.batch_dim] for t in tensors if t.dim() > self.batch_dim}
        if len(sizes) != 1:
            raise InputError(
                f"inputs: expected one number of samples in dimension {self.batch_dim}, "
                f"got {sorted(sizes) or 'no tensor that has one'}"
            )
        (samples,) = sizes
        if samples == 0:
            raise InputError("inputs: expected at least one sample, got none")
        if self.plan.samples and samples != self.plan.samples:
            raise InputError(
                f"inputs: expected {self.plan.samples} samples as in the first call of the model, "
                f"got {samples}"
            )
        if samples % self.plan.unit:
            raise InputError(
                f"unit: {samples} samples must be whole units, got unit {self.plan.unit}"
            )
        self.plan.samples = samples
        for tensor in tensors:
            mark(tensor, Axis(self.batch_dim, samples) if tensor.dim() > self.batch_dim else None)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self.finished and not in_backward():
            frame = Frame(module, args, kwargs, self._serial)
            if module.training and "parametrizations" in module._modules:
                frame.buffers = {name: b.clone() for name, b in module.named_buffers()}
            self._frames.append(frame)

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if self.finished or in_backward() or not self._frames:
            return None
        frame = self._frames.pop()
        if not frame.fallback or output is None:
            return None
        output = _apart(output)
        wanted = {n for n, p in module.named_parameters() if n and id(p) in self._of_parameter}
        local = {
            local: self._of_parameter[id(p)]
            for local, p in module.named_parameters()
            if local in wanted and self._of_parameter[id(p)].name in frame.fallback
        }
        for record in local.values():
            record.uses = [use for use in record.uses if use.serial <= frame.serial]
        coupled: list[nn.Module] = [
            m
            for m in module.modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm)
            and (m.training or m.running_mean is None)
        ]
        if coupled and self.batch_norm == "contribution":
            reason = "its module runs again for each unit, and has batch norm on the whole batch"
            self.cannot([record.name for record in local.values()], reason)
            return None
        fallback = Fallback.of(
            frame.module, frame.args, frame.kwargs, output, local, self.plan, self.backward_begun
        )
        if isinstance(fallback, str):
            self.cannot([record.name for record in local.values()], fallback)
            return None
        fallback.buffers = frame.buffers
        fallback.frozen = coupled if self.batch_norm == "frozen" else []
        for name, record in local.items():
            self._serial += 1
            use = Use(record, None, tuple(record.parameter.shape), self.plan, self._serial)
            use.rows = lambda units, name=name: fallback.unit_gradients(name, units)
            record.uses.append(use)
        return output

    def where(self, tensor: Tensor) -> Where:
        """Where the samples of a layer's input are.

        In a repeated forward pass nobody asks: the first one noted it.
        """
        place = where(tensor)
        return Axis(0, self.plan.samples) if in_backward() else place

    def cannot(self, names: Sequence[str], reason: str) -> None:
        """Note that parameters cannot be served.

        Raises:
            InputError: The capture is strict.
        """
        names = [name for name in names if self.records[name].measured]
        for name in names:
            self.unsupported.setdefault(name, reason)
        if self.strict and names:
            raise InputError(
                f"parameter {names[0]} has no per-sample gradient here: {reason}; strict=False "
                "leaves it out and names it in `unsupported`"
            )

    def _resolve(self, tensor: Any) -> tuple[Record, View | None] | None:
        if not isinstance(tensor, Tensor):
            return None
        record = self._of_parameter.get(id(tensor))
        if record is not None:
            return record, None
        base = tensor._base
        record = None if base is None else self._of_parameter.get(id(base))
        if record is None or not tensor.requires_grad:
            return None
        assert base is not None
        offset = int(tensor.storage_offset()) - int(base.storage_offset())
        # The stride of a dimension of one entry means nothing, 0 among others.
        strides = [s if n > 1 else 1 for n, s in zip(tensor.shape, tensor.stride(), strict=True)]
        return record, View(tuple(tensor.shape), tuple(strides), offset)

    def is_parameter(self, tensor: Any) -> bool:
        """Whether a tensor is a measured parameter, or a view of one that shows no entry twice."""
        found = self._resolve(tensor)
        if found is None:
            return False
        return found[1] is None or found[1].fits(found[0].parameter)

    def before_expansion(self, tensor: Any) -> Tensor | None:
        """The view of a parameter that was expanded to this one, if it was: broadcasts to it."""
        found = self._resolve(tensor)
        if found is None or found[1] is None or 0 not in found[1].stride:
            return None
        first: Tensor = tensor
        for dim, stride in enumerate(found[1].stride):
            if stride == 0:
                first = first.narrow(dim, 0, 1)
        return first

    @staticmethod
    def is_constant(*tensors: Tensor | None) -> bool:
        """Whether tensors are the same for all samples and made of no parameter."""
        return all(t is None or (where(t) is None and not t.requires_grad) for t in tensors)

    def uses(self, **arguments: Tensor | None) -> dict[str, Use]:
        """The measured parameters among the arguments; not noted before `register`."""
        found: dict[str, Use] = {}
        for name, tensor in arguments.items():
            place = self._resolve(tensor)
            if tensor is None or place is None:
                continue
            record, view = place
            if view is None or view.fits(record.parameter):
                found[name] = Use(record, view, tuple(tensor.shape), self.plan)
        return found

    def register(self, uses: Sequence[Use]) -> bool:
        """Note the uses of a call that will be part of the backward pass; whether it will."""
        if in_backward():  # recomputed: the first forward pass noted it
            return False
        for use in uses:
            self._serial += 1
            use.serial = self._serial
            use.session = self
            use.record.uses.append(use)
        return True

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one torch function that the model called."""
        handler = HANDLERS.get(func)
        if handler is not None and torch.is_grad_enabled():
            output = handler(self, *args, **kwargs)
            if output is not NotImplemented:
                return output
        if any(self._resolve(tensor) is not None for tensor in tensors_in(args, kwargs)):
            return self.foreign(func, args, kwargs)
        return self.followed(func, args, kwargs)

    def foreign(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function that uses parameters in no recognised way: their module takes over."""
        for tensor in tensors_in(args, kwargs):
            if not tensor.is_leaf and self._resolve(tensor) is not None:
                mark(tensor, None)  # a view of a parameter, made where nobody looked
        output = self.followed(func, args, kwargs)
        self.note_foreign(func, args, kwargs, output)
        return output

    def note_foreign(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Let modules take over for the parameters that a function used, if it did."""
        tensors = tensors_in(output)
        if not any(t.requires_grad for t in tensors):
            return
        for leaf in tensors_in(args, kwargs):
            found = self._resolve(leaf)
            if found is None or all(t._base is found[0].parameter for t in tensors):
                continue  # no parameter, or only looked at in another shape
            if not found[0].measured:
                continue
            self._fall_back(found[0], getattr(func, "__name__", str(func)))

    def _fall_back(self, record: Record, function: str) -> None:
        owners = [
            frame
            for frame in reversed(self._frames)
            if any(p is record.parameter for p in frame.module.parameters())
            and any(isinstance(where(t), Axis) for t in tensors_in(frame.args, frame.kwargs))
        ]
        if owners:
            chosen = next(filter(self._runs_in_units, owners), owners[0])
            chosen.fallback.add(record.name)
        elif not in_backward():
            self.cannot([record.name], f"{function} uses it outside of its module's forward pass")

    def _runs_in_units(self, frame: Frame) -> bool:
        """Whether a module's inputs can be cut into units.

        What is the same for all samples may still have been spread over them before, as an initial
        state of zeros is. A size that happens to be the batch's costs time, as a module further out
        is run then.
        """
        constants = [t for t in tensors_in(frame.args, frame.kwargs) if where(t) is None]
        return all(size % self.plan.samples for t in constants for size in t.shape)

    def followed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run any other function and note where the samples of its results are."""
        tensors = tensors_in(args, kwargs)
        places: list[Where] = [where(t) for t in tensors]
        if func is Tensor.__getitem__ and isinstance(places[0], Axis) and len(places) == 1:
            kept = indexed(places[0], tensors[0].dim(), args[1])
            if kept is not None:
                output = func(*args)
                mark(output, kept)
                return output
        if all(place is None for place in places):
            output = func(*args, **kwargs)
            for leaf in tensors_in(output):
                if leaf.requires_grad:
                    mark(leaf, None)  # made of parameters alone, and seen to be
            return output
        if func in JOINS and not kwargs.keys() - {"dim"}:
            output = func(*args, **kwargs)
            mark(output, follow(JOINS[func], args, kwargs, output, where)[0])
            return output
        if func in LOSSES and not {"reduction", "reduce", "size_average"} & kwargs.keys():
            output = func(*args, **kwargs)
            if output.dim() == 0:
                mark(output, OF_BATCH)
                return output
        if func is F.pad:
            output = func(*args, **kwargs)
            padded = len(args[1] if len(args) > 1 else kwargs["pad"]) // 2
            mark(output, leading(places[0], tensors[0].dim(), padded))
            return output
        if func in POINTWISE or func in POOLS:
            dims = [t.dim() for t in tensors]
            output = func(*args, **kwargs)
            place: Where = next((p for p in places if isinstance(p, Lost)), None)
            if place is None and func in POINTWISE:
                place = pointwise(places, dims, output.dim())
            elif place is None:
                place = leading(places[0], dims[0], POOLS[func])
            for leaf in tensors_in(output):
                mark(leaf, place)
            return output
        with Follower((args, kwargs)) as follower:
            output = func(*args, **kwargs)
        self._mark(output, follower)
        return output

    @staticmethod
    def _mark(output: Any, follower: Follower) -> None:
        for leaf in tensors_in(output):
            mark(leaf, follower.of_result(leaf))

    def seen_through(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a composite Python function whose linear layers are to be recognised."""
        with Follower((args, kwargs)) as follower:

            def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
                mark(input, follower.of(input))
                output: Tensor = self.call(LINEAR, (input, weight, bias), {})
                follower.note(output, where(output))
                return output

            with linear_is(linear):
                output = func(*args, **kwargs)
        self._mark(output, follower)
        return output

    def backward_begun(self) -> None:
        """Called by every use as the backward pass comes by; the first asks to hear of its end.

        Where nothing is measured, any number of passes may come by.
        """
        if not self.plan.measures:
            return
        self._refuse_more()
        self.begun = True
        if not self._told:
            self._told = True
            engine = torch.autograd.Variable._execution_engine
            engine.queue_callback(self.finish)

    def _refuse_more(self) -> None:
        """Complain of a pass after the one that was measured.

        Raises:
            InputError: There is one.
        """
        if self.finished and not self.begun:
            raise InputError("capture: the backward pass must be in the body, got one behind it")
        if self.finished:
            raise InputError(
                "capture: measures one backward pass, and the body goes on with another; "
                "add the losses up, or open a capture for each"
            )

    def finish(self) -> None:
        """Called when the backward pass has ended: what is still open is worked out."""
        if self.finished:
            return
        self.finished = True
        if not self.plan.measures:
            return
        self._finishing = True
        try:
            with torch._C.DisableTorchFunction():  # nothing here is the model's
                self._work_out()
        finally:
            self._finishing = False

    def _work_out(self) -> None:
        finish_all(self.look_ups)
        for record in self.records.values():
            if record.name in self.unsupported or not record.measured:
                continue
            alone = len(record.uses) == 1 and record.uses[0].rows is None
            if not alone:
                try:
                    record.moments = combined(record, self.plan, self.max_bytes)
                except CannotRunAgain as error:
                    self.cannot([record.name], str(error))
            elif record.moments is None:
                record.moments = SampleMoments()


def _apart(output: Any) -> Any:
    """Several outputs of a module so that none is made of another.

    The gradient of each is then what comes from outside of the module.
    """

    def view(tensor: Tensor) -> Tensor:
        if not tensor.requires_grad:
            return tensor
        with torch._C.DisableTorchFunction():
            other = tensor.view_as(tensor)
        mark(other, where(tensor))
        return other

    tensors = [t for t in tensors_in(output) if t.requires_grad]
    return tree_map_only(Tensor, view, output) if len(tensors) > 1 else output
