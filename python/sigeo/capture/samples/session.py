"""One capture: what is called while a model runs, and what the backward pass gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sigeo.capture.batches import layout_of
from sigeo.capture.layers import Selection, buffers_of, parameters_of
from sigeo.capture.samples.axis import UNSEEN, Axis, Where, forget, mark, mark_inputs, where
from sigeo.capture.samples.combined import combined
from sigeo.capture.samples.embedding import LookUp, finish_all
from sigeo.capture.samples.fallback import CannotRunAgain, Fallback
from sigeo.capture.samples.following import followed
from sigeo.capture.samples.functions import name_of, tensors_in
from sigeo.capture.samples.graph import Graph
from sigeo.capture.samples.mode import Mode, check_apart, eager, in_backward, open_sessions
from sigeo.capture.samples.parameters import Parameters
from sigeo.capture.samples.places import lose_places
from sigeo.capture.samples.recognised import HANDLERS
from sigeo.capture.samples.small_parameters import finish_gram, finish_rows
from sigeo.capture.samples.takeover import (
    Frame,
    compiled,
    hand_over,
    note_compiled,
    owners,
    take_over,
)
from sigeo.capture.samples.unserved import Unserved
from sigeo.capture.samples.uses import Plan, Record, Use
from sigeo.capture.state import undistributed
from sigeo.errors import InputError
from sigeo_ext.sample_moments import SampleMoments

BatchNormPolicy = Literal["refuse", "frozen", "per_unit", "contribution"]


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
        self._modules = list(model.named_modules())
        self._named = parameters_of(self._modules)
        self.parameters = Parameters(model, self._named, params, plan)
        self.records = self.parameters.records
        self.unsupported: dict[str, str] = {}
        self.begun = self.finished = False
        self.failure: str | None = None  # why `finish` found no statistics
        self._finishing = False
        self.look_ups: list[LookUp] = []
        self.waiting: list[Use] = []
        self.shapes: Counter[tuple[int, ...]] = Counter()
        self.inner: list[Tensor] = []
        self.grams: list[Tensor] = []
        self.frames: list[Frame] = []
        self.fallbacks: list[Fallback] = []
        self.held = 0  # bytes of gradients that fallbacks may hold, all together
        self.graph = Graph()
        self.handed_over: set[str] = set()
        self.serial = 0
        self._task: int | None = None  # autograd's number of the pass that is measured
        self._watching: dict[str, Any] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Record while the body runs.

        Yields:
            Once, when calls are seen.
        """
        check_apart(self)
        self.cannot(self.parameters.complex, "it is complex, and statistics are of real numbers")
        modules = self._modules
        forget(buffers_of(modules))  # a model that another capture saw run may have written them
        counters = []
        if self.batch_norm in ("frozen", "per_unit"):  # its running statistics do not move
            counters = [
                (m.num_batches_tracked, int(m.num_batches_tracked))
                for _, m in modules
                if isinstance(m, nn.modules.batchnorm._NormBase)
                and m.num_batches_tracked is not None
            ]
        # The model may be compiled by `torch.jit`, whose modules forbid the method but call hooks.
        add = nn.Module.register_forward_pre_hook
        hooks: list[Any] = []
        for module in compiled(modules):
            note = self._leave_compiled
            hooks.append(nn.Module.register_forward_hook(module, note, with_kwargs=True))
        for module in owners(modules):
            # Before the module's own hooks, which run again with it.
            enter = module.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True)
            leave = module.register_forward_hook(self._leave, with_kwargs=True, always_call=True)
            hooks += [enter, leave]
        hooks.append(add(self.model, self._begin, with_kwargs=True, prepend=True))
        kept = [] if self.plan.grads else [(p, p.grad) for _, p in self._named]
        for parameter, _ in kept:  # autograd fills it where modules differentiate themselves
            parameter.grad = None
        try:
            # Without gradients there is nothing to reduce.
            local = nullcontext() if self.plan.grads else undistributed(self.model)
            with local, eager(), Mode(self):
                yield
        finally:
            for hook in (*hooks, *self._watching.values()):
                hook.remove()
            forget(buffers_of(modules))
            for parameter, grad in kept:
                parameter.grad = grad
            for counter, count in counters:
                counter.fill_(count)

    @property
    def runs(self) -> bool:
        """Whether the model's forward pass is under way."""
        return bool(self.frames) and self.frames[0].module is self.model

    def owns(self, *arguments: Any) -> bool:
        """Whether a parameter of the model is among a call's arguments."""
        return any(self.parameters.resolve(t) is not None for t in tensors_in(*arguments))

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._finishing:  # a module runs again for its units' gradients
            return
        others = [s for s in open_sessions() if s.model is not self.model]
        if not in_backward() and any(s.runs for s in others):
            raise InputError(
                "capture: the model is called in the forward pass of another one that is captured "
                "too; capture one module that holds both"
            )
        with torch._C.DisableTorchFunction():
            self._note_inputs(tensors_in(*args, *kwargs.values()))
            if torch.is_grad_enabled():
                reason = (
                    "the model is called with another tensor in its place, as "
                    "torch.func.functional_call does; load it into the model instead"
                )
                self.cannot(self.parameters.replaced(self._modules), reason)

    def _note_inputs(self, tensors: list[Tensor]) -> None:
        """Find the samples in a batch that the model is given.

        Raises:
            InputError: There is not one number of them, or another than before, or a tensor is not
                dense.
        """
        self._refuse_more()
        for layout in map(layout_of, tensors):
            if layout is not None:
                raise InputError(f"inputs: expected dense tensors, got {layout}")
        samples = mark_inputs(tensors, self.batch_dim)
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

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self.finished and not in_backward():
            frame = Frame(module, args, kwargs, self.serial)
            if module.training and "parametrizations" in module._modules:
                frame.buffers = {name: b.clone() for name, b in module.named_buffers()}
            self.frames.append(frame)

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if self.finished or in_backward() or not self.frames:
            return None
        if len(self.frames) == 1 and self.plan.measures:
            self._hand_over_unseen(tensors_in(output))
        frame = self.frames.pop()
        if not frame.fallback or output is None:
            return None
        return take_over(self, frame, output)

    def _leave_compiled(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not self.finished and not in_backward():
            note_compiled(self, module, (args, kwargs), output)

    def _hand_over_unseen(self, outputs: list[Tensor]) -> None:
        """Let the outermost module take over for parameters that were used where nobody looked."""
        for function, leaf in self.graph.leaves(outputs):
            found = self.parameters.resolve(leaf)
            if found is None or not found[0].measured or found[0].name in self.unsupported:
                continue
            if function is not None or not found[0].uses:
                hand_over(self, found[0], function or "a function that is not seen")

    def where(self, tensor: Tensor) -> Where:
        """Where the samples of a layer's input are.

        What is handed to a checkpoint may come back without its note when the forward pass is
        repeated. Nobody asks then: the first one knew.
        """
        place = where(tensor)
        return Axis(0, self.plan.samples) if place == UNSEEN and in_backward() else place

    def cannot(self, names: Sequence[str], reason: str) -> None:
        """Note that parameters cannot be served.

        Raises:
            Unserved: The capture is strict.
        """
        names = [name for name in names if self.records[name].measured]
        for name in names:
            self.unsupported.setdefault(name, reason)
        if self.strict and names:
            raise Unserved(names[0], reason)

    def register(self, uses: Iterable[Use]) -> bool:
        """Note the uses of a call that will be part of the backward pass; whether it will."""
        if in_backward():  # recomputed: the first forward pass noted it
            return False
        for use in uses:
            self.serial += 1
            use.serial = self.serial
            use.session = self
            use.record.uses.append(use)
            self.shapes[use.shape] += 1
        return True

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one torch function that the model called."""
        handler = None if "out" in kwargs else HANDLERS.get(func)
        if handler is not None and torch.is_grad_enabled():
            output = handler(self, *args, **kwargs)
            if output is not NotImplemented:
                if in_backward() and UNSEEN in map(where, tensors_in(*args, *kwargs.values())):
                    for made in tensors_in(output):
                        mark(made, UNSEEN)  # not what `where` said of its input
                return output
        tensors = tensors_in(*args, *kwargs.values())
        if any(self.parameters.resolve(t) is not None for t in tensors):
            return self.foreign(func, args, kwargs)
        return followed(func, args, kwargs, tensors)

    def foreign(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function that uses parameters in no recognised way: their module takes over."""
        tensors = tensors_in(*args, *kwargs.values())
        for tensor in tensors:
            if not tensor.is_leaf and self.parameters.resolve(tensor) is not None:
                mark(tensor, None)  # a view of a parameter, made where nobody looked
        output = followed(func, args, kwargs, tensors)
        lose_places(func, args, output)
        self.note_foreign(func, args, kwargs, output)
        return output

    def note_foreign(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Let modules take over for the parameters that a function used, if it did."""
        if func is Tensor.__setitem__ and torch.is_grad_enabled():
            output = args[0]  # it returns nothing
        tensors = tensors_in(output)
        if not any(t.requires_grad for t in tensors):
            return
        for leaf in tensors_in(*args, *kwargs.values()):
            found = self.parameters.resolve(leaf)
            if found is None or not found[0].measured:
                continue
            if all(self.parameters.only_shown(found[0], t) for t in tensors):
                continue  # handed back, or only looked at in another shape
            hand_over(self, found[0], name_of(func))

    def watch(self, record: Record) -> None:
        """Keep the gradient that a parameter gets in the backward pass, before hooks change it."""
        if record.name in self._watching:
            return
        self._watching[record.name] = handle = record.parameter.register_hook(record.arrived)
        hooks: Any = record.parameter._backward_hooks
        for other in [key for key in hooks if key != handle.id]:
            hooks[other] = hooks.pop(other)  # behind ours: autograd goes by when they came

    def backward_begun(self) -> None:
        """Called by every use as the backward pass comes by; the first asks to hear of its end.

        Where nothing is measured, any number of passes may come by.

        Raises:
            InputError: It is another pass than the first, or the forward pass is still under way.
        """
        if not self.plan.measures:
            return
        task = torch._C._current_graph_task_id()
        if self._task == task and not self.finished:
            return
        self._refuse_more()
        if self._task is not None or self.runs:
            raise InputError(
                "capture: a backward pass runs in the model's forward pass, in another's hook (as "
                "torch.autograd.grad does) or after one that failed; expected the loss's alone"
            )
        self.begun, self._task = True, task
        engine = torch.autograd.Variable._execution_engine
        engine.queue_callback(self.finish)

    def note_loss(self, loss: Tensor) -> None:
        """Look at what a loss is made of beside the model's outputs, before its backward pass.

        Raises:
            InputError: There are parameters in it that cannot be served, and the capture is strict.
        """
        if self.plan.samples and self.plan.measures and not self.finished:
            self._hand_over_unseen([loss])

    def note_backward(self, loss: Tensor) -> None:
        """Note that a backward pass from a tensor has ended: it counts if it reached the model."""
        if not self.begun:
            leaves = (self.parameters.resolve(leaf) for _, leaf in Graph().leaves([loss]))
            self.begun = any(found is not None for found in leaves)

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
        except Exception as error:
            self.failure = str(error)
            raise
        finally:
            self._finishing = False
            self._let_go()

    def _work_out(self) -> None:
        finish_all(u for u in self.look_ups if u.use.record.name not in self.unsupported)
        finish_rows(self.waiting)
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
        supported = [r for r in self.records.values() if r.name not in self.unsupported]
        uses = [use for record in supported for use in record.uses]
        finish_gram([use for use in uses if use.gram_waiting is not None])
        self.inner = [use.inner for use in uses if use.inner is not None]
        self.grams = [use.gram for use in uses if use.gram is not None]
        for record in self.records.values():
            if record.name in self.unsupported:  # it may have been measured in part
                record.moments = None

    def _let_go(self) -> None:
        """Let go of all but the statistics: no cycle keeps those that nobody holds."""
        for record in self.records.values():
            for use in record.uses:
                use.rows = use.gram_waiting = None
            record.uses.clear()
            record.total = None
        for fallback in self.fallbacks:  # outputs that somebody keeps have hooks of theirs
            fallback.held.clear()
            fallback.recorded.clear()
        self.fallbacks.clear()
        self.look_ups.clear()
        self.waiting.clear()
        self.graph.forget()
