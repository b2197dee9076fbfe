"""The library for PyTorch: the array library of `_core`, and the custom operators t2fw::*."""
import contextlib
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
from torch import Tensor

from . import _core, _t2fw

_DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Torch:
    @staticmethod
    def shape(a: Tensor) -> Tuple[int, ...]:
        return tuple(a.shape)

    @staticmethod
    def dtype(a: Tensor) -> str:
        return str(a.dtype).removeprefix("torch.")

    @staticmethod
    def strides(a: Tensor) -> Tuple[int, ...]:
        return a.stride()

    @staticmethod
    def device(a: Tensor) -> Tuple[int, int]:
        if a.device.type == "cpu":
            return 1, 0
        if a.device.type == "cuda":
            return (3 if torch.version.hip else 2), a.device.index or 0
        raise _t2fw.UnsupportedError(f"tensors are on device {a.device}; expected cpu or cuda")

    @staticmethod
    def address(a: Tensor) -> int:
        return a.data_ptr()

    @staticmethod
    @contextlib.contextmanager
    def stream(a: Tensor) -> Iterator[int]:
        if a.device.type == "cpu":
            yield 0
        else:
            with torch.cuda.device(a.device):
                yield torch.cuda.current_stream(a.device).cuda_stream

    @staticmethod
    def rows(a: Tensor) -> Tensor:
        good = a.shape[-1] == 1 or a.numel() == 0 or a.stride(-1) == 1
        return a if good and not a.is_neg() else a.clone(memory_format=torch.contiguous_format)

    @staticmethod
    def contiguous(a: Tensor) -> Tensor:
        return a.contiguous()

    @staticmethod
    def indices(a: Tensor) -> Tensor:
        return a.to(torch.int64).contiguous()

    @staticmethod
    def bytes(size: int, like: Tensor) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, device=like.device)

    @staticmethod
    def empty(shape: Tuple[int, ...], dtype: str, like: Tensor) -> Tensor:
        return torch.empty(shape, dtype=_DTYPES[dtype], device=like.device)


_INPUTS = {"decay": ("v", "f", "q", "k", "g"), "delta": ("q", "k", "v")}


def _schema(rule: str, rest: str, returns: str) -> str:
    tokens = [f"Tensor{'?' if x in 'fg' else ''} {x}" for x in _INPUTS[rule]]
    return f"({', '.join(tokens)}, {rest}) -> {returns}"


def _named(rule: str, args: Tuple[Any, ...]) -> Tuple[Dict[str, Any], List[Any]]:
    """The token operands by name (v f q k g, absent ones None), and the other arguments."""
    names = _INPUTS[rule]
    return {**dict.fromkeys("vfqkg"), **dict(zip(names, args))}, list(args[len(names) :])


def _state_like(x: Dict[str, Any], state: Optional[Tensor], cu_seqlens: Optional[Tensor]) -> Tensor:
    v, k = x["v"], x["k"]
    n = v.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    dtype = state.dtype if state is not None else torch.float32 if v.dtype in (torch.float16, torch.bfloat16) else v.dtype
    return v.new_empty((n, v.shape[2], v.shape[3], k.shape[3]), dtype=dtype)


def _fresh(a: Tensor) -> Tensor:
    return torch.empty(a.shape, dtype=a.dtype, device=a.device)


def _define(rule: str) -> None:
    names = _INPUTS[rule]

    # t2fw::decay, t2fw::delta
    def forward(*args: Any) -> Tuple[Tensor, Tensor, Tensor]:
        x, (state, cu_seqlens, save, backend) = _named(rule, args)
        return _core.forward(_core.problem(Torch, rule, *x.values(), state, cu_seqlens, backend), save)

    def forward_fake(*args: Any) -> Tuple[Tensor, Tensor, Tensor]:
        x, (state, cu_seqlens, save, backend) = _named(rule, args)
        v = x["v"]
        size: Any = 0
        if save:
            tensors = [a for a in (*x.values(), state, cu_seqlens) if a is not None]
            if any(isinstance(n, torch.SymInt) for a in tensors for n in (*a.shape, *a.stride())):
                size = torch.library.get_ctx().new_dynamic_size()
            else:
                size = _core.problem(Torch, rule, *x.values(), state, cu_seqlens, backend).plan().saved_size
        return _fresh(v), _state_like(x, state, cu_seqlens), v.new_empty(size, dtype=torch.uint8)

    op = torch.library.custom_op(
        f"t2fw::{rule}", forward, mutates_args=(),
        schema=_schema(rule, "Tensor? initial_state, Tensor? cu_seqlens, bool save, str? backend", "(Tensor, Tensor, Tensor)"))
    op.register_fake(forward_fake)

    # t2fw::decay_backward, t2fw::delta_backward: the gradients in the order of the inputs, then d_initial_state
    def backward(*args: Any) -> List[Tensor]:
        x, (state, cu_seqlens, saved, d_y, d_final_state, backend) = _named(rule, args)
        p = _core.problem(Torch, rule, *x.values(), state, cu_seqlens, backend)
        d = _core.backward(p, saved, d_y, d_final_state)
        return [d[n] for n in names if n in d] + [d["initial_state"]]

    def backward_fake(*args: Any) -> List[Tensor]:
        x, (state, cu_seqlens, *_) = _named(rule, args)
        return [_fresh(x[n]) for n in names if x[n] is not None] + [_state_like(x, state, cu_seqlens)]

    backward_op = torch.library.custom_op(
        f"t2fw::{rule}_backward", backward, mutates_args=(),
        schema=_schema(rule, "Tensor? initial_state, Tensor? cu_seqlens, Tensor saved, Tensor d_y, Tensor? d_final_state, "
                             "str? backend", "Tensor[]"))
    backward_op.register_fake(backward_fake)

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        x, (state, cu_seqlens, save, backend) = _named(rule, inputs)
        ctx.rule_save, ctx.backend = save, backend
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*(x[n] for n in names), state, cu_seqlens, output[2])

    def differentiate(ctx: Any, d_y: Any, d_final_state: Any, d_saved: Any) -> Tuple[Any, ...]:
        if not ctx.rule_save:
            raise RuntimeError(f"t2fw::{rule} was called with save=False, so it has no gradient")
        *tokens, state, cu_seqlens, saved = ctx.saved_tensors
        if d_y is None:
            d_y = torch.zeros_like(tokens[names.index("v")])
        d = backward_op(*tokens, state, cu_seqlens, saved, d_y, d_final_state, ctx.backend)
        *d, d_state = d
        each = iter(d)
        return (*(None if a is None else next(each) for a in tokens), None if state is None else d_state, None, None, None)

    op.register_autograd(differentiate, setup_context=setup)

    # t2fw::decay_step, t2fw::delta_step: tokens [B,H,X] -> y, a fresh state
    def problem(x: Dict[str, Any], state: Tensor, slots: Any, backend: Any) -> _core.Problem:
        for name, a in x.items():
            if a is not None and a.dim() != 3:
                raise ValueError(f"{name} has shape {list(a.shape)}; expected [B,H,{'D' if name in 'vf' else 'K'}]")
        tokens = [None if a is None else a.unsqueeze(1) for a in x.values()]
        return _core.problem(Torch, rule, *tokens, state, None, backend, slots is not None, step=True)

    def step(*args: Any) -> Tuple[Tensor, Tensor]:
        x, (state, slots, backend) = _named(rule, args)
        p = problem(x, state, slots, backend)
        out = Torch.empty(p.state_shape, p.state, x["v"])
        if slots is not None:
            out.copy_(state)
        return _core.step(p, slots, out).squeeze(1), out

    def step_fake(*args: Any) -> Tuple[Tensor, Tensor]:
        x, (state, *_) = _named(rule, args)
        return _fresh(x["v"]), _fresh(state)

    step_op = torch.library.custom_op(
        f"t2fw::{rule}_step", step, mutates_args=(),
        schema=_schema(rule, "Tensor state, Tensor? slot_indices, str? backend", "(Tensor, Tensor)"))
    step_op.register_fake(step_fake)

    def step_setup(ctx: Any, inputs: Any, output: Any) -> None:
        x, (state, slots, backend) = _named(rule, inputs)
        ctx.backend = backend
        ctx.save_for_backward(*(x[n] for n in names), state, slots)

    def step_differentiate(ctx: Any, d_y: Tensor, d_new: Tensor) -> Tuple[Any, ...]:
        *tokens, state, slots = ctx.saved_tensors
        tokens = [None if a is None else a.unsqueeze(1) for a in tokens]
        rows, d_rows = state, d_new
        if slots is not None:  # the rows of the pool; one that is passed over hands no gradient on
            used, index = slots >= 0, slots.to(torch.int64).clamp(min=0)
            rows = state.index_select(0, index)
            d_rows = torch.where(used[:, None, None, None], d_new.index_select(0, index), 0)
            d_y = torch.where(used[:, None, None], d_y, 0)
        _, _, saved = op(*tokens, rows, None, True, ctx.backend)
        *d, d_state = backward_op(*tokens, rows, None, saved, d_y.unsqueeze(1), d_rows, ctx.backend)
        if slots is not None:  # one more row takes what passed-over rows would write
            pool = torch.cat([d_new, torch.zeros_like(d_new[:1])])
            d_state = pool.index_copy(0, torch.where(used, index, state.shape[0]), d_state)[:-1]
        each = iter(d)
        return (*(None if a is None else next(each).squeeze(1) for a in tokens), d_state, None, None)

    step_op.register_autograd(step_differentiate, setup_context=step_setup)

    # t2fw::*_step_ works in place, t2fw::*_step_out writes another tensor
    def step_in_place(*args: Any) -> Tensor:
        x, (state, slots, backend) = _named(rule, args)
        return _core.step(problem(x, state, slots, backend), slots, state).squeeze(1)

    def step_out(*args: Any) -> Tensor:
        x, (state, out_state, slots, backend) = _named(rule, args)
        return _core.step(problem(x, state, slots, backend), slots, out_state).squeeze(1)

    for name, function, mutated, rest in (
        ("step_", step_in_place, "state", "Tensor(a!) state"),
        ("step_out", step_out, "out_state", "Tensor state, Tensor(a!) out_state"),
    ):
        mutating = torch.library.custom_op(
            f"t2fw::{rule}_{name}", function, mutates_args=(mutated,),
            schema=_schema(rule, rest + ", Tensor? slot_indices, str? backend", "Tensor"))
        mutating.register_fake(lambda *args: _fresh(_named(rule, args)[0]["v"]))


for _rule in _INPUTS:
    _define(_rule)


def _cast(v: Any, f: Any, q: Any, k: Any, g: Any) -> Tuple[Any, ...]:
    """Autocast: data to its dtype; gates stay float32 if they are."""
    for name, a in (("v", v), ("f", f), ("q", q), ("k", k), ("g", g)):
        if not isinstance(a, Tensor) and (a is not None or name in "vqk"):
            raise TypeError(f"{name} is a {type(a).__name__}; expected a torch tensor, as another argument is")
    kind = v.device.type
    if torch.is_autocast_enabled(kind) and v.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        v, q, k = v.to(dtype), q.to(dtype), k.to(dtype)
        wide = any(a is not None and a.dtype == torch.float32 for a in (f, g))
        gate = torch.float32 if wide else dtype
        f = None if f is None else f.to(gate)
        g = None if g is None else g.to(gate)
    return v, f, q, k, g


def _differentiable(*tensors: Optional[Tensor]) -> bool:
    if torch.is_grad_enabled():
        for a in tensors:
            if a is not None and a.requires_grad:
                return True
    return False


def _plain(*tensors: Optional[Tensor]) -> bool:
    """Whether nobody has to see a call as an operator: no compiler, no mode, no transform, no tensors of other classes."""
    return not (
        torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active()
    ) and all(a is None or type(a) in (Tensor, torch.nn.Parameter) for a in tensors)


class _Parallel(torch.autograd.Function):
    """What t2fw::decay and t2fw::delta do, in one layer: those of an operator's in Python take longer than many kernels."""

    @staticmethod
    def forward(ctx: Any, rule: str, backend: Optional[str], cu_seqlens: Optional[Tensor], state: Optional[Tensor],
                *tokens: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
        y, final_state, saved = _core.forward(_core.problem(Torch, rule, *tokens, state, cu_seqlens, backend), True)
        ctx.rule, ctx.backend = rule, backend
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(cu_seqlens, state, *tokens, saved)
        return y, final_state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_y: Optional[Tensor], d_final_state: Optional[Tensor]) -> Tuple[Any, ...]:
        cu_seqlens, state, *tokens, saved = ctx.saved_tensors
        if d_y is None:
            d_y = torch.zeros_like(tokens[0])
        p = _core.problem(Torch, ctx.rule, *tokens, state, cu_seqlens, ctx.backend)
        d = _core.backward(p, saved, d_y, d_final_state)
        return (None, None, None, None if state is None else d["initial_state"], *(d.get(n) for n in "vfqkg"))


def parallel(rule, v, f, q, k, g, initial_state, cu_seqlens, backend):  # type: ignore[no-untyped-def]
    v, f, q, k, g = _cast(v, f, q, k, g)
    for name, a in (("initial_state", initial_state), ("cu_seqlens", cu_seqlens)):
        if a is not None and not isinstance(a, Tensor):
            raise TypeError(f"{name} is a {type(a).__name__}; expected a torch tensor, as v")
    save = _differentiable(v, f, q, k, g, initial_state)
    if _plain(v, f, q, k, g, initial_state, cu_seqlens):
        if save:
            return _Parallel.apply(rule, backend, cu_seqlens, initial_state, v, f, q, k, g)
        return _core.forward(_core.problem(Torch, rule, v, f, q, k, g, initial_state, cu_seqlens, backend), False)[:2]
    if rule == "decay":
        y, final_state, _ = torch.ops.t2fw.decay(v, f, q, k, g, initial_state, cu_seqlens, save, backend)
    else:
        y, final_state, _ = torch.ops.t2fw.delta(q, k, v, initial_state, cu_seqlens, save, backend)
    return y, final_state


def step(rule, v, f, q, k, g, state, slot_indices, out_state, backend):  # type: ignore[no-untyped-def]
    v, f, q, k, g = _cast(v, f, q, k, g)
    for name, a in (("state", state), ("slot_indices", slot_indices), ("out_state", out_state)):
        if not isinstance(a, Tensor) and (a is not None or name == "state"):
            raise TypeError(f"{name} is a {type(a).__name__}; expected a torch tensor, as v")
    tokens = (v, f, q, k, g) if rule == "decay" else (q, k, v)
    ops = torch.ops.t2fw
    if out_state is None:
        op = ops.decay_step if rule == "decay" else ops.delta_step
        return op(*tokens, state, slot_indices, backend)
    if _differentiable(v, f, q, k, g, state, out_state):
        raise ValueError("out_state cannot be given where a gradient is wanted; leave it out or use torch.no_grad()")
    if out_state is state:
        op = ops.decay_step_ if rule == "decay" else ops.delta_step_
        return op(*tokens, state, slot_indices, backend), state
    op = ops.decay_step_out if rule == "decay" else ops.delta_step_out
    return op(*tokens, state, out_state, slot_indices, backend), out_state
