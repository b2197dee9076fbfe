import io

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import loop
import t2fw
from common import close
from t2fw._torch import Torch
from t2fw.nn import RULES, DecayingFastWeights
from torch_common import Calls

pytestmark = pytest.mark.usefixtures("device")
SIZES = [dict(), dict(kdim=3), dict(kdim=7, head_dim=5, num_kv_heads=2, bias=False)]


def layer(rule="decay", dtype=torch.float64, seed=0, **sizes):
    torch.manual_seed(seed)
    return DecayingFastWeights(8, 4, rule=rule, **sizes).to(dtype)


def wide(a):
    return a.detach().double().cpu().numpy()


def formula(m, x):
    """The layer in NumPy: projections and gates by hand, the recurrence by the token loop."""
    x, (B, T, _) = wide(x), x.shape

    gates, rows = sum(m.rows[n] for n in "fga" if n in m.rows), sum(m.rows.values())
    biases = [np.zeros(rows - gates) if m.project.bias is None else wide(m.project.bias)]
    bias = np.concatenate(biases + ([wide(m.gate_bias)] if gates else []))
    z = x @ wide(m.project.weight).T + np.pad(bias, (0, rows - len(bias)))
    parts = dict(zip(m.rows, np.split(z, np.cumsum(list(m.rows.values()))[:-1], 2)))

    def project(name, width):
        return parts[name].reshape(B, T, -1, width)

    def gate(name, width):
        return 1 / (1 + np.exp(-project(name, width)[:, :, : m.num_heads]))

    q, k, v = project("q", m.kdim) / np.sqrt(m.kdim), project("k", m.kdim), project("v", m.head_dim)
    k, v = (np.repeat(a, m.num_heads // a.shape[2], 2) for a in (k, v))
    if m.rule == "add":
        y, state = loop.decay(v, None, q, k, None)
    elif m.rule == "gated":
        a = gate("a", 1)
        y, state = loop.decay((1 - a) * v, a, q, k, None)
    elif m.rule == "decay":
        y, state = loop.decay(v, gate("f", m.head_dim), q, k, gate("g", m.kdim))
    else:
        a, k = gate("a", 1), k / np.linalg.norm(k, axis=-1, keepdims=True)
        state, y = np.zeros((B, m.num_heads, m.head_dim, m.kdim)), np.zeros(v.shape)
        for t in range(T):
            y[:, t] = np.einsum("bhdk,bhk->bhd", state, q[:, t])
            error = v[:, t] - np.einsum("bhdk,bhk->bhd", state, k[:, t])
            state = state + np.einsum("bh,bhd,bhk->bhdk", a[:, t, :, 0], error, k[:, t])
    y = y.reshape(B, T, -1) @ wide(m.out.weight).T
    return (y if m.out.bias is None else y + wide(m.out.bias)), state


@pytest.mark.parametrize("differentiable", [True, False])  # q's scale is elsewhere
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("rule", RULES)
def test_formula(rule, sizes, differentiable):
    m = layer(rule, **sizes)
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    with torch.set_grad_enabled(differentiable):
        y, state = m(x)
    want_y, want_state = formula(m, x)
    close(wide(y), want_y, "float64", 10)
    close(wide(state), want_state, "float64", 10)


@pytest.mark.parametrize("rule", RULES)
def test_gradients_of_pieces(rule):
    m, x, results = layer(rule, **SIZES[2]), torch.randn(2, 60, 8, dtype=torch.float64), []
    for pieces in ([x], x.split(12, 1)):
        m.zero_grad()
        state, loss = None, 0
        for piece in pieces:
            y, state = m(piece, state)
            loss = loss + y.pow(2).sum()
        loss.backward()
        results.append([p.grad for p in m.parameters()])
    for whole, pieces in zip(*results):
        close(wide(pieces), wide(whole), "float64", 10)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("rule", RULES)
def test_step_is_training_pass(rule, sizes):
    m = layer(rule, **sizes)
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    y, final = m(x)
    state, rows = m.zero_state(2), []
    for t in range(4):
        row, state = m.step(x[:, t], state)
        rows.append(row)
    rest, state = m(x[:, 4:], state)
    close(wide(torch.cat([torch.stack(rows, 1), rest], 1)), wide(y), "float64", 10)
    close(wide(state), wide(final), "float64", 10)


@pytest.mark.parametrize("rule", RULES)
def test_nothing_to_read(rule):
    m = layer(rule, **SIZES[2])
    state = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    y, after = m(torch.zeros(2, 0, 8, dtype=torch.float64), state)
    assert y.shape == (2, 0, 8) and torch.equal(after, state)
    for T in (1, 3):
        y, after = m(torch.zeros(0, T, 8, dtype=torch.float64))
        assert y.shape == (0, T, 8) and after.shape == (0, 4, 5, 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_delta_takes_a_key_of_zeros(dtype):
    m = layer("delta", dtype, bias=False)
    y, state = m(torch.zeros(2, 3, 8, dtype=dtype))
    y.float().sum().backward()
    assert not y.any() and not state.any() and all(p.grad.isfinite().all() for p in m.parameters())


@pytest.mark.parametrize("rule", RULES)
def test_padding_leaves_the_state_alone(rule):
    m = layer(rule)
    x = torch.randn(4, 7, 8, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 0, 1]])
    y, state = m(x, padding_mask=mask)
    for i, row in enumerate(mask.bool()):
        want_y, want_state = m(x[i : i + 1, row])
        close(wide(y[i, row]), wide(want_y[0]), "float64", 10)
        close(wide(state[i]), wide(want_state[0]), "float64", 10)
    _, after = m(x[:, :1], state, padding_mask=torch.zeros(4, 1))
    close(wide(after), wide(state), "float64")


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_state_is_kept_and_indexed(rule):
    m = layer(rule)
    x, more = torch.randn(3, 5, 8, dtype=torch.float64), torch.randn(3, 1, 8, dtype=torch.float64)
    _, state = m(x)
    before, stored = state.clone(), io.BytesIO()
    y, _ = m(more, state)
    assert torch.equal(state, before)
    torch.save(state, stored)
    stored.seek(0)
    rows = torch.tensor([2, 0])
    again, _ = m(more[rows], torch.load(stored)[rows])
    close(wide(again), wide(y[rows]), "float64", 10)
    close(wide(m(more, m.zero_state(3))[0]), wide(m(more)[0]), "float64")


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", ["decay", "gated"])
def test_gates_in_16_bits(rule, half, device, monkeypatch):
    """1 - f is 1.2e-4: in 16 bits f would be 1. A logit of 9 in bfloat16 is good for 3 % of it, without its bias for 1 %."""
    seen, call = [], t2fw.decay
    monkeypatch.setattr(t2fw, "decay", lambda *a, **more: seen.append((a, more)) or call(*a, **more))
    m, x = layer(rule, torch.float32), torch.randn(2, 5, 8)
    with torch.no_grad():
        m.gate_bias.fill_(9)
    m(x)
    with torch.autocast(device, half):
        y, state = m(x)
        y.float().sum().backward()
    m.to(half)(x.to(half))
    assert state.dtype == torch.float32 and all(p.grad.isfinite().all() for p in m.parameters())
    logits, want = rule == "decay", None
    for (v, f, q, k, g, _), more in seen:
        assert v.dtype == q.dtype == k.dtype == (torch.float32 if want is None else half) and more == dict(gate_logits=logits)
        assert f.dtype == (v.dtype if logits else torch.float32) and (g is None or g.dtype == f.dtype)
        closed = f.float().neg().sigmoid() if logits else 1 - f
        want = closed if want is None else want
        assert ((closed - want) / want).abs().max() < (0.05 if logits else 0.015)


@pytest.mark.parametrize("T", [1, 5, 60])
@pytest.mark.parametrize("rule,uncopied", [("decay", "vfqkg"), ("add", "vqk"), ("gated", "qk"), ("delta", "q")])
def test_one_projection_whose_result_is_not_copied(rule, uncopied, T, monkeypatch):
    """And it is a module that is called, for hooks and for what replaces it."""
    function = ("delta" if rule == "delta" else "decay") + "_step" * (T == 1)
    order, call, seen = "qkv" if rule == "delta" else "vfqkg", getattr(t2fw, function), []
    monkeypatch.setattr(t2fw, function, lambda *a, **more: seen.append(dict(zip(order, a))) or call(*a, **more))
    m, x = layer(rule, torch.float32), torch.randn(2, T, 8)
    m.project.register_forward_hook(lambda module, inputs, z: seen.append(z.clone()) or seen[0])
    with Calls() as calls:
        y, _ = m(x)
    assert sum(call in ("aten.mm.default", "aten.addmm.default") for call in calls.seen) == 2  # and out's
    z, operands = seen
    assert z.shape == (2, T, sum(m.rows.values())) and z.shape[2] % 8 == 0  # 16-bit rows on 16 bytes
    for n in uncopied:
        assert operands[n].untyped_storage().data_ptr() == z.untyped_storage().data_ptr()
        assert Torch.layout(*Torch.keys([operands[n]])).rows


def test_autocast_copies_x_once(device):
    """And no gates are written out: on a GPU each copy takes as long as reading x."""
    m, x = layer("decay", torch.float32), torch.randn(2, 5, 8, requires_grad=True) * 1  # autocast keeps copies of leaves
    with Calls() as calls, torch.autocast(device, torch.bfloat16):
        m(x)
    copies = [shape for call, shape in zip(calls.seen, calls.shapes) if call == "aten._to_copy.default" and len(shape) == 3]
    assert copies == [(2, 5, 8)] and not {"aten.sigmoid.default", "aten.add.Tensor"} & set(calls.seen)


@pytest.mark.parametrize("rule", ["decay", "gated", "delta"])
def test_uniform_gate_initialisation(rule):
    m = DecayingFastWeights(500, 500 if rule != "decay" else 4, rule=rule)
    u = np.sort(1 / (1 + np.exp(-wide(m.gate_bias))))
    assert 1 / 500 <= u[0] and u[-1] <= 1 - 1 / 500 and len(u) == (1000 if rule == "decay" else 500)
    assert np.abs(u - np.linspace(0, 1, len(u))).max() < 0.08  # Kolmogorov-Smirnov: p = 0.003 at n = 500


def test_every_parameter_learns_and_dropout_drops():
    for rule in RULES:
        m = layer(rule, torch.float32, dropout=0.5)
        y, _ = m(torch.randn(2, 6, 8))
        assert 20 < (y == 0).sum() < 76 and not (m.eval()(torch.randn(2, 6, 8))[0] == 0).any()
        y.pow(2).sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in m.parameters())


@pytest.mark.parametrize("rule", RULES)
def test_compile(rule):
    torch._dynamo.reset()
    m, x = layer(rule, torch.float32, kdim=3), torch.randn(2, 40, 8)
    y, state = torch.compile(m, fullgraph=True)(x, padding_mask=torch.ones(2, 40))
    close(wide(y), wide(m(x)[0]), "float32", 2)
    close(wide(torch.compile(m, fullgraph=True)(x[:, :1], state)[0]), wide(m(x[:, :1], state)[0]), "float32", 2)


@pytest.mark.parametrize("change,message", [
    (dict(rule="softmax"), "rule is 'softmax'; expected one of add, gated, delta, decay"),
    (dict(embed_dim=0), "embed_dim is 0; expected a positive number"),
    (dict(num_heads=3), "num_heads is 3; expected a divisor of embed_dim = 8, or head_dim"),
    (dict(kdim=0), "kdim is 0; expected a positive number or None"),
    (dict(head_dim=-1), "head_dim is -1; expected a positive number"),
    (dict(num_kv_heads=3), "num_kv_heads is 3; expected a divisor of num_heads = 4"),
    (dict(dropout=1.0), "dropout is 1.0; expected 0 <= dropout < 1"),
])
def test_wrong_sizes(change, message):
    with pytest.raises(ValueError) as error:
        DecayingFastWeights(**{**dict(embed_dim=8, num_heads=4), **change})
    assert str(error.value) == message


def test_wrong_calls():
    m = layer(dtype=torch.float32)
    x = torch.randn(2, 5, 8)
    for args, message in [
        ((x[0],), r"x is \[5, 8\]; expected a shape \[B,T,8\]"),
        ((x[..., :7],), r"x is \[2, 5, 7\]; expected a shape \[B,T,8\]"),
        ((x, None, torch.ones(2, 1, 5, 5)), r"padding_mask is \[2, 1, 5, 5\]; expected a shape \[B,T\] = \[2, 5\]"),
        ((x, m.zero_state(3)), r"initial_state has shape \[3, 4, 2, 2\]; expected \[B,H,D,K\] = \[2, 4, 2, 2\]"),
        ((x[:, :1], m.zero_state(3)), r"state has shape \[3, 4, 2, 2\]; expected \[B,H,D,K\] = \[2, 4, 2, 2\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            m(*args)
