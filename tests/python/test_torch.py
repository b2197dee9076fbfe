import contextlib
import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import loop
import t2fw
from common import GATES, SHAPES, close, inputs, logits
from torch_common import OPTIONS, RULES, Calls, call, tensors, wide

DTYPES = ["float64", "float32", "float16", "bfloat16"]
pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule,f,g", [("decay", *p) for p in GATES] + [("delta", "none", "none")])
def test_gradient(rule, f, g, shape, dtype, device):
    x = tensors(inputs(*shape, f, g), dtype)
    y, final = call(rule, x)
    torch.manual_seed(0)
    d_y, d_final = torch.randn_like(y), torch.randn_like(final)
    torch.autograd.backward([y, final], [d_y, d_final])
    wy, ws, want = call(rule, {n: wide(a) for n, a in x.items()}, loop, d_y=wide(d_y), d_final=wide(d_final))
    close(wide(y), wy, dtype)
    # tensor cores round what they multiply to 16 bits, whatever the state is kept in
    close(wide(final), ws, "float32" if x["v"].element_size() == 2 and device == "cpu" else dtype)
    for n in (*RULES[rule], "initial_state"):
        if x[n] is not None:
            assert x[n].grad.dtype == x[n].dtype
            close(wide(x[n].grad), want[n], dtype, 2)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("which", [0, 1])
def test_one_output_only(rule, which):
    x = tensors(inputs(1, 6, 2, 3, 4))
    out = call(rule, x)
    out[which].sum().backward()
    d_y, d_final = np.ones(out[0].shape), np.ones(out[1].shape)
    want = call(rule, {n: wide(a) for n, a in x.items()}, loop, d_y=d_y * (1 - which), d_final=d_final * which)[2]
    for n in (*RULES[rule], "initial_state"):
        close(wide(x[n].grad), want[n], "float64")


@pytest.mark.parametrize("rule", RULES)
def test_gradient_strides(rule):
    want, x = tensors(inputs(2, 9, 3, 4, 5)), tensors(inputs(2, 9, 3, 4, 5))
    call(rule, want)[0].transpose(1, 2).contiguous().pow(2).sum().backward()
    moved = {n: a.transpose(1, 2).contiguous().transpose(1, 2) for n, a in x.items()}
    call(rule, moved)[0].transpose(1, 2).pow(2).sum().backward()
    for n in (*RULES[rule], "initial_state"):
        close(wide(x[n].grad), wide(want[n].grad), "float64")


@pytest.mark.parametrize("rule", RULES)
def test_gradient_cu_seqlens(rule):
    x = inputs(1, 20, 2, 3, 4)
    x["initial_state"] = np.random.default_rng(2).standard_normal((3, 2, 3, 4))
    x = tensors(x)
    cu = [0, 6, 6, 20]
    y, final = call(rule, x, cu_seqlens=torch.tensor(cu))
    d_y, d_final = torch.randn_like(y), torch.randn_like(final)
    torch.autograd.backward([y, final], [d_y, d_final])
    for n, (a, b) in enumerate(zip(cu, cu[1:])):
        part = {m: wide(t[n : n + 1] if m == "initial_state" else t[:, a:b]) for m, t in x.items()}
        want = call(rule, part, loop, d_y=wide(d_y[:, a:b]), d_final=wide(d_final[n : n + 1]))[2]
        for m in RULES[rule]:
            close(wide(x[m].grad[:, a:b]), want[m], "float64")
        close(wide(x["initial_state"].grad[n : n + 1]), want["initial_state"], "float64")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batch_invariant(rule, dtype):
    """A sequence alone and within a batch: the same bits. It is long, so that a GPU would cut it where it is alone."""
    x, results = tensors(inputs(3, 1000, 2, 24, 16), dtype), []
    for part in (slice(1, 2), slice(None)):
        one = {n: a[part].detach().requires_grad_() for n, a in x.items()}
        y, final = call(rule, one, batch_invariant=True)
        (y.float().pow(2).sum() + final.sum()).backward()
        results.append([y, final, *(one[n].grad for n in (*RULES[rule], "initial_state"))])
    assert all(torch.equal(alone, together[1:2]) for alone, together in zip(*results))


@pytest.mark.parametrize("rule,f,g", [("decay", *p) for p in GATES] + [("delta", "none", "none")])
def test_gradcheck(rule, f, g):
    x = tensors(inputs(2, 3, 1, 2, 3, f, g))
    names = [n for n in (*RULES[rule], "initial_state") if x[n] is not None]
    torch.autograd.gradcheck(lambda *a: call(rule, {**x, **dict(zip(names, a))}), [x[n] for n in names])


def with_gates(x):
    """Of logits."""
    return {n: a if a is None or n not in "fg" else a.sigmoid() for n, a in x.items()}


@pytest.mark.parametrize("how,dtype,f,g", [
    *(("eager", dtype, *gates) for dtype in DTYPES for gates in GATES),
    *((how, dtype, "full", "head") for how in ("operator", "compiled", "compiled for any T")
      for dtype in ("float64", "bfloat16"))])
def test_gate_logits(how, dtype, f, g, device):
    def function(x):
        return call("decay", x, gate_logits=True)

    torch._dynamo.reset()
    compiled = "compiled" in how
    run = torch.compile(function, fullgraph=True, dynamic="any" in how) if compiled else function
    for T in (17, 9) if compiled else (17,):
        x = tensors(logits(inputs(2, T, 2, 5, 4, f, g), "float64")[0], dtype)
        with Calls() if how == "operator" else contextlib.nullcontext():
            y, final = run(x)
            torch.manual_seed(0)
            d_y, d_final = torch.randn_like(y), torch.randn_like(final)
            torch.autograd.backward([y, final], [d_y, d_final])
        exact = {n: None if a is None else a.detach().double().requires_grad_() for n, a in x.items()}
        want_y, want_final = call("decay", with_gates(exact))
        torch.autograd.backward([want_y, want_final], [d_y.double(), d_final.double()])
        close(wide(y), wide(want_y), dtype)
        close(wide(final), wide(want_final), "float32" if x["v"].element_size() == 2 and device == "cpu" else dtype)
        for n in x:
            if x[n] is not None:
                assert x[n].grad.dtype == x[n].dtype
                close(wide(x[n].grad), wide(exact[n].grad), dtype, 2)


@pytest.mark.parametrize("compiled,f,g", [*((False, *gates) for gates in GATES), (True, "full", "head")])
@pytest.mark.parametrize("slots", [None, [3, -1, 0]])
def test_step_gate_logits(compiled, f, g, slots):
    indices = None if slots is None else torch.tensor(slots)

    def step(x, **more):
        return t2fw.decay_step(*x.values(), slot_indices=indices, **more)

    torch._dynamo.reset()
    run, results = torch.compile(step, fullgraph=True) if compiled else step, []
    for more in (dict(gate_logits=True), {}):
        x = tensors(logits(inputs(4 if slots else 3, 1, 2, 5, 4, f, g), "float64")[0])
        tokens = {n: None if a is None else a[:3, 0] for n, a in x.items() if n != "initial_state"}
        y, state = run({**(tokens if more else with_gates(tokens)), "state": x["initial_state"]}, **more)
        (y.pow(2).sum() + state.pow(2).sum()).backward()
        results.append([y, state, *(a.grad for a in x.values() if a is not None)])
    for got, want in zip(*results):
        close(wide(got), wide(want), "float64")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("slots", [None, [3, -1, 0]])
def test_step_gradcheck(rule, slots):
    x = tensors(inputs(3, 1, 1, 2, 3))
    tokens = [x[n].detach()[:, 0].clone().requires_grad_() for n in RULES[rule]]
    state = torch.randn(4 if slots else 3, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    slots = None if slots is None else torch.tensor(slots)
    step = getattr(t2fw, rule + "_step")
    torch.autograd.gradcheck(lambda *a: step(*a, slot_indices=slots), [*tokens, state])


@pytest.mark.parametrize("rule", RULES)
def test_step_is_parallel(rule):
    x = tensors(inputs(3, 7, 2, 5, 4), grad=False)
    y, final = call(rule, x)
    state, in_place, out = x["initial_state"], x["initial_state"].clone(), x["initial_state"].clone()
    step = getattr(t2fw, rule + "_step")
    for t in range(7):
        tokens = [x[n][:, t] for n in RULES[rule]]
        other = torch.empty_like(out)
        y0, state = step(*tokens, state)
        y1, same = step(*tokens, in_place, out_state=in_place)
        y2, out = step(*tokens, out, out_state=other)
        assert same is in_place and out is other
        for got in (y0, y1, y2):
            close(wide(got), wide(y[:, t]), "float64")
    for got in (state, in_place, out):
        close(wide(got), wide(final), "float64")


@pytest.mark.parametrize("gate_logits", [False, True])
@pytest.mark.parametrize("f,g", GATES)
def test_opcheck_decay(f, g, gate_logits):
    x = tensors(inputs(2, 5, 2, 3, 4, f, g))
    args = [x[n] for n in RULES["decay"]]
    torch.library.opcheck(torch.ops.t2fw.decay.default, (*args, x["initial_state"], None, True, None, False, gate_logits))


@pytest.mark.parametrize("rule,options", [*OPTIONS.items(), ("decay", (None, False, True))])
def test_opcheck(rule, options):
    ops = torch.ops.t2fw
    x = tensors(inputs(2, 5, 2, 3, 4))
    plain = tensors(inputs(2, 5, 2, 3, 4), grad=False)
    args, const = ([a[n] for n in RULES[rule]] for a in (x, plain))
    state, free = x["initial_state"], plain["initial_state"]
    op = getattr(ops, rule).default
    torch.library.opcheck(op, (*args, state, None, True, *options))
    torch.library.opcheck(op, (*const, None, None, False, *options))
    saved = op(*const, free, None, True, *options)[2]
    d_y = torch.randn_like(const[0] if rule == "decay" else const[2])
    torch.library.opcheck(getattr(ops, rule + "_backward").default, (*const, free, None, saved, d_y, None, *options))
    tokens, now = ([a[:, 0].detach().clone().requires_grad_(a is args[i]) for i, a in enumerate(s)] for s in (args, const))
    backend, _, *rest = options
    torch.library.opcheck(getattr(ops, rule + "_step").default, (*tokens, state, None, backend, *rest))
    torch.library.opcheck(getattr(ops, rule + "_step_").default, (*now, free.clone(), torch.tensor([1, -1]), backend, *rest))
    torch.library.opcheck(getattr(ops, rule + "_step_out").default, (*now, free, free.clone(), None, backend, *rest))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(rule, dynamic):
    def f(*a):
        y, final = getattr(t2fw, rule)(*a)
        return y * 2, final

    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic)
    for T in (9, 12) if dynamic else (9,):
        x, want = tensors(inputs(2, T, 2, 3, 4)), tensors(inputs(2, T, 2, 3, 4))
        for function, a in ((compiled, x), (f, want)):
            y, final = function(*(a[n] for n in RULES[rule]), a["initial_state"])
            (y.pow(2).sum() + final.sum()).backward()
        for n in (*RULES[rule], "initial_state"):
            close(wide(x[n].grad), wide(want[n].grad), "float64")


@pytest.mark.parametrize("rule", RULES)
def test_compile_step(rule):
    torch._dynamo.reset()
    x = tensors(inputs(2, 1, 2, 3, 4), grad=False)
    tokens, state = [x[n][:, 0] for n in RULES[rule]], x["initial_state"]
    step = getattr(t2fw, rule + "_step")
    want, new = step(*tokens, state)
    compiled = torch.compile(lambda s, *a: step(*a, s, out_state=s)[0], fullgraph=True)
    close(wide(compiled(state, *tokens)), wide(want), "float64")
    close(wide(state), wide(new), "float64")


@pytest.mark.parametrize("rule", RULES)
def test_autocast(rule, device):
    x = tensors(inputs(2, 9, 2, 3, 4), "float32")
    with torch.autocast(device, torch.bfloat16):
        y, final = call(rule, x)
    assert y.dtype == torch.bfloat16 and final.dtype == torch.float32
    rounded = {n: wide(a.bfloat16() if n in "vqk" else a) for n, a in x.items()}
    close(wide(y), call(rule, rounded, loop)[0], "bfloat16")
    y.float().sum().backward()
    assert all(x[n].grad.dtype == torch.float32 for n in RULES[rule])


def test_autocast_leaves_logits_in_16_bits(device):
    x = tensors(logits(inputs(2, 9, 2, 3, 4), "float32")[0], "float32", grad=False)
    x.update({n: x[n].bfloat16() for n in "fg"})
    with torch.autocast(device, torch.bfloat16), Calls() as record:
        y = call("decay", x, gate_logits=True)[0]
    assert record.seen.count("aten._to_copy.default") == 3  # v, q and k
    x.update({n: x[n].bfloat16() for n in "vqk"})
    assert torch.equal(y, call("decay", x, gate_logits=True)[0])


@pytest.mark.parametrize("change,message", [
    (dict.fromkeys("vqk", "int64"), "v has dtype int64; expected one of float64, float32, float16, bfloat16"),
    (dict(v="complex64"), "v has dtype complex64; expected one of float64, float32, float16, bfloat16"),
    (dict(q="int32"), "q has dtype int32; expected float32, as v"),
    (dict.fromkeys("qk", "float64"), "q has dtype float64; expected float32, as v"),
    (dict(v="float64"), "q has dtype float32; expected float64, as v"),
    (dict(f="float64"), "f has dtype float64; expected float32, as v, or float32 beside 16-bit data"),
    (dict(g="bool"), "g has dtype bool; expected float32, as v, or float32 beside 16-bit data"),
])
@pytest.mark.parametrize("autocast", [False, True])
def test_autocast_converts_no_wrong_dtype(change, message, autocast, device):
    x = tensors(inputs(2, 1, 2, 3, 4), "float32", grad=False)
    x.update({n: x[n].to(getattr(torch, dtype)) for n, dtype in change.items()})
    for function, args in ((t2fw.decay, [x[n] for n in "vfqkg"]),
                           (t2fw.decay_step, [*(x[n][:, 0] for n in "vfqkg"), x["initial_state"]])):
        with torch.autocast(device, torch.bfloat16, enabled=autocast), pytest.raises(ValueError, match=f"^{message}$"):
            function(*args)


@pytest.mark.parametrize("dtypes", itertools.product(["float32", "float16", "bfloat16"], repeat=2))
def test_autocast_mixed(dtypes, device):
    x = tensors(inputs(2, 9, 2, 3, 4), "float32", grad=False)
    x["q"], x["g"] = (x[n].to(getattr(torch, dtype)) for n, dtype in zip("qg", dtypes))
    with torch.autocast(device, torch.bfloat16):
        y = call("decay", x)[0]
    x.update({n: x[n].bfloat16() for n in "vqk"}, g=x["g"].float())
    assert torch.equal(y, call("decay", x)[0])


def test_no_grad_saves_nothing():
    x = tensors(inputs(1, 5, 1, 2, 3))
    with torch.no_grad():
        assert not call("decay", x)[0].requires_grad
    args = [x[n].detach() for n in RULES["decay"]]
    assert torch.ops.t2fw.decay(*args, None, None, False, *OPTIONS["decay"])[2].numel() == 0


def test_out_state_refuses_gradient():
    x = tensors(inputs(2, 1, 1, 2, 3))
    with pytest.raises(ValueError, match="out_state cannot be given"):
        t2fw.decay_step(*(x[n][:, 0] for n in "vfqkg"), x["initial_state"], out_state=x["initial_state"])


@pytest.mark.parametrize("rule", RULES)
def test_drop_in(rule):
    from t2fw.functional_dfw import DFWFunction
    from t2fw.functional_lfw import LFWFunction
    from t2fw.torch import t2dfw_torch, t2fw_torch

    fast, slow = {"decay": (LFWFunction.apply, t2fw_torch), "delta": (DFWFunction.apply, t2dfw_torch)}[rule]
    results = []
    for function in (fast, slow):
        x = tensors(inputs(2, 11, 1, 4, 3))
        tokens = [x[n][:, :, 0].detach().requires_grad_() for n in RULES[rule]]
        state = x["initial_state"][:, 0].detach().requires_grad_()
        y, final = function(*tokens, state)
        (y.pow(2).sum() + final.sum()).backward()
        results.append([y, final, state.grad, *(a.grad for a in tokens)])
    for got, want in zip(*results):
        close(wide(got), wide(want), "float64")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "bsz,seqlen,dim", [*itertools.product((1, 5, 9, 13), (1, 129, 257, 385), (1, 33)), (2, 1024, 32)])
def test_drop_in_as_the_original_is_tested(rule, bsz, seqlen, dim):
    """The sizes, dtypes, gates and tolerances of the unit tests that the original comes with: decay in fp16, K = D / 2."""
    from t2fw.functional_dfw import DFWFunction
    from t2fw.functional_lfw import LFWFunction
    from t2fw.torch import t2dfw_torch, t2fw_torch

    torch.manual_seed(1)
    kdim, dtype = (dim + 1) // 2, torch.half if rule == "decay" else torch.float

    def gates(n):  # sigmoid of a bias by uniform gate initialisation: uniform between 1/n and 1 - 1/n
        return torch.rand(bsz, seqlen, n, dtype=dtype) * (1 - 2 / n) + 1 / n

    value, state = torch.randn(bsz, seqlen, dim, dtype=dtype), torch.randn(bsz, dim, kdim, dtype=dtype)
    query, key = torch.randn(2, bsz, seqlen, kdim, dtype=dtype)
    if rule == "decay":
        x, fast, slow = (value, gates(dim), query, key, gates(kdim), state), LFWFunction.apply, t2fw_torch
    else:
        x, fast, slow = (query.softmax(-1), key.softmax(-1), value, state * 0.1), DFWFunction.apply, t2dfw_torch
    results = []
    for function in (fast, slow):
        inputs = [a.clone().requires_grad_() for a in x]
        y, next_state = function(*inputs)
        if not results:
            d = torch.randn_like(y), torch.randn_like(next_state)
        results.append([y, next_state, *torch.autograd.grad([y, next_state], inputs, d)])
    for i, (got, want) in enumerate(zip(*results)):
        torch.testing.assert_close(got, want, atol=1e-2 if i < 2 else 0.1, rtol=0.1)
