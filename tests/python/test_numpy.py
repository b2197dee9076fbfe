import subprocess
import sys

import numpy as np
import pytest

import loop
import t2fw
from common import GATES, SHAPES, close, inputs, logits

RULES = {"decay": ("v", "f", "q", "k", "g"), "delta": ("q", "k", "v")}


def cast(x, dtype):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    data = {n: None if a is None else a.astype(dtype) for n, a in x.items()}
    if np.dtype(dtype).itemsize == 2:
        data["initial_state"] = x["initial_state"].astype(np.float32)
    return data


def call(rule, x, module=t2fw, **more):
    return getattr(module, rule)(*(x[n] for n in RULES[rule]), x["initial_state"], **more)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule,f,g", [("decay", *p) for p in GATES] + [("delta", "none", "none")])
def test_forward(rule, f, g, shape, dtype):
    x = cast(inputs(*shape, f, g), dtype)
    y, final = call(rule, x)
    want_y, want_final = call(rule, x, loop)
    assert y.dtype == x["v"].dtype and final.dtype == x["initial_state"].dtype
    close(y, want_y, dtype)
    close(final, want_final, "float32" if x["v"].itemsize == 2 else dtype)


@pytest.mark.parametrize("rule", RULES)
def test_no_initial_state(rule):
    x = inputs(2, 9, 2, 3, 4)
    x["initial_state"] = None
    for got, want in zip(call(rule, x), call(rule, x, loop)):
        close(got, want, "float64")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_state_dtype(dtype):
    x = cast(inputs(1, 3, 1, 2, 2), dtype)
    x["initial_state"] = None
    assert call("decay", x)[1].dtype == ("float64" if dtype == "float64" else "float32")
    x["initial_state"] = np.zeros((1, 1, 2, 2), dtype)
    assert call("decay", x)[1].dtype == dtype


def test_wide_gates():
    x = cast(inputs(2, 17, 1, 4, 4), "float16")
    for name in "fg":
        x[name] = np.full(x[name].shape, 0.9999, np.float32)
    close(call("decay", x)[0], call("decay", x, loop)[0], "float16")


@pytest.mark.parametrize("dtype,gate", [("float64", "float64"), ("float32", "float32"), ("float16", "float16"),
                                        ("float16", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("f,g", GATES)
def test_gate_logits(f, g, shape, dtype, gate):
    x = cast(inputs(*shape, f, g), dtype)
    x, gates = logits(x, pytest.importorskip("ml_dtypes").bfloat16 if gate == "bfloat16" else gate)
    want_y, want_final = call("decay", gates, loop)
    y, final = call("decay", x, gate_logits=True)
    close(y, want_y, dtype)
    close(final, want_final, "float32" if x["v"].itemsize == 2 else dtype)
    if shape[1]:
        tokens = [None if x[n] is None else x[n][:, 0] for n in "vfqkg"]
        y, state = t2fw.decay_step(*tokens, x["initial_state"], gate_logits=True)
        want_y, want = call("decay", {n: a if a is None or n == "initial_state" else a[:, :1] for n, a in gates.items()}, loop)
        close(y, want_y[:, 0], dtype)
        close(state, want, "float32" if x["v"].itemsize == 2 else dtype)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("cut", [0, 1, 16, 29, 30])
def test_split(rule, cut):
    x = inputs(2, 30, 2, 5, 6)
    y, final = call(rule, x)
    head = {n: a if n == "initial_state" else a[:, :cut] for n, a in x.items()}
    y0, middle = call(rule, head)
    tail = {n: middle if n == "initial_state" else a[:, cut:] for n, a in x.items()}
    y1, end = call(rule, tail)
    close(np.concatenate([y0, y1], 1), y, "float64")
    close(end, final, "float64")


def step(rule, x, t, state, **more):
    return getattr(t2fw, rule + "_step")(*(x[n][:, t] for n in RULES[rule]), state, **more)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("where", ["fresh", "in place", "out"])
def test_step_is_parallel(rule, where):
    x = inputs(3, 7, 2, 5, 4)
    y, final = call(rule, x)
    state = x["initial_state"].copy()
    for t in range(7):
        before = state.copy()
        out = {"fresh": None, "in place": state, "out": np.empty_like(state)}[where]
        got, new = step(rule, x, t, state, out_state=out)
        assert out is None or new is out
        assert where == "in place" or (np.array_equal(state, before) and not np.shares_memory(new, state))
        state = new
        close(got, y[:, t], "float64")
    close(state, final, "float64")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("narrow_state", [False, True])
@pytest.mark.parametrize("narrow_gates", [False, True])
@pytest.mark.parametrize("where", ["fresh", "in place", "out"])
def test_step_in_16_bits(rule, dtype, narrow_state, narrow_gates, where):
    wide = inputs(3, 1, 2, 37, 20)
    x = cast(wide, dtype)
    narrow = x["v"].dtype
    if narrow_state:
        x["initial_state"] = x["initial_state"].astype(narrow)
    if not narrow_gates:
        x["f"], x["g"] = (wide[n].astype(np.float32) for n in "fg")
    state = x["initial_state"].copy()
    out = {"fresh": None, "in place": state, "out": np.empty_like(state)}[where]
    y, new = step(rule, x, 0, state, out_state=out)
    want_y, want_state = call(rule, x, loop)
    assert y.dtype == narrow and new.dtype == x["initial_state"].dtype
    close(y, want_y[:, 0], dtype)
    close(new, want_state, dtype if narrow_state else "float32")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("in_place", [False, True])
def test_slots(rule, in_place):
    x = inputs(3, 1, 2, 5, 4)
    pool = np.random.default_rng(1).standard_normal((6, 2, 5, 4))
    before = pool.copy()
    slots = np.array([4, -1, 0])
    y, new = step(rule, x, 0, pool, slot_indices=slots, out_state=pool if in_place else None)
    want = before.copy()
    for b in (0, 2):
        row = {n: a[b : b + 1] for n, a in x.items()}
        row["initial_state"] = before[slots[b]][None]
        wy, ws = call(rule, row, loop)
        close(y[b], wy[0, 0], "float64")
        want[slots[b]] = ws[0]
    assert not y[1].any()
    close(new, want, "float64")
    assert np.array_equal(new[[1, 2, 3, 5]], before[[1, 2, 3, 5]])
    assert (new is pool) == in_place


LAYOUTS = {
    "head first": lambda a: np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2),
    "last strided": lambda a: np.repeat(a, 2, -1)[..., ::2],
    "slice": lambda a: np.concatenate([a, a], -1)[..., a.shape[-1] :],
    "reversed": lambda a: np.ascontiguousarray(a[:, ::-1])[:, ::-1],
    "swapped bytes": lambda a: a.astype(a.dtype.newbyteorder()),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(rule, layout):
    x = inputs(2, 9, 3, 4, 5, "full", "head")
    y, final = call(rule, x)
    moved = {n: LAYOUTS[layout](a) for n, a in x.items()}
    y1, final1 = call(rule, moved)
    assert np.array_equal(y, y1) and np.array_equal(final, final1)


def test_broadcast_gate():
    x = inputs(2, 9, 3, 4, 5)
    x["f"] = np.broadcast_to(x["f"][:, :, :1], x["f"].shape)
    x["g"] = np.broadcast_to(x["g"][:, :, :, :1], x["g"].shape)
    close(call("decay", x)[0], call("decay", x, loop)[0], "float64")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_cu_seqlens(rule, dtype):
    x = inputs(1, 20, 2, 3, 4)
    cu = np.array([0, 5, 5, 6, 20], dtype)
    x["initial_state"] = np.random.default_rng(2).standard_normal((4, 2, 3, 4))
    y, final = call(rule, x, cu_seqlens=cu)
    for n, (a, b) in enumerate(zip(cu, cu[1:])):
        part = {m: t[n : n + 1] if m == "initial_state" else t[:, a:b] for m, t in x.items()}
        wy, ws = call(rule, part, loop)
        close(y[:, a:b], wy, "float64")
        close(final[n : n + 1], ws, "float64")


@pytest.mark.parametrize("rule", RULES)
def test_batch_invariant(rule):
    x = inputs(3, 100, 2, 24, 16)
    together = call(rule, x, batch_invariant=True)
    alone = call(rule, {n: a[1:2] for n, a in x.items()}, batch_invariant=True)
    assert all(np.array_equal(a[1:2], b) for a, b in zip(together, alone))


def test_dlpack():
    class Foreign:
        def __init__(self, a):
            self.a = a

        def __dlpack__(self, **more):
            return self.a.__dlpack__(**more)

        def __dlpack_device__(self):
            return self.a.__dlpack_device__()

    x = inputs(1, 4, 1, 2, 3)
    y, final = call("decay", {n: Foreign(a) for n, a in x.items()})
    assert isinstance(y, np.ndarray) and np.array_equal(y, call("decay", x)[0])


def test_backends():
    assert t2fw.backends()
    x = inputs(1, 5, 1, 2, 3)
    for entry in t2fw.backends():
        if entry.endswith("(cpu)"):
            close(call("decay", x, backend=entry.split("(")[0])[0], call("decay", x, loop)[0], "float64")


def test_threads():
    from concurrent.futures import ThreadPoolExecutor

    x = inputs(2, 40, 2, 8, 8)
    y, _ = call("decay", x)
    with ThreadPoolExecutor(8) as pool:
        assert all(np.array_equal(r[0], y) for r in pool.map(lambda _: call("decay", x), range(64)))


def test_without_torch():
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("torch is blocked")
sys.meta_path.insert(0, Block())
import numpy as np, t2fw
a = np.ones((1, 3, 1, 2))
y, s = t2fw.decay(a, a, a, a, None)
assert y.ravel().tolist() == [2, 2, 4, 4, 6, 6], y
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
