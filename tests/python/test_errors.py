import re

import numpy as np
import pytest

import t2fw
from t2fw import _core, _numpy

X = {n: np.ones(s) for n, s in dict(v=(2, 3, 2, 4), f=(2, 3, 2, 4), q=(2, 3, 2, 5), k=(2, 3, 2, 5), g=(2, 3, 2, 5),
                                    initial_state=(2, 2, 4, 5)).items()}
ones = np.ones
V = ValueError
WIDE = "float64, as v, or float32 beside 16-bit data"

# Messages are compared whole; ... stands for any text.
PARALLEL = [
    (dict(v=None), TypeError, "v is None; expected an array"),
    (dict(v=[1.0]), TypeError, "v is a list; expected a NumPy array, a torch tensor or an object with __dlpack__"),
    (dict(v=ones((2, 3, 8))), V, "v has shape [2, 3, 8]; expected [B,T,H,D]"),
    (dict(v=ones((2, 3, 2, 0)), f=None, initial_state=None), V, "t2fw_descriptor_init: D is 0; expected at least 1"),
    (dict(q=ones((2, 3, 2, 6))), V, "q has shape [2, 3, 2, 6]; expected [B,T,H,K] = [2, 3, 2, 5]"),
    (dict(k=ones((2, 4, 2, 5))), V, "k has shape [2, 4, 2, 5]; expected [B,T,H,K] = [2, 3, 2, any]"),
    (dict(k=ones((2, 3, 5))), V, "k has shape [2, 3, 5]; expected [B,T,H,K] = [2, 3, 2, any]"),
    (dict(f=ones((2, 3, 2, 3))), V, "f has shape [2, 3, 2, 3]; expected [B,T,H,D] or [B,T,H,1] = [2, 3, 2, 4]"),
    (dict(f=ones((2, 3, 1, 4))), V, "f has shape [2, 3, 1, 4]; expected [B,T,H,D] or [B,T,H,1] = [2, 3, 2, 4]"),
    (dict(f=ones((2, 2, 2, 1))), V, "f has shape [2, 2, 2, 1]; expected [B,T,H,D] or [B,T,H,1] = [2, 3, 2, 1]"),
    (dict(g=ones((2, 3, 2, 4))), V, "g has shape [2, 3, 2, 4]; expected [B,T,H,K] or [B,T,H,1] = [2, 3, 2, 5]"),
    (dict(g=ones((3, 2, 1))), V, "g has shape [3, 2, 1]; expected [B,T,H,K] or [B,T,H,1] = [2, 3, 2, 5]"),
    (dict(initial_state=ones((2, 2, 5, 4))), V,
     "initial_state has shape [2, 2, 5, 4]; expected [B,H,D,K] = [2, 2, 4, 5]"),
    (dict(initial_state=ones((1, 2, 4, 5))), V,
     "initial_state has shape [1, 2, 4, 5]; expected [B,H,D,K] = [2, 2, 4, 5]"),
    (dict(initial_state=ones((2, 2, 4, 5), "f4")), V, f"initial_state has dtype float32; expected {WIDE}"),
    (dict(v=ones((2, 3, 2, 4), int)), V, "v has dtype int64; expected one of float64, float32, float16, bfloat16"),
    (dict(v=ones((2, 3, 2, 4), complex)), V,
     "v has dtype complex128; expected one of float64, float32, float16, bfloat16"),
    (dict(q=ones((2, 3, 2, 5), "f4")), V, "q has dtype float32; expected float64, as v"),
    (dict(k=ones((2, 3, 2, 5), "f2")), V, "k has dtype float16; expected float64, as v"),
    (dict(f=ones((2, 3, 2, 4), "f4")), V, f"f has dtype float32; expected {WIDE}"),
    (dict(g=ones((2, 3, 2, 5), "i4")), V, f"g has dtype int32; expected {WIDE}"),
    (dict(backend="nonesuch"), V, 't2fw_plan_create: backend is "nonesuch"; expected NULL or one of this build...'),
    (dict(backend=3), TypeError, "backend is a int; expected a string or None"),
    (dict(batch_invariant=1), TypeError, "batch_invariant is a int; expected a bool"),
    (dict(gate_logits=1), TypeError, "gate_logits is a int; expected a bool"),
    (dict(cu_seqlens=np.array([0, 3])), V, "B is 2 with cu_seqlens; expected 1"),
]
PACKED = [
    (np.array([0.0, 3.0]), "cu_seqlens has dtype float64; expected int64"),
    (np.array([[0, 3]]), "cu_seqlens has shape [1, 2]; expected [sequences + 1], at least [2]"),
    (np.array([3]), "cu_seqlens has shape [1]; expected [sequences + 1], at least [2]"),
    (np.array([0, 4]), "t2fw_forward: cu_seqlens[1] is 4; expected T=3"),
    (np.array([1, 3]), "t2fw_forward: cu_seqlens[0] is 1; expected 0"),
    (np.array([0, 2, 1, 3]), "t2fw_forward: cu_seqlens[2] is 1; expected at least 2, the value before it"),
]
STEP = [
    (dict(v=ones((2, 3, 2, 4))), V, "v has shape [2, 3, 2, 4]; expected [B,H,D]"),
    (dict(q=ones((2, 2, 6))), V, "q has shape [2, 2, 6]; expected [B,H,K] = [2, 2, 5]"),
    (dict(k=ones((2, 3, 5))), V, "k has shape [2, 3, 5]; expected [B,H,K] = [2, 2, any]"),
    (dict(g=ones((2, 3, 1))), V, "g has shape [2, 3, 1]; expected [B,H,K] or [B,H,1] = [2, 2, 1]"),
    (dict(state=None), TypeError, "state is None; expected an array"),
    (dict(state=ones((3, 2, 4, 5))), V, "state has shape [3, 2, 4, 5]; expected [B,H,D,K] = [2, 2, 4, 5]"),
    (dict(state=ones((3, 2, 4)), slot_indices=np.array([0, 1])), V,
     "state has shape [3, 2, 4]; expected [slots,H,D,K] = [any, 2, 4, 5]"),
    (dict(out_state=ones((2, 2, 5, 4))), V,
     "out_state has shape [2, 2, 5, 4]; expected the shape of state = [2, 2, 4, 5]"),
    (dict(out_state=ones((2, 2, 4, 5), "f4")), V, "out_state has dtype float32; expected float64, as state"),
    (dict(out_state=ones((2, 2, 4, 10))[..., ::2]), V,
     "out_state has strides [80, 40, 10, 2]; expected an aligned array whose last dimension is contiguous"),
    (dict(gate_logits=None), TypeError, "gate_logits is a NoneType; expected a bool"),
    (dict(slot_indices=np.array([0])), V, "slot_indices has shape [1]; expected [B] = [2]"),
    (dict(slot_indices=np.array([0.0, 1.0])), V, "slot_indices has dtype float64; expected int64"),
    (dict(slot_indices=np.array([0, 2])), V,
     "t2fw_step: slot_indices[1] is 2; expected 0 .. slots-1=1, or T2FW_SKIP_SLOT=-1"),
    (dict(slot_indices=np.array([0, -2])), V,
     "t2fw_step: slot_indices[1] is -2; expected 0 .. slots-1=1, or T2FW_SKIP_SLOT=-1"),
    (dict(slot_indices=np.array([1, 1])), V, "t2fw_step: slot_indices[1] is 1; expected no slot twice"),
]


def raises(error, message):
    return pytest.raises(error, match="^" + re.escape(message).replace(r"\.\.\.", ".*") + "$")


def of(library, x, error=V):
    """The arguments as arrays of the library; those of a wrong type have messages of their own there."""
    if library == "numpy":
        return dict(x)
    torch = pytest.importorskip("torch")
    if error is TypeError:
        pytest.skip("see test_mixed_libraries")
    return {n: torch.from_numpy(a) if isinstance(a, np.ndarray) else a for n, a in x.items()}


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("change,error,message", PARALLEL)
def test_parallel(change, error, message, library):
    x = of(library, {**X, **change}, error)
    with raises(error, message):
        t2fw.decay(x.pop("v"), x.pop("f"), x.pop("q"), x.pop("k"), x.pop("g"), x.pop("initial_state"), **x)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("cu,message", PACKED)
def test_packed(cu, message, library):
    x = of(library, {**{n: X[n][:1] for n in "vfqkg"}, "cu_seqlens": cu})
    with raises(V, message):
        t2fw.decay(*(x[n] for n in "vfqkg"), cu_seqlens=x["cu_seqlens"])


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("change,error,message", STEP)
def test_step(change, error, message, library):
    x = {**{n: X[n][:, 0] for n in "vfqkg"}, "state": X["initial_state"].copy(),
         "out_state": np.full((2, 2, 4, 5), np.nan), **change}
    before = {n: None if a is None else a.tobytes() for n, a in x.items()}
    args = of(library, x, error)
    with raises(error, message):
        t2fw.decay_step(*[args.pop(n) for n in (*"vfqkg", "state")], **args)
    assert before == {n: None if a is None else a.tobytes() for n, a in x.items()}


def test_device():
    class Numpy(_numpy.Numpy):
        keys = staticmethod(lambda arrays: [(a is X["q"], *_numpy.Numpy.keys([a])) if a is not None else a for a in arrays])
        layout = staticmethod(lambda key: _numpy.Numpy.layout(key[1])._replace(device=(1, 0) if key[0] else (2, 1)))

    with raises(V, "q is on cpu:0; expected cuda:1, as v"):
        _core.problem(Numpy, "decay", [*(X[n] for n in "vfqkg"), None, None, None], (None, False, False))


@pytest.mark.parametrize("name", [*"vfqkg", "initial_state", "cu_seqlens"])
def test_mixed_libraries(name):
    torch = pytest.importorskip("torch")
    x = {n: torch.from_numpy(a) for n, a in X.items()}
    x["cu_seqlens"] = None
    x[name] = np.ones(1)
    others = "v" if len(name) > 1 else "another argument is"
    with raises(TypeError, f"{name} is a ndarray; expected a torch tensor, as {others}"):
        t2fw.decay(*[x.pop(n) for n in (*"vfqkg", "initial_state")], **x)


@pytest.mark.parametrize("name", ["state", "slot_indices", "out_state"])
def test_mixed_libraries_in_step(name):
    torch = pytest.importorskip("torch")
    x = {n: torch.from_numpy(X[n][:, 0]) for n in "vfqkg"}
    x.update(state=torch.from_numpy(X["initial_state"]), slot_indices=None, out_state=None)
    x[name] = np.ones(1)
    with raises(TypeError, f"{name} is a ndarray; expected a torch tensor, as v"):
        t2fw.decay_step(*[x.pop(n) for n in (*"vfqkg", "state")], **x)


def test_gpu_tensor_needs_gpu_build():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available() or any("cuda" in b or "hip" in b for b in t2fw.backends()):
        pytest.skip("wants a GPU and a build without it")
    a = torch.ones(1, 1, 1, 1, device="cuda")
    with pytest.raises(t2fw.UnsupportedError, match="preset"):
        t2fw.decay(a, None, a, a, None)


@pytest.mark.parametrize("in_place", [False, True])
def test_out_state_is_read_only(in_place):
    state = np.ones((2, 2, 4, 5))
    out = state if in_place else state.copy()
    out.flags.writeable = False
    with raises(V, "out_state is read-only; expected an array that can be written to"):
        t2fw.decay_step(*(X[n][:, 0] for n in "vfqkg"), state, out_state=out)
    assert (out == 1).all()


def test_unsupported_is_not_implemented():
    assert issubclass(t2fw.UnsupportedError, NotImplementedError)
