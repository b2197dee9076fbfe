import io

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import loop
import t2fw
from common import close
from t2fw.nn import RULES, DecayingFastWeights

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

    def project(linear, width):
        a = x @ wide(linear.weight).T
        return (a if linear.bias is None else a + wide(linear.bias)).reshape(B, T, -1, width)

    def gate(linear, width):
        return 1 / (1 + np.exp(-project(linear, width)))

    q, k, v = project(m.q, m.kdim) / np.sqrt(m.kdim), project(m.k, m.kdim), project(m.v, m.head_dim)
    k, v = (np.repeat(a, m.num_heads // a.shape[2], 2) for a in (k, v))
    if m.rule == "add":
        y, state = loop.decay(v, None, q, k, None)
    elif m.rule == "gated":
        a = gate(m.a, 1)
        y, state = loop.decay((1 - a) * v, a, q, k, None)
    elif m.rule == "decay":
        y, state = loop.decay(v, gate(m.f, m.head_dim), q, k, gate(m.g, m.kdim))
    else:
        a, k = gate(m.a, 1), k / np.linalg.norm(k, axis=-1, keepdims=True)
        state, y = np.zeros((B, m.num_heads, m.head_dim, m.kdim)), np.zeros(v.shape)
        for t in range(T):
            y[:, t] = np.einsum("bhdk,bhk->bhd", state, q[:, t])
            error = v[:, t] - np.einsum("bhdk,bhk->bhd", state, k[:, t])
            state = state + np.einsum("bh,bhd,bhk->bhdk", a[:, t, :, 0], error, k[:, t])
    y = y.reshape(B, T, -1) @ wide(m.out.weight).T
    return (y if m.out.bias is None else y + wide(m.out.bias)), state


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("rule", RULES)
def test_formula(rule, sizes):
    m = layer(rule, **sizes)
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    y, state = m(x)
    want_y, want_state = formula(m, x)
    close(wide(y), want_y, "float64", 10)
    close(wide(state), want_state, "float64", 10)


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
def test_gates_are_float32(rule, half, device, monkeypatch):
    seen, call = [], t2fw.decay
    monkeypatch.setattr(t2fw, "decay", lambda *a: seen.append(a) or call(*a))
    m, x = layer(rule, torch.float32), torch.randn(2, 5, 8)
    with torch.no_grad():
        (m.f or m.a).bias.fill_(9)  # 1 - f = 1.2e-4: in 16 bits f would be 1; the bias added in bfloat16 is 3 % of 1 - f
    m(x)
    with torch.autocast(device, half):
        y, state = m(x)
        y.float().sum().backward()
    m.to(half)(x.to(half))
    want = 1 - seen[0][1]
    for v, f, _, _, g, _ in seen:
        assert state.dtype == f.dtype == torch.float32 and (g is None or g.dtype == torch.float32)
        assert ((1 - f - want) / want).abs().max() < 0.015
    assert [v.dtype for v, *_ in seen[2:]] == [half] and all(p.grad.isfinite().all() for p in m.parameters())


def test_gates_are_modules_that_are_called():
    """Hooks on them, and what replaces them, see float32 logits."""
    layer, seen = DecayingFastWeights(8, 2).bfloat16(), []
    for gate in (layer.f, layer.g):
        gate.register_forward_hook(lambda module, inputs, logits: seen.append((logits.dtype, logits.shape)))
    layer(torch.randn(2, 3, 8, dtype=torch.bfloat16))
    assert seen == [(torch.float32, (2, 3, 8))] * 2


def test_autocast_copies_x_once(device):
    """And no gate's logits are copied to float32: on a GPU each copy takes as long as reading x."""
    copies = []

    class Copies(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, call, types, args=(), kwargs=None):
            if call is torch.ops.aten._to_copy.default:
                copies.append(args[0].shape)
            return call(*args, **kwargs or {})

    m, x = layer("decay", torch.float32), torch.randn(2, 5, 8, requires_grad=True) * 1  # autocast keeps copies of leaves
    with Copies(), torch.autocast(device, torch.bfloat16):
        m(x)
    assert [tuple(shape) for shape in copies if len(shape) == 3] == [(2, 5, 8)]


@pytest.mark.parametrize("rule", ["decay", "gated", "delta"])
def test_uniform_gate_initialisation(rule):
    m = DecayingFastWeights(500, 500 if rule != "decay" else 4, rule=rule)
    for gate in (m.f, m.g) if rule == "decay" else (m.a,):
        u = np.sort(1 / (1 + np.exp(-wide(gate.bias))))
        assert 1 / 500 <= u[0] and u[-1] <= 1 - 1 / 500
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
    m, x = layer(rule, torch.float32, kdim=3), torch.randn(2, 6, 8)
    y, state = torch.compile(m, fullgraph=True)(x, padding_mask=torch.ones(2, 6))
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
