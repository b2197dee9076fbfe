"""From arrays of any library to plans of the C library. `lib` is that library: an object as `_numpy.Numpy`."""
import functools
from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple

from . import _t2fw

RULES = {"decay": 1, "delta": 2}
DEVICES = {1: "cpu", 2: "cuda", 3: "hip"}
DTYPES = {"float64": 1, "float32": 2, "float16": 3, "bfloat16": 4}
FORWARD, BACKWARD, STEP = 1, 2, 3

# A plan depends only on the descriptor's contents; lru_cache is safe across threads, and a plan may be shared.
plan_for = functools.lru_cache(maxsize=1024)(_t2fw.Plan)


def state_dtype_for(data: str) -> str:
    return "float32" if data in ("float16", "bfloat16") else data


@dataclass
class Problem:
    lib: Any
    rule: str
    inputs: Dict[str, Any]  # v f q k g, initial_state; absent ones are left out
    sizes: Tuple[int, int, int, int, int]
    sequences: int
    data: str
    gate: str
    state: str
    state_shape: Tuple[int, int, int, int]
    cu_seqlens: Any
    backend: Optional[str]

    def plan(self, **others: Any) -> _t2fw.Plan:
        """The plan for these inputs; `others` are operands that need not be contiguous."""
        lib = self.lib
        kinds = [
            0 if x not in self.inputs else 1 if lib.shape(self.inputs[x])[3] == 1 and width != 1 else 2
            for x, width in (("f", self.sizes[3]), ("g", self.sizes[4]))
        ]
        strides = tuple((name, lib.strides(a)[:3]) for name, a in {**self.inputs, **others}.items())
        device, index = lib.device(self.inputs["v"])
        return plan_for(
            RULES[self.rule], DTYPES[self.data], DTYPES[self.gate], DTYPES[self.state], kinds[0], kinds[1],
            device, index, self.backend, self.sizes, self.sequences, strides,
        )

    def run(self, method: Any, scratch_size: int, arrays: Dict[str, Any], **numbers: int) -> None:
        lib, v = self.lib, self.inputs["v"]
        scratch = lib.bytes(scratch_size, v)
        named = {**self.inputs, **arrays}
        if self.cu_seqlens is not None:
            named["cu_seqlens"] = self.cu_seqlens
        addresses = {n: lib.address(a) or _t2fw.EMPTY_ADDRESS for n, a in named.items() if a is not None}
        addresses["scratch"] = lib.address(scratch) if scratch_size else None
        addresses["scratch_size"] = scratch_size
        addresses.update(numbers)
        with lib.stream(v) as addresses["stream"]:
            method(addresses)


def _expect(lib: Any, name: str, a: Any, shape: Tuple[Optional[int], ...], text: str, v: Any, step: bool = False) -> None:
    """None in shape is any size. A step's operands are shown without the token dimension."""
    got = lib.shape(a)
    if got != shape and (len(got) != len(shape) or any(n is not None and n != m for n, m in zip(shape, got))):
        if step:
            got, shape = got[:1] + got[2:], shape[:1] + shape[2:]
        sizes = ", ".join("any" if n is None else str(n) for n in shape)
        known = any(n is not None for n in shape)
        raise ValueError(f"{name} has shape {list(got)}; expected {text}" + (f" = [{sizes}]" if known else ""))
    (kind, index), (want, want_index) = lib.device(a), lib.device(v)
    if (kind, index) != (want, want_index):
        raise ValueError(f"{name} is on {DEVICES[kind]}:{index}; expected {DEVICES[want]}:{want_index}, as v")


def problem(
    lib: Any, rule: str, v: Any, f: Any, q: Any, k: Any, g: Any, state: Any = None, cu_seqlens: Any = None,
    backend: Optional[str] = None, slots: bool = False, step: bool = False,
) -> Problem:
    """Checks shapes and dtypes and collects them. A step comes with the token dimension already put in."""
    if backend is not None and not isinstance(backend, str):
        raise TypeError(f"backend is a {type(backend).__name__}; expected a string or None")
    token = "[B,H,%s]" if step else "[B,T,H,%s]"

    def check(name: str, a: Any, shape: Tuple[Optional[int], ...], width: str) -> None:
        _expect(lib, name, a, shape, token % width, v, step)

    check("v", v, (None,) * 4, "D")
    B, T, H, D = lib.shape(v)
    check("k", k, (B, T, H, None), "K")
    K = lib.shape(k)[3]
    check("q", q, (B, T, H, K), "K")
    data = lib.dtype(v)
    if data not in DTYPES:
        raise ValueError(f"v has dtype {data}; expected one of {', '.join(DTYPES)}")
    for name, a in (("q", q), ("k", k)):
        if lib.dtype(a) != data:
            raise ValueError(f"{name} has dtype {lib.dtype(a)}; expected {data}, as v")
    inputs = {"v": v, "q": q, "k": k}
    gate = None
    for name, a, width, letter in (("f", f, D, "D"), ("g", g, K, "K")):
        if a is None:
            continue
        shape = lib.shape(a)
        narrow = len(shape) == 4 and shape[3] == 1
        check(name, a, (B, T, H, 1 if narrow else width), f"{letter}] or {token % 1}"[:-1])
        if lib.dtype(a) not in (data, state_dtype_for(data)):
            raise ValueError(f"{name} has dtype {lib.dtype(a)}; expected {data}, as v, or float32 beside 16-bit data")
        if gate is not None and lib.dtype(a) != gate:
            raise ValueError(f"g has dtype {lib.dtype(a)}; expected {gate}, as f")
        gate = lib.dtype(a)
        inputs[name] = a
    sequences = 0
    if cu_seqlens is not None:
        if lib.dtype(cu_seqlens) not in ("int32", "int64"):
            raise ValueError(f"cu_seqlens has dtype {lib.dtype(cu_seqlens)}; expected int64")
        if len(lib.shape(cu_seqlens)) != 1 or lib.shape(cu_seqlens)[0] < 2:
            raise ValueError(f"cu_seqlens has shape {list(lib.shape(cu_seqlens))}; expected [sequences + 1], at least [2]")
        if B != 1:
            raise ValueError(f"B is {B} with cu_seqlens; expected 1")
        _expect(lib, "cu_seqlens", cu_seqlens, (None,), "[sequences + 1]", v)
        cu_seqlens = lib.indices(cu_seqlens)
        sequences = lib.shape(cu_seqlens)[0] - 1
    state_shape = (sequences or B, H, D, K)
    state_dtype = state_dtype_for(data)
    if state is not None:
        name = "state" if step else "initial_state"
        letters = "[slots,H,D,K]" if slots else "[sequences,H,D,K]" if sequences else "[B,H,D,K]"
        _expect(lib, name, state, (None if slots else state_shape[0], H, D, K), letters, v)
        state_shape = tuple(lib.shape(state))  # type: ignore[assignment]
        if lib.dtype(state) not in (data, state_dtype):
            raise ValueError(f"{name} has dtype {lib.dtype(state)}; expected {data}, as v, or float32 beside 16-bit data")
        state_dtype = lib.dtype(state)
        inputs["initial_state"] = state
    inputs = {name: lib.rows(a) for name, a in inputs.items()}
    return Problem(lib, rule, inputs, (B, T, H, D, K), sequences, data, gate or data, state_dtype, state_shape,
                   cu_seqlens, backend)


def forward(p: Problem, save: bool) -> Tuple[Any, Any, Any]:
    """-> y, final_state, saved"""
    lib, v, (B, T, H, D, K) = p.lib, p.inputs["v"], p.sizes
    plan = p.plan()
    y = lib.empty((B, T, H, D), p.data, v)
    final_state = lib.empty(p.state_shape, p.state, v)
    size = plan.saved_size if save else 0
    saved = lib.bytes(size, v)
    p.run(plan.forward, plan.scratch_size(FORWARD), {"y": y, "final_state": final_state, "saved": saved if save else None},
          saved_size=size)
    return y, final_state, saved


def backward(p: Problem, saved: Any, d_y: Any, d_final_state: Any) -> Dict[str, Any]:
    """-> the gradient of each input that is present, by the input's name; initial_state's always."""
    lib, v = p.lib, p.inputs["v"]
    given = {"d_y": lib.rows(d_y)}
    if d_final_state is not None:
        given["d_final_state"] = lib.rows(d_final_state)
    plan, first = p.plan(**given), p.plan()
    if (plan.backend, plan.saved_size) != (first.backend, first.saved_size):  # saved is in the layout of `first`
        plan, given = first, {name: lib.contiguous(a) for name, a in given.items()}
    d = {
        name: lib.empty(lib.shape(a), p.gate if name in ("f", "g") else p.data, v)
        for name, a in p.inputs.items() if name != "initial_state"
    }
    d["initial_state"] = lib.empty(p.state_shape, p.state, v)
    p.run(plan.backward, plan.scratch_size(BACKWARD),
          {**given, "saved": saved, **{"d_" + name: a for name, a in d.items()}}, saved_size=lib.shape(saved)[0])
    return d


def step(p: Problem, slot_indices: Any, out_state: Any) -> Any:
    """-> y [B,1,H,D]; the new state goes to out_state."""
    lib, v, (B, _, H, D, K) = p.lib, p.inputs["v"], p.sizes
    _expect(lib, "out_state", out_state, p.state_shape, "the shape of state", v)
    if lib.dtype(out_state) != p.state:
        raise ValueError(f"out_state has dtype {lib.dtype(out_state)}; expected {p.state}, as state")
    if lib.rows(out_state) is not out_state:
        raise ValueError(f"out_state has strides {list(lib.strides(out_state))}; expected an aligned array whose last "
                         "dimension is contiguous")
    if slot_indices is not None:
        if lib.dtype(slot_indices) not in ("int32", "int64"):
            raise ValueError(f"slot_indices has dtype {lib.dtype(slot_indices)}; expected int64")
        _expect(lib, "slot_indices", slot_indices, (B,), "[B]", v)
        slot_indices = lib.indices(slot_indices)
    plan = p.plan(final_state=out_state)
    y = lib.empty((B, 1, H, D), p.data, v)
    p.run(plan.step, plan.scratch_size(STEP), {"y": y, "final_state": out_state, "slot_indices": slot_indices},
          slots=0 if slot_indices is None else p.state_shape[0])
    return y
