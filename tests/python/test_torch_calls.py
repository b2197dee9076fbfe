"""How calls behave with PyTorch's own machinery: dispatch, transforms, tracing, graphs; and what is an error."""
import contextlib

import pytest

torch = pytest.importorskip("torch")

import t2fw
from common import inputs
from conftest import devices
from torch_common import OPTIONS, RULES, Calls, call, tensors

GPU = "cuda" in devices()
pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize("rule,more", [("decay", {}), ("decay", dict(gate_logits=True)), ("delta", {})])
def test_call_is_the_operator(rule, more):
    """A plain call goes past the dispatcher; under a mode it is the operator. Both give the same bits."""
    x, names = tensors(inputs(2, 19, 2, 3, 4)), (*RULES[rule], "initial_state")
    plain = call(rule, x, **more)
    d_plain = torch.autograd.grad(plain[0].sum() + plain[1].sum(), [x[n] for n in names])
    with Calls() as record:
        recorded = call(rule, x, **more)
        d_recorded = torch.autograd.grad(recorded[0].sum() + recorded[1].sum(), [x[n] for n in names])
    assert f"t2fw.{rule}.default" in record.seen and f"t2fw.{rule}_backward.default" in record.seen
    for a, b in zip((*plain, *d_plain), (*recorded, *d_recorded)):
        assert torch.equal(a, b)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(plain, call(rule, x, **more)))


@pytest.mark.parametrize("rule,more", [("decay", {}), ("decay", dict(gate_logits=True)), ("delta", {})])
@pytest.mark.parametrize("slots", [None, [3, -1, 0]])
@pytest.mark.parametrize("where", ["fresh", "in place", "out"])
def test_step_is_the_operator(rule, more, slots, where):
    """A plain step goes past the dispatcher, and leaves the same bits and version of the state behind."""
    x = tensors(inputs(4 if slots is None else 3, 1, 2, 3, 4), grad=False)
    tokens, pool = [x[n][:, 0] for n in RULES[rule]], torch.randn(4, 2, 3, 4, dtype=torch.float64)
    slots = None if slots is None else torch.tensor(slots)
    ends = {"fresh": "", "in place": "_", "out": "_out"}
    results = []
    for how in ("plain", "under a mode", "operator"):
        state = pool.clone()
        out = {"fresh": None, "in place": state, "out": pool * 2}[where]
        given = [state, out] if where == "out" else [state]
        if how == "operator":
            logits = [bool(more)] if rule == "decay" else []
            result = getattr(torch.ops.t2fw, rule + "_step" + ends[where])(*tokens, *given, slots, None, *logits)
            y, new = result if out is None else (result, out)
        else:
            with Calls() if how == "under a mode" else contextlib.nullcontext():
                y, new = getattr(t2fw, rule + "_step")(*tokens, state, slot_indices=slots, out_state=out, **more)
        results.append((y, new, state._version, out is None or out._version))
    for y, new, *versions in results[1:]:
        assert torch.equal(y, results[0][0]) and torch.equal(new, results[0][1]) and tuple(versions) == results[0][2:]


@pytest.mark.parametrize("rule", RULES)
def test_second_derivative_is_an_error(rule):
    """Also where the loss is linear in y, so that what comes to the backward has no graph of its own; see a penalty."""
    x, names = tensors(inputs(1, 5, 1, 2, 3)), (*RULES[rule], "initial_state")
    for power in (1, 2):
        loss = call(rule, x)[0].pow(power).sum()
        want = torch.autograd.grad(loss, [x[n] for n in names], retain_graph=True)
        got = torch.autograd.grad(loss, [x[n] for n in names], create_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(got, want))
        with pytest.raises(RuntimeError, match=f"the gradient of t2fw::{rule} cannot be differentiated"):
            (loss + got[0].pow(2).sum()).backward()


@pytest.mark.parametrize("rule", RULES)
def test_forward_mode_is_an_error(rule):
    x = tensors(inputs(2, 1, 1, 2, 3), grad=False)
    step = {n: a if n == "initial_state" else a[:, 0] for n, a in x.items()}
    for function, a in ((t2fw.__dict__[rule], x), (t2fw.__dict__[rule + "_step"], step)):
        args = [a[n] for n in (*RULES[rule], "initial_state")]
        with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
            torch.func.jvp(lambda first: function(first, *args[1:])[0], (args[0],), (torch.ones_like(args[0]),))


def function_of_v(rule, step):
    """A call or a step, of v alone, and v."""
    x = tensors(inputs(2, 1, 1, 2, 3), grad=False)
    x = {n: a[:, 0] if step and n != "initial_state" else a for n, a in x.items()}
    function, names = t2fw.__dict__[rule + "_step" * step], (*RULES[rule], "initial_state")
    return lambda v: function(*({**x, "v": v}[n] for n in names))[0], x["v"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("step", [False, True])
def test_gradients_of_transforms_are_errors(rule, step):
    f, v = function_of_v(rule, step)
    for transformed in (torch.func.grad(lambda v: f(v).sum()), torch.func.jacrev(f),
                        torch.func.grad(lambda v: torch.vmap(f)(v[None]).sum())):
        with pytest.raises(NotImplementedError, match="no gradients of torch.func; expected those of torch.autograd"):
            transformed(v)
    y = f(v.requires_grad_())
    d = torch.stack([y, y]).detach()
    with pytest.raises(NotImplementedError, match="no batched gradients; expected one at a time"):
        torch.autograd.grad(y, v, d, is_grads_batched=True, retain_graph=True)
    with pytest.raises(NotImplementedError, match="no batched gradients; expected one at a time"):
        torch.vmap(lambda d: torch.autograd.grad(y, v, d, retain_graph=True))(d)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("step", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_vmap(rule, step, grad):
    """One call after the other; the gradient is that of each, also where what is mapped over alone wants one."""
    f, v = function_of_v(rule, step)
    v = torch.stack([v, v * 2]).requires_grad_(grad)
    got, want = torch.vmap(f)(v), torch.stack([f(a) for a in v])
    assert torch.equal(got, want)
    if grad:
        assert torch.equal(*(torch.autograd.grad(y.pow(2).sum(), v)[0] for y in (got, want)))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("grad", [False, True])
def test_jit_trace(rule, grad):
    x, new = (tensors(inputs(2, 1, 2, 3, 4, seed=seed), grad=grad) for seed in (0, 1))
    for function in (t2fw.__dict__[rule], lambda *a: t2fw.__dict__[rule + "_step"](*(b[:, 0] for b in a[:-1]), a[-1])):
        args, others = (tuple(a[n] for n in (*RULES[rule], "initial_state")) for a in (x, new))
        traced = torch.jit.trace(function, args, check_trace=False)
        assert all(torch.equal(a, b) for a, b in zip(traced(*others), function(*others)))


def test_wrong_gradients_are_errors():
    x = tensors(inputs(2, 5, 2, 3, 4), grad=False)
    args = [x[n] for n in RULES["decay"]]
    y, final, saved = torch.ops.t2fw.decay(*args, None, None, True, *OPTIONS["decay"])
    for d_y, d_final, message in (
        (y[:1], None, r"d_y has shape \[1, 5, 2, 3\]; expected the shape of y = \[2, 5, 2, 3\]"),
        (y.float(), None, "d_y has dtype float32; expected float64, as y"),
        (y, final[:, :1], r"d_final_state has shape \[2, 1, 3, 4\]; expected the shape of final_state = \[2, 2, 3, 4\]"),
    ):
        with pytest.raises(ValueError, match=message):
            torch.ops.t2fw.decay_backward(*args, None, None, saved, d_y, d_final, *OPTIONS["decay"])


def test_a_tensor_without_memory_is_an_error():
    x = tensors(inputs(2, 5, 2, 3, 4), grad=False)
    x["v"].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"a tensor of shape \[2, 5, 2, 3\] has no memory"):
        call("decay", x)


@pytest.mark.parametrize("names,message", [("vfqkg", "v is on device meta"), ("q", "tensors are on device meta")])
def test_other_devices_are_errors(names, message):
    x = tensors(inputs(2, 1, 2, 3, 4), grad=False)
    x.update({n: x[n].to("meta") for n in names})
    for function, args in ((t2fw.decay, [x[n] for n in "vfqkg"]),
                           (t2fw.decay_step, [*(x[n][:, 0] for n in "vfqkg"), x["initial_state"]])):
        with pytest.raises(t2fw.UnsupportedError, match=f"^{message}; expected cpu or cuda$"):
            function(*args)


def everything(rule, x):
    """The outputs and the gradient of every input, and a decode step from the final state."""
    names = [n for n in (*RULES[rule], "initial_state") if x[n] is not None]
    y, final = call(rule, x)
    gradients = torch.autograd.grad([y, final], [x[n] for n in names], [torch.ones_like(y), torch.ones_like(final)])
    step = getattr(t2fw, rule + "_step")(*(x[n][:, 0].detach() for n in RULES[rule]), final.detach())
    return [y.detach(), final.detach(), *gradients, *step]


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(2, 300, 2, 64, 48), (1, 1000, 2, 64, 100)])  # the second one in segments, by tiles
def test_cuda_graph(rule, dtype, shape, device):
    if device == "cpu":
        pytest.skip("graphs are the GPU's")
    x, new = (tensors(inputs(*shape, seed=seed), dtype) for seed in (0, 1))
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        everything(rule, x)  # plans are made, kernels loaded
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        captured = everything(rule, x)
    with torch.no_grad():
        for n, a in x.items():
            a.copy_(new[n])
    graph.replay()
    torch.cuda.synchronize()
    for got, want in zip(captured, everything(rule, new)):
        assert torch.equal(got, want)


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(2, 300, 2, 64, 64), (1, 1000, 2, 48, 40)])  # the second one in segments
def test_same_bits_in_100_runs(rule, shape, device):
    if device == "cpu":
        pytest.skip("timing decides nothing there")
    x = tensors(inputs(*shape), "bfloat16")
    want = everything(rule, x)
    for _ in range(100):
        assert all(torch.equal(a, b) for a, b in zip(everything(rule, x), want))
