"""From arrays of any library to plans of the C library. `lib` is that library: an object as `_numpy.Numpy`.

Checks and plans depend on the operands' layouts alone, so each set of layouts is checked and planned once, and found again
by the keys that `lib` makes of arrays. Nothing that is kept refers to an array."""
import functools
from dataclasses import dataclass
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from . import _t2fw

RULES = {"decay": 1, "delta": 2}
DEVICES = {1: "cpu", 2: "cuda", 3: "hip"}
DTYPES = {"float64": 1, "float32": 2, "float16": 3, "bfloat16": 4}
FORWARD, BACKWARD, STEP = 1, 2, 3
OPERANDS = ("v", "f", "q", "k", "g", "initial_state")
FLAGS = {"batch_invariant": 1, "gate_logits": 2}
Sizes = Tuple[Optional[int], ...]  # None is any size
Options = Tuple[Any, ...]  # backend and a bool for each of FLAGS; delta, which has no gates, is without the last


class Layout(NamedTuple):
    """An array but for its memory. rows: whether the C library takes it as it is; else it is copied first."""

    shape: Tuple[int, ...]
    strides: Tuple[int, ...]
    dtype: str
    device: Tuple[int, int]
    rows: bool


def state_dtype_for(data: str) -> str:
    return "float32" if data in ("float16", "bfloat16") else data


@dataclass(frozen=True, eq=False)
class Problem:
    """Operands that fit one another."""

    lib: Any
    rule: str
    layouts: Dict[str, Layout]  # those of OPERANDS and, in a step, final_state; absent ones are left out
    sizes: Tuple[int, int, int, int, int]
    sequences: int
    data: str
    gate: str
    state: str
    state_shape: Tuple[int, ...]
    options: Options

    @functools.cached_property
    def plan(self) -> _t2fw.Plan:
        return self.plan_for({})

    def plan_for(self, others: Dict[str, Layout]) -> _t2fw.Plan:
        """The plan; `others` are further operands. What is copied first is contiguous, as the C library assumes."""
        kinds = [
            0 if x not in self.layouts else 1 if self.layouts[x].shape[-1] == 1 and width != 1 else 2
            for x, width in (("f", self.sizes[3]), ("g", self.sizes[4]))
        ]
        strides = []
        for name, a in {**self.layouts, **others}.items():
            if a.rows:  # the one dimension that a step's operands lack is the token's
                strides.append((name, a.strides[:3] if len(a.shape) == 4 else (a.strides[0], 0, a.strides[1])))
        (device, index), (backend, *on) = self.layouts["v"].device, self.options
        flags = sum(flag for flag, is_on in zip(FLAGS.values(), on) if is_on)
        return _t2fw.Plan(
            RULES[self.rule], DTYPES[self.data], DTYPES[self.gate], DTYPES[self.state], kinds[0], kinds[1],
            device, index, backend, flags, self.sizes, self.sequences, strides,
        )

    @functools.cached_property
    def copied(self) -> Tuple[int, ...]:
        return tuple(i for i, name in enumerate(OPERANDS) if name in self.layouts and not self.layouts[name].rows)

    def inputs(self, arrays: Sequence[Any]) -> Sequence[Any]:
        """OPERANDS and then cu_seqlens or slot_indices as the C library takes them."""
        if self.copied or arrays[6] is not None:
            arrays = [self.lib.copy(a) if i in self.copied else a for i, a in enumerate(arrays)]
            arrays[6] = None if arrays[6] is None else self.lib.indices(arrays[6])
        return arrays


def _expect(name: str, a: Layout, shape: Sizes, text: str, v: Layout) -> None:
    if len(a.shape) != len(shape) or any(n is not None and n != m for n, m in zip(shape, a.shape)):
        sizes = ", ".join("any" if n is None else str(n) for n in shape)
        known = any(n is not None for n in shape)
        raise ValueError(f"{name} has shape {list(a.shape)}; expected {text}" + (f" = [{sizes}]" if known else ""))
    (kind, index), (want, want_index) = a.device, v.device
    if (kind, index) != (want, want_index):
        raise ValueError(f"{name} is on {DEVICES[kind]}:{index}; expected {DEVICES[want]}:{want_index}, as v")


def _check_tokens(x: Dict[str, Layout], token: str) -> str:
    """Checks v, q, k, f, g, each [*sizes,width] written as `token` % width; returns the gates' dtype."""
    v = x["v"]
    _expect("v", v, (None,) * (token.count(",") + 1), token % "D", v)
    sizes, data = v.shape[:-1], v.dtype
    _expect("k", x["k"], (*sizes, None), token % "K", v)
    K = x["k"].shape[-1]
    _expect("q", x["q"], (*sizes, K), token % "K", v)
    if data not in DTYPES:
        raise ValueError(f"v has dtype {data}; expected one of {', '.join(DTYPES)}")
    for name in "qk":
        if x[name].dtype != data:
            raise ValueError(f"{name} has dtype {x[name].dtype}; expected {data}, as v")
    gate = None
    for name, width, letter in (("f", v.shape[-1], "D"), ("g", K, "K")):
        if name not in x:
            continue
        a = x[name]
        narrow = len(a.shape) == len(v.shape) and a.shape[-1] == 1
        _expect(name, a, (*sizes, 1 if narrow else width), f"{token % letter} or {token % 1}", v)
        if a.dtype not in (data, state_dtype_for(data)):
            raise ValueError(f"{name} has dtype {a.dtype}; expected {data}, as v, or float32 beside 16-bit data")
        if gate is not None and a.dtype != gate:
            raise ValueError(f"g has dtype {a.dtype}; expected {gate}, as f")
        gate = a.dtype
    return gate or data


def _check_cu_seqlens(a: Layout, v: Layout) -> int:
    """-> how many sequences"""
    text = "[sequences + 1]"
    if a.dtype not in ("int32", "int64"):
        raise ValueError(f"cu_seqlens has dtype {a.dtype}; expected int64")
    if len(a.shape) != 1 or a.shape[0] < 2:
        raise ValueError(f"cu_seqlens has shape {list(a.shape)}; expected {text}, at least [2]")
    if v.shape[0] != 1:
        raise ValueError(f"B is {v.shape[0]} with cu_seqlens; expected 1")
    _expect("cu_seqlens", a, (None,), text, v)
    return a.shape[0] - 1


def _check_slot_indices(a: Layout, v: Layout) -> None:
    if a.dtype not in ("int32", "int64"):
        raise ValueError(f"slot_indices has dtype {a.dtype}; expected int64")
    _expect("slot_indices", a, (v.shape[0],), "[B]", v)


def _check_out_state(a: Layout, state: Layout, v: Layout) -> None:
    _expect("out_state", a, state.shape, "the shape of state", v)
    if a.dtype != state.dtype:
        raise ValueError(f"out_state has dtype {a.dtype}; expected {state.dtype}, as state")
    if not a.rows:
        raise ValueError(f"out_state has strides {list(a.strides)}; expected an aligned array whose last "
                         "dimension is contiguous")


@functools.lru_cache(maxsize=1024)  # safe across threads
def _checked(lib: Any, rule: str, options: Options, *keys: Any) -> Problem:
    """keys: those of OPERANDS, of cu_seqlens or a step's slot_indices, and of out_state, which only a step has."""
    *layouts, indices, out_state = (None if key is None else lib.layout(key) for key in keys)
    x = {name: a for name, a in zip(OPERANDS, layouts) if a is not None}
    step = out_state is not None
    gate = _check_tokens(x, "[B,H,%s]" if step else "[B,T,H,%s]")
    v, state, data = x["v"], x.get("initial_state"), x["v"].dtype
    B, T, H, D, K = v.shape[0], 1 if step else v.shape[1], v.shape[-2], v.shape[-1], x["k"].shape[-1]
    sequences = 0 if step or indices is None else _check_cu_seqlens(indices, v)
    state_shape, state_dtype = (sequences or B, H, D, K), state_dtype_for(data)
    if state is not None:
        name, pool = "state" if step else "initial_state", step and indices is not None
        letters = "[slots,H,D,K]" if pool else "[sequences,H,D,K]" if sequences else "[B,H,D,K]"
        _expect(name, state, (None if pool else state_shape[0], H, D, K), letters, v)
        if state.dtype not in (data, state_dtype):
            raise ValueError(f"{name} has dtype {state.dtype}; expected {data}, as v, or float32 beside 16-bit data")
        state_shape, state_dtype = state.shape, state.dtype
        if out_state is not None:
            _check_out_state(out_state, state, v)
            x["final_state"] = out_state
    if step and indices is not None:
        _check_slot_indices(indices, v)
    return Problem(lib, rule, x, (B, T, H, D, K), sequences, data, gate, state_dtype, state_shape, options)


def problem(lib: Any, rule: str, arrays: Sequence[Any], options: Options) -> Problem:
    """Of arrays in the order of the keys of `_checked`; absent ones are None. Errors: those of the package."""
    backend, *on = options
    if backend is not None and not isinstance(backend, str):
        raise TypeError(f"backend is a {type(backend).__name__}; expected a string or None")
    for name, is_on in zip(FLAGS, on):
        if not isinstance(is_on, bool):
            raise TypeError(f"{name} is a {type(is_on).__name__}; expected a bool")
    return _checked(lib, rule, options, *lib.keys(arrays))


def forward(lib: Any, rule: str, arrays: Sequence[Any], options: Options, save: bool) -> Tuple[Any, Any, Any]:
    """Of v, f, q, k, g, initial_state, cu_seqlens -> y, final_state, saved, None unless `save`"""
    p = problem(lib, rule, (*arrays, None), options)
    plan, v = p.plan, arrays[0]
    y, final_state = lib.like(v), lib.empty(p.state_shape, p.state, v)
    size = plan.saved_size if save else 0
    saved = lib.bytes(size, v) if save else None
    scratch_size = plan.scratch_size(FORWARD)
    lib.run(plan.forward, (*p.inputs(arrays), y, final_state, saved, lib.bytes(scratch_size, v)), size, scratch_size)
    return y, final_state, saved


@functools.lru_cache(maxsize=1024)
def _backward_plan(p: Problem, d_y: Any, d_final_state: Any) -> Tuple[_t2fw.Plan, bool, bool]:
    """For two keys -> the plan, and which of the two have to be copied. Errors: as `problem`."""
    given = {"d_y": d_y, "d_final_state": d_final_state}
    layouts = {name: p.lib.layout(key) for name, key in given.items() if key is not None}
    v = p.layouts["v"]
    for name, shape, dtype in (("d_y", v.shape, p.data), ("d_final_state", p.state_shape, p.state)):
        if name in layouts:
            _expect(name, layouts[name], shape, f"the shape of {name[2:]}", v)
            if layouts[name].dtype != dtype:
                raise ValueError(f"{name} has dtype {layouts[name].dtype}; expected {dtype}, as {name[2:]}")
    plan = p.plan_for(layouts)
    copied = [name in layouts and not layouts[name].rows for name in given]
    if (plan.backend, plan.saved_size) != (p.plan.backend, p.plan.saved_size):  # saved is in the layout of p.plan
        plan, copied = p.plan, [name in layouts for name in given]
    return plan, copied[0], copied[1]


def backward(
    lib: Any, rule: str, arrays: Sequence[Any], options: Options, saved: Any, d_y: Any, d_final_state: Any
) -> List[Any]:
    """Of the arrays of `forward` -> the gradients of OPERANDS, None for absent ones."""
    p = problem(lib, rule, (*arrays, None), options)
    plan, *copied = _backward_plan(p, *lib.keys((d_y, d_final_state)))
    d_y, d_final_state = (lib.copy(a) if copy else a for a, copy in zip((d_y, d_final_state), copied))
    d = [None if a is None else lib.like(a) for a in arrays[:6]]
    scratch_size = plan.scratch_size(BACKWARD)
    scratch = lib.bytes(scratch_size, arrays[0])
    lib.run(plan.backward, (*p.inputs(arrays), saved, d_y, d_final_state, *d, scratch), len(saved), scratch_size)
    return d


def step(lib: Any, rule: str, arrays: Sequence[Any], options: Options) -> Any:
    """Of v, f, q, k, g, state, slot_indices, out_state, which is written -> y"""
    p = problem(lib, rule, arrays, options)
    plan, v = p.plan, arrays[0]
    y, scratch_size = lib.like(v), plan.scratch_size(STEP)
    slots = 0 if arrays[6] is None else p.state_shape[0]
    lib.run(plan.step, (*p.inputs(arrays[:7]), arrays[7], y, lib.bytes(scratch_size, v)), slots, scratch_size)
    return y
