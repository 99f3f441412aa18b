"""One helper that registers an op: the only place in the package that touches ``torch.library``."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from sigeo_ext import _flops

NAMESPACE = "sigeo_ext"
_library = torch.library.Library(NAMESPACE, "DEF")
_names: list[str] = []
_triton: dict[str, str] = {}
_gradients: dict[Any, Callable[..., Any]] = {}
_served_by_triton: set[str] = set()
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)


def define(
    schema: str,
    reference: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    vmap: Callable[..., Any] | None = None,
    flops: Callable[..., int] | None = None,
    triton: str | None = None,
) -> Any:
    """Register an op and return it.

    The reference is the op's meaning on every device; a compiled kernel for one device, once
    loaded, goes before it there. An op with a gradient is its reference where other derivatives
    are asked for, those of forward mode and of `torch.func`. Autocast leaves an op's dtypes as they
    are, but in `torch.func`, where it reaches the operations of the reference.

    Args:
        schema: The op's schema, for example ``"moments_dot(Tensor[] a, Tensor[] b) -> Tensor"``.
        reference: Plain torch, with the schema's arguments.
        fake: Shapes and dtypes of the results from fake tensors.
        setup_context: Saves what ``backward`` needs.
        backward: The gradient, itself made of ops. The results of an op without one are constants.
        vmap: The batching rule, ``(info, in_dims, *args) -> (outputs, out_dims)``.
        flops: Floating-point operations from the arguments' shapes (tensors come as shapes).
        triton: "module:function" with the schema's arguments, for CUDA tensors, imported when first
            called; see `register_triton`.

    Returns:
        The default overload of the op.
    """
    name = schema.split("(", 1)[0]
    reference = _without_autocast(reference)
    _library.define(schema)
    if "!" in schema:
        _count_versions(name)
    if "Tensor?[]" in schema:
        _resolve_negatives(name)
    _library.impl(name, reference, "CompositeExplicitAutograd")
    qualified = f"{NAMESPACE}::{name}"
    torch.library.register_fake(qualified, _refusing_meta_beside_others(name, fake), lib=_library)
    op = getattr(torch.ops.sigeo_ext, name)
    if backward is not None and setup_context is not None:
        _register_gradient(op.default, reference, setup_context, backward)
    if vmap is not None:
        torch.library.register_vmap(qualified, vmap, lib=_library)
    if flops is not None:
        _flops.add(op, flops)
    if triton is not None:
        _triton[name] = triton
    _names.append(name)
    return op.default


def needs_gradient(args: Sequence[Any]) -> bool:
    """Whether autograd would have a node for a function of these arguments."""
    return bool(torch.is_grad_enabled() and torch._C._any_requires_grad(*args))


def has_tangents(args: Sequence[Any]) -> bool:
    """Whether forward mode, plain or in `torch.func`, follows a tensor among these arguments."""
    # A compiled graph enters the one level there is without Python's count of it.
    if forward_ad._current_level < 0 and not torch._C._are_functorch_transforms_active():
        return False
    return any(
        isinstance(value, torch.Tensor)
        and torch._VF._unpack_dual(value, level=0).tangent is not None
        for arg in args
        for value in (arg if isinstance(arg, list | tuple) else [arg])
    )


def refuse_tangents(op: str, gradients: Sequence[Any]) -> None:
    """Refuse forward mode through an op's backward pass, which it cannot follow.

    Raises:
        NotImplementedError: Forward mode follows one of the gradients that come in.
    """
    if has_tangents(gradients):
        raise NotImplementedError(
            f"{op}: forward mode does not go through its backward pass; "
            "take torch.func.vjp for that gradient"
        )


def call(op: Any, *args: Any) -> Any:
    """An op's result, without the dispatcher's turn through Python where it can be spared."""
    if torch.compiler.is_compiling() or has_tangents(args):
        return op(*args)
    if needs_gradient(args):
        apply = _gradients.get(op)
        # Modes and transforms are to see the op, not what it is made of.
        seen = torch._C._len_torch_function_stack() or torch._C._are_functorch_transforms_active()
        return op(*args) if apply is None or seen else apply(None, args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def _without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose torch runs in the dtypes it is given, as a compiled kernel does."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        if not torch._C._is_any_autocast_enabled():
            return function(*args)
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return function(*args)

    return run


def _register_gradient(
    op: Any,
    reference: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> None:
    """What `torch.library.register_autograd` does, for an op without defaults.

    Without its search for arguments that were left out, which is quadratic in their number: 30
    microseconds a call for nine; and without its trees for lists of tensors: another 100. And with
    derivatives of forward mode and in `torch.func`, the reference's.
    """
    after = torch._C._after_autograd_keyset
    lists = [_holds_tensors(argument.type) for argument in op._schema.arguments]
    gives = [_holds_tensors(result.type) for result in op._schema.returns]
    one_tensor = gives == [False]

    def forward(ctx: Any, keys: Any, given: list[int], made: list[int], *flat: Any) -> Any:
        args = _nested(flat, lists, given)
        with torch._C._AutoDispatchBelowAutograd():
            result = op(*args) if keys is None else op.redispatch(keys & after, *args)
        setup_context(ctx, args, result)
        ctx.given, ctx.made = given, made
        if one_tensor:
            return result
        results = [result] if len(gives) == 1 else result
        made += _lengths(results, gives)
        return tuple(_flat(results, gives, made))

    def gradients(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        needs = _nested(ctx.needs_input_grad[3:], lists, ctx.given)
        found = backward(
            _Needing(ctx, needs), *(grads if one_tensor else _nested(grads, gives, ctx.made))
        )
        found = found if isinstance(found, tuple) else (found,)
        return (None, None, None, *_flat(found, lists, ctx.given))

    name = f"GradientOf_{op._schema.name.split('::')[1]}"
    members = {"forward": staticmethod(forward), "backward": staticmethod(gradients)}
    function: Any = type(name, (torch.autograd.Function,), members)

    def apply(keys: Any, args: Sequence[Any]) -> Any:
        given, made = _lengths(args, lists), list[int]()
        found = function.apply(keys, given, made, *_flat(args, lists, given))
        if one_tensor:
            return found
        results = _nested(found, gives, made)
        return results[0] if len(gives) == 1 else results

    def kernel(keys: Any, *args: Any) -> Any:
        needed = needs_gradient(args)
        if has_tangents(args) or (needed and torch._C._are_functorch_transforms_active()):
            return reference(*args)
        if needed:
            return apply(keys, args)
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keys & after, *args)

    _library.impl(op._schema.name.split("::")[1], kernel, "Autograd", with_keyset=True)
    _gradients[op] = apply


def _holds_tensors(kind: Any) -> bool:
    """Whether an argument's type is a list of tensors, of which some may be None."""
    return str(kind) in ("List[Tensor]", "List[Optional[Tensor]]")


def _lengths(values: Sequence[Any], lists: Sequence[bool]) -> list[int]:
    """Of the lists among values."""
    return [len(value) for value, is_list in zip(values, lists, strict=True) if is_list]


def _flat(values: Sequence[Any], lists: Sequence[bool], lengths: Sequence[int]) -> list[Any]:
    """Values with the lists among them opened; None for a list is so many of it."""
    flat: list[Any] = []
    length = iter(lengths)
    for value, is_list in zip(values, lists, strict=True):
        if is_list:
            count = next(length)
            flat += [None] * count if value is None else value
        else:
            flat.append(value)
    return flat


def _nested(flat: Sequence[Any], lists: Sequence[bool], lengths: Sequence[int]) -> tuple[Any, ...]:
    """The inverse of `_flat`."""
    values: list[Any] = []
    length, begin = iter(lengths), 0
    for is_list in lists:
        end = begin + (next(length) if is_list else 1)
        values.append(list(flat[begin:end]) if is_list else flat[begin])
        begin = end
    return tuple(values)


class _Needing:
    """A context as an op's backward sees it: which of the op's own arguments need gradients."""

    def __init__(self, ctx: Any, needs_input_grad: tuple[Any, ...]) -> None:
        self._ctx = ctx
        self.needs_input_grad = needs_input_grad

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


def register_triton(*, instead_of_compiled: bool) -> None:
    """Let the Triton kernels serve CUDA tensors.

    Args:
        instead_of_compiled: Also for an op that has a compiled CUDA kernel.
    """
    for name, target in _triton.items():
        if instead_of_compiled or not has_kernel(name, "CUDA"):
            _library.impl(name, _imported_when_called(target), "CUDA", allow_override=True)
            _served_by_triton.add(name)


def has_triton() -> bool:
    """Whether the package triton is installed; does not import it."""
    return importlib.util.find_spec("triton") is not None


def _imported_when_called(target: str) -> Callable[..., Any]:
    module, function = target.split(":")
    return _without_autocast(
        lambda *args: getattr(importlib.import_module(module), function)(*args)
    )


def _count_versions(name: str) -> None:
    """Let autograd see what the op writes, so that a stale value in a graph raises.

    It keeps no history of it, so what requires a gradient is refused, as torch refuses a leaf.
    """
    overload = getattr(torch.ops.sigeo_ext, name).default
    written = [
        (index, argument.name)
        for index, argument in enumerate(overload._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]

    def kernel(keys: Any, *args: Any) -> Any:
        for index, argument in written:
            if needs_gradient([args[index]]):
                raise RuntimeError(
                    f"{name.replace('_', '.', 1)}: {argument} is written in place and must not "
                    "require a gradient; detach it, or write under torch.no_grad()"
                )
            torch.autograd.graph.increment_version(args[index])
        return overload.redispatch(keys & torch._C._after_ADInplaceOrView_keyset, *args)

    _library.impl(name, kernel, "ADInplaceOrView", with_keyset=True)


def _resolve_negatives(name: str) -> None:
    """Let the op read negative views, say `torch.imag` of a conjugate, as what they stand for.

    torch does so for tensors and lists of them, but passes over lists that may hold None.
    """
    overload = getattr(torch.ops.sigeo_ext, name).default
    written = [
        argument.alias_info is not None and argument.alias_info.is_write
        for argument in overload._schema.arguments
    ]
    after = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.Negative)

    def kernel(keys: Any, *args: Any) -> Any:
        for argument, is_written, value in zip(
            overload._schema.arguments, written, args, strict=True
        ):
            if is_written and any(t.is_neg() for t in value):
                raise RuntimeError(
                    f"{name.replace('_', '.', 1)}: {argument.name} is written in place and must "
                    "not hold negative views; take t.resolve_neg() in their place"
                )
        return overload.redispatch(keys & after, *_mapped(torch.Tensor.resolve_neg, args))

    _library.impl(name, kernel, "Negative", with_keyset=True)


def _mapped(function: Callable[[torch.Tensor], Any], args: Sequence[Any]) -> list[Any]:
    """Arguments with a function of the tensors in place of them."""
    return [
        _mapped(function, arg)
        if isinstance(arg, list | tuple)
        else function(arg)
        if isinstance(arg, torch.Tensor)
        else arg
        for arg in args
    ]


def _refusing_meta_beside_others(name: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """A fake that makes nothing of tensors without values but what has no values, too.

    Where the others are, a result would have the values of whatever was in its memory.
    """

    @functools.wraps(fake)
    def run(*args: Any) -> Any:
        result = fake(*args)
        given, made = _device_types(args), _device_types([result])
        if "meta" in given and given | made != {"meta"} and made != {"meta"}:
            others = ", ".join(sorted(given - {"meta"}))
            raise RuntimeError(f"{name}: all tensors must be on one device, got meta and {others}")
        return result

    return run


def _device_types(args: Sequence[Any]) -> set[str]:
    """Of the tensors among arguments or results."""
    found: set[str] = set()
    _mapped(lambda tensor: found.add(tensor.device.type), args)
    return found


def names() -> list[str]:
    """The names of all defined ops, in order of definition."""
    return list(_names)


def has_kernel(name: str, dispatch_key: str) -> bool:
    """Whether a kernel serves op ``name`` for ``dispatch_key`` ("CPU" or "CUDA")."""
    qualified = f"{NAMESPACE}::{name}"
    return torch._C._dispatch_has_kernel_for_dispatch_key(qualified, dispatch_key)


def implementation(name: str, device: str) -> str:
    """What serves op ``name`` on ``device``: that word (compiled), "triton" or "reference"."""
    if device == "cuda" and name in _served_by_triton:
        return "triton"
    return device if has_kernel(name, device.upper()) else "reference"
