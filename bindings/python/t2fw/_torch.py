"""The library for PyTorch: the array library of `_core`, and the custom operators t2fw::*."""
import contextlib
from typing import Any, List, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _core, _t2fw

_functorch = torch._C._functorch
_DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_AUTOCAST = (torch.float32, torch.float16, torch.bfloat16)


def _no_memory(a: Tensor) -> int:
    """The address of a tensor that has none."""
    if a.numel():
        raise ValueError(f"a tensor of shape {list(a.shape)} has no memory; expected one whose elements are there")
    return 0


class Torch:
    @staticmethod
    def keys(arrays: Sequence[Optional[Tensor]]) -> List[Any]:
        return [None if a is None else (a.shape, a.stride(), a.dtype, a.device, a.is_neg()) for a in arrays]

    @staticmethod
    def layout(key: Any) -> _core.Layout:
        shape, strides, dtype, device, negative = key
        if device.type not in ("cpu", "cuda"):
            raise _t2fw.UnsupportedError(f"tensors are on device {device}; expected cpu or cuda")
        kind = 1 if device.type == "cpu" else 3 if torch.version.hip else 2
        rows = not negative and (0 in shape or shape[-1:] in ((), (1,)) or strides[-1] == 1)
        return _core.Layout(tuple(shape), strides, str(dtype).removeprefix("torch."), (kind, device.index or 0), rows)

    @staticmethod
    def run(method: Any, arrays: Sequence[Any], *numbers: int) -> None:
        addresses, v = tuple([None if a is None else a.data_ptr() or _no_memory(a) for a in arrays]), arrays[0]
        if v.is_cpu:
            method(addresses, *numbers, 0)
            return
        index = v.get_device()
        with contextlib.nullcontext() if torch.cuda.current_device() == index else torch.cuda.device(index):
            method(addresses, *numbers, torch._C._cuda_getCurrentRawStream(index))

    @staticmethod
    def copy(a: Tensor) -> Tensor:
        return a.clone(memory_format=torch.contiguous_format)

    @staticmethod
    def indices(a: Tensor) -> Tensor:
        return a.to(torch.int64).contiguous()

    @staticmethod
    def bytes(size: int, like: Tensor) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, device=like.device)

    @staticmethod
    def empty(shape: Tuple[int, ...], dtype: str, like: Tensor) -> Tensor:
        return torch.empty(shape, dtype=_DTYPES[dtype], device=like.device)

    @staticmethod
    def like(a: Tensor) -> Tensor:
        return torch.empty_like(a, memory_format=torch.contiguous_format)


_INPUTS = {"decay": ("v", "f", "q", "k", "g"), "delta": ("q", "k", "v")}
_LOGITS = {"decay": ", bool gate_logits", "delta": ""}


def _schema(rule: str, rest: str, returns: str) -> str:
    tokens = [f"Tensor{'?' if x in 'fg' else ''} {x}" for x in _INPUTS[rule]]
    return f"({', '.join(tokens)}, {rest}{_LOGITS[rule]}) -> {returns}"


def _named(rule: str, args: Tuple[Any, ...]) -> Tuple[Tuple[Any, ...], Any]:
    """An operator's arguments -> v, f, q, k, g, absent ones None, and the other arguments."""
    x = dict(zip(_INPUTS[rule], args))
    return tuple(map(x.get, "vfqkg")), args[len(x) :]


def _final_state(v: Tensor, k: Tensor, state: Optional[Tensor], cu_seqlens: Optional[Tensor]) -> Tensor:
    n = v.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    dtype = state.dtype if state is not None else torch.float32 if v.dtype in (torch.float16, torch.bfloat16) else v.dtype
    return v.new_empty((n, v.shape[2], v.shape[3], k.shape[3]), dtype=dtype)


def _fresh_state(state: Tensor, slots: Optional[Tensor]) -> Tensor:
    """What takes the state after a step: with slots, those that are not stepped stay."""
    return Torch.like(state) if slots is None else Torch.copy(state)


def _custom_op(name: str, function: Any, fake: Any, schema: str, mutates_args: Sequence[str] = ()) -> Any:
    op = torch.library.custom_op(f"t2fw::{name}", function, mutates_args=mutates_args, schema=schema)
    op.register_fake(fake)
    return op


def _define_parallel(rule: str) -> None:
    """t2fw::decay, t2fw::delta"""

    def forward(*args: Any) -> Tuple[Tensor, Tensor, Tensor]:
        tokens, (state, cu_seqlens, save, *options) = _named(rule, args)
        y, final_state, saved = _core.forward(Torch, rule, (*tokens, state, cu_seqlens), tuple(options), save)
        return y, final_state, saved if save else Torch.bytes(0, y)

    def fake(*args: Any) -> Tuple[Tensor, Tensor, Tensor]:
        tokens, (state, cu_seqlens, save, *options) = _named(rule, args)
        v, arrays = tokens[0], (*tokens, state, cu_seqlens)
        size: Any = 0
        if save:
            if any(isinstance(n, torch.SymInt) for a in arrays if a is not None for n in (*a.shape, *a.stride())):
                size = torch.library.get_ctx().new_dynamic_size()
            else:
                size = _core.problem(Torch, rule, (*arrays, None), tuple(options)).plan.saved_size
        return Torch.like(v), _final_state(v, tokens[3], state, cu_seqlens), v.new_empty(size, dtype=torch.uint8)

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        arrays = len(_INPUTS[rule]) + 2
        ctx.rule_save, *ctx.options = inputs[arrays:]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:arrays], output[2])

    def differentiate(ctx: Any, d_y: Any, d_final_state: Any, d_saved: Any) -> Tuple[Any, ...]:
        if not ctx.rule_save:
            raise RuntimeError(f"t2fw::{rule} was called with save=False, so it has no gradient")
        *inputs, cu_seqlens, saved = ctx.saved_tensors
        if d_y is None:
            d_y = torch.zeros_like(inputs[_INPUTS[rule].index("v")])
        d = _gradients(rule, inputs, cu_seqlens, saved, d_y, d_final_state, ctx.options)
        return (*d, None, None, *(None for _ in ctx.options))

    op = _custom_op(rule, forward, fake, _schema(
        rule, "Tensor? initial_state, Tensor? cu_seqlens, bool save, str? backend, bool batch_invariant",
        "(Tensor, Tensor, Tensor)"))
    op.register_autograd(differentiate, setup_context=setup)


def _define_backward(rule: str) -> None:
    """t2fw::decay_backward, t2fw::delta_backward: the gradients of the inputs and the initial state that are given"""
    names = (*_INPUTS[rule], "initial_state")

    def backward(*args: Any) -> List[Tensor]:
        tokens, (state, cu_seqlens, saved, d_y, d_final_state, *options) = _named(rule, args)
        d = _core.backward(Torch, rule, (*tokens, state, cu_seqlens), tuple(options), saved, d_y, d_final_state)
        named = dict(zip(_core.OPERANDS, d))
        return [named[n] for n in names if named[n] is not None]

    def fake(*args: Any) -> List[Tensor]:
        return [Torch.like(a) for a in args[: len(names)] if a is not None]

    def differentiate(*args: Any) -> None:
        raise RuntimeError(f"the gradient of t2fw::{rule} cannot be differentiated: there are no second derivatives")

    op = _custom_op(f"{rule}_backward", backward, fake, _schema(
        rule, "Tensor? initial_state, Tensor? cu_seqlens, Tensor saved, Tensor d_y, Tensor? d_final_state, str? backend, "
        "bool batch_invariant", "Tensor[]"))
    op.register_autograd(differentiate)


def _gradients(rule, inputs, cu_seqlens, saved, d_y, d_final_state, options):  # type: ignore[no-untyped-def]
    """t2fw::*_backward of an operator's inputs and initial state -> the gradient of each, None for absent ones."""
    _no_batches(d_y, d_final_state)
    op = getattr(torch.ops.t2fw, rule + "_backward")
    each = iter(op(*inputs, cu_seqlens, saved, d_y, d_final_state, *options))
    return [None if a is None else next(each) for a in inputs]


def _define_step(rule: str) -> None:
    """t2fw::decay_step, t2fw::delta_step: tokens [B,H,X] -> y, a fresh state"""

    def step(*args: Any) -> Tuple[Tensor, Tensor]:
        tokens, (state, slots, backend, *logits) = _named(rule, args)
        out = _fresh_state(state, slots)
        return _core.step(Torch, rule, (*tokens, state, slots, out), (backend, False, *logits)), out

    def fake(*args: Any) -> Tuple[Tensor, Tensor]:
        tokens, (state, *_) = _named(rule, args)
        return Torch.like(tokens[0]), Torch.like(state)

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        arrays = len(_INPUTS[rule]) + 2
        backend, *logits = inputs[arrays:]
        ctx.options = (backend, False, *logits)
        ctx.save_for_backward(*inputs[:arrays])

    def differentiate(ctx: Any, d_y: Tensor, d_new: Tensor) -> Tuple[Any, ...]:
        *tokens, state, slots = ctx.saved_tensors
        tokens = [None if a is None else a.unsqueeze(1) for a in tokens]
        rows, d_rows = state, d_new
        if slots is not None:  # the rows of the pool; one that is passed over hands no gradient on
            used, index = slots >= 0, slots.to(torch.int64).clamp(min=0)
            rows = state.index_select(0, index)
            d_rows = torch.where(used[:, None, None, None], d_new.index_select(0, index), 0)
            d_y = torch.where(used[:, None, None], d_y, 0)
        _, _, saved = getattr(torch.ops.t2fw, rule)(*tokens, rows, None, True, *ctx.options)
        *d, d_state = _gradients(rule, (*tokens, rows), None, saved, d_y.unsqueeze(1), d_rows, ctx.options)
        if slots is not None:  # one more row takes what passed-over rows would write
            pool = torch.cat([d_new, torch.zeros_like(d_new[:1])])
            d_state = pool.index_copy(0, torch.where(used, index, state.shape[0]), d_state)[:-1]
        return (*(None if a is None else a.squeeze(1) for a in d), d_state, None, *(None for _ in ctx.options[1:]))

    op = _custom_op(f"{rule}_step", step, fake, _schema(
        rule, "Tensor state, Tensor? slot_indices, str? backend", "(Tensor, Tensor)"))
    op.register_autograd(differentiate, setup_context=setup)


def _define_mutating_steps(rule: str) -> None:
    """t2fw::*_step_ works in place, t2fw::*_step_out writes another tensor"""

    def step_in_place(*args: Any) -> Tensor:
        tokens, (state, slots, backend, *logits) = _named(rule, args)
        return _core.step(Torch, rule, (*tokens, state, slots, state), (backend, False, *logits))

    def step_out(*args: Any) -> Tensor:
        tokens, (state, out_state, slots, backend, *logits) = _named(rule, args)
        return _core.step(Torch, rule, (*tokens, state, slots, out_state), (backend, False, *logits))

    def fake(*args: Any) -> Tensor:
        return Torch.like(_named(rule, args)[0][0])

    for name, function, mutated, rest in (
        ("step_", step_in_place, "state", "Tensor(a!) state"),
        ("step_out", step_out, "out_state", "Tensor state, Tensor(a!) out_state"),
    ):
        schema = _schema(rule, rest + ", Tensor? slot_indices, str? backend", "Tensor")
        _custom_op(f"{rule}_{name}", function, fake, schema, (mutated,))


for _rule in _INPUTS:
    _define_parallel(_rule)
    _define_backward(_rule)
    _define_step(_rule)
    _define_mutating_steps(_rule)


def _cast(v: Any, f: Any, q: Any, k: Any, g: Any) -> Tuple[Any, ...]:
    """Autocast: data to its dtype; gates stay float32 if they are. What it would not convert is left to be an error."""
    for name, a in (("v", v), ("f", f), ("q", q), ("k", k), ("g", g)):
        if not isinstance(a, Tensor) and (a is not None or name in "vqk"):
            raise TypeError(f"{name} is a {type(a).__name__}; expected a torch tensor, as another argument is")
    kind = v.device.type
    if kind not in ("cpu", "cuda"):
        raise _t2fw.UnsupportedError(f"v is on device {v.device}; expected cpu or cuda")
    if torch.is_autocast_enabled(kind) and all(a is None or a.dtype in _AUTOCAST for a in (v, f, q, k, g)):
        dtype = torch.get_autocast_dtype(kind)
        v, q, k = v.to(dtype), q.to(dtype), k.to(dtype)
        wide = any(a is not None and a.dtype == torch.float32 for a in (f, g))
        gate = torch.float32 if wide else dtype
        f = None if f is None else f.to(gate)
        g = None if g is None else g.to(gate)
    return v, f, q, k, g


def _differentiable(*tensors: Optional[Tensor]) -> bool:
    if torch.is_grad_enabled():
        if torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling() and _wrapped(*tensors):
            return True
        for a in tensors:
            if a is not None and a.requires_grad:
                return True
    return False


def _no_tangents(*tensors: Optional[Tensor]) -> None:
    """Without a gradient to take, PyTorch would drop them in silence."""
    if any(a is not None and forward_ad.unpack_dual(a).tangent is not None for a in tensors):
        raise NotImplementedError("t2fw has no forward-mode derivatives; expected tensors without tangents")


def _no_batches(*gradients: Optional[Tensor]) -> None:
    if torch.compiler.is_compiling():
        return
    for a in gradients:
        if a is not None and (_functorch.is_legacy_batchedtensor(a) or _functorch.is_batchedtensor(a)):
            raise NotImplementedError("t2fw has no batched gradients; expected one at a time, not is_grads_batched or vmap")


def _wrapped(*tensors: Optional[Tensor]) -> bool:
    """Whether what a transform wraps wants a gradient, which the wrapper does not tell; torch.func.grad's own is an error."""
    wanted = False
    for a in tensors:
        while a is not None and _functorch.is_functorch_wrapped_tensor(a):
            if a.requires_grad and _functorch.is_gradtrackingtensor(a):
                raise NotImplementedError("t2fw has no gradients of torch.func; expected those of torch.autograd")
            a = _functorch.get_unwrapped(a)
            wanted |= a.requires_grad
    return wanted


def _plain(*tensors: Optional[Tensor]) -> bool:
    """Whether nobody has to see a call as an operator: no compiler or tracer, mode, transform, or tensors of other classes."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
        return False
    if torch._C._get_tracing_state() is not None:  # of torch.jit.trace, which would keep an output and not who writes it
        return False
    for a in tensors:
        if not (a is None or type(a) is Tensor or type(a) is torch.nn.Parameter):
            return False
    return True


class _Parallel(torch.autograd.Function):
    """What t2fw::decay and t2fw::delta do, in one layer: those of an operator's in Python take longer than many kernels."""

    @staticmethod
    def forward(ctx: Any, rule: str, options: _core.Options, *arrays: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
        y, final_state, saved = _core.forward(Torch, rule, arrays, options, True)
        ctx.rule, ctx.options = rule, options
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arrays, saved)
        return y, final_state

    @staticmethod
    def backward(ctx: Any, d_y: Optional[Tensor], d_final_state: Optional[Tensor]) -> Tuple[Any, ...]:
        *arrays, saved = ctx.saved_tensors
        _no_batches(d_y, d_final_state)
        if d_y is None:
            d_y = torch.zeros_like(arrays[0])
        # who keeps the graph of a gradient gets the operator's, which raises: that of nothing at all would count as zero
        compute = _core.backward if _plain(d_y, d_final_state) and not torch.is_grad_enabled() else _backward_operator
        return (None, None, *compute(Torch, ctx.rule, arrays, ctx.options, saved, d_y, d_final_state), None)


def _backward_operator(_: Any, rule, arrays, options, saved, d_y, d_final_state):  # type: ignore[no-untyped-def]
    """As _core.backward."""
    *operands, cu_seqlens = arrays
    x, names = dict(zip(_core.OPERANDS, operands)), (*_INPUTS[rule], "initial_state")
    d = _gradients(rule, [x[n] for n in names], cu_seqlens, saved, d_y, d_final_state, options)
    return list(map(dict(zip(names, d)).get, _core.OPERANDS))


def parallel(rule, v, f, q, k, g, initial_state, cu_seqlens, options):  # type: ignore[no-untyped-def]
    v, f, q, k, g = _cast(v, f, q, k, g)
    for name, a in (("initial_state", initial_state), ("cu_seqlens", cu_seqlens)):
        if a is not None and not isinstance(a, Tensor):
            raise TypeError(f"{name} is a {type(a).__name__}; expected a torch tensor, as v")
    arrays = (v, f, q, k, g, initial_state, cu_seqlens)
    if forward_ad._current_level >= 0:
        _no_tangents(*arrays)
    save = _differentiable(*arrays)
    if _plain(*arrays):
        return _Parallel.apply(rule, options, *arrays) if save else _core.forward(Torch, rule, arrays, options, False)[:2]
    if rule == "decay":
        y, final_state, _ = torch.ops.t2fw.decay(*arrays, save, *options)
    else:
        y, final_state, _ = torch.ops.t2fw.delta(q, k, v, initial_state, cu_seqlens, save, *options)
    return y, final_state


def step(rule, v, f, q, k, g, state, slot_indices, out_state, options):  # type: ignore[no-untyped-def]
    v, f, q, k, g = _cast(v, f, q, k, g)
    for name, a in (("state", state), ("slot_indices", slot_indices), ("out_state", out_state)):
        if not isinstance(a, Tensor) and (a is not None or name == "state"):
            raise TypeError(f"{name} is a {type(a).__name__}; expected a torch tensor, as v")
    if forward_ad._current_level >= 0:
        _no_tangents(v, f, q, k, g, state, out_state)
    save = _differentiable(v, f, q, k, g, state, out_state)
    if save and out_state is not None:
        raise ValueError("out_state cannot be given where a gradient is wanted; leave it out or use torch.no_grad()")
    if not save and _plain(v, f, q, k, g, state, slot_indices, out_state):
        out = _fresh_state(state, slot_indices) if out_state is None else out_state
        y = _core.step(Torch, rule, (v, f, q, k, g, state, slot_indices, out), options)
        if out_state is not None:
            torch.autograd.graph.increment_version(out)
        return y, out
    return _step_operator(rule, (v, f, q, k, g) if rule == "decay" else (q, k, v), state, slot_indices, out_state, options)


def _step_operator(rule, tokens, state, slot_indices, out_state, options):  # type: ignore[no-untyped-def]
    ops, (backend, _, *logits) = torch.ops.t2fw, options
    if out_state is None:
        op = ops.decay_step if rule == "decay" else ops.delta_step
        return op(*tokens, state, slot_indices, backend, *logits)
    if out_state is state:
        op = ops.decay_step_ if rule == "decay" else ops.delta_step_
        return op(*tokens, state, slot_indices, backend, *logits), state
    op = ops.decay_step_out if rule == "decay" else ops.delta_step_out
    return op(*tokens, state, out_state, slot_indices, backend, *logits), out_state
