import numpy as np
import pytest

import t2fw

X = {n: np.ones(s) for n, s in dict(v=(2, 3, 2, 4), f=(2, 3, 2, 4), q=(2, 3, 2, 5), k=(2, 3, 2, 5), g=(2, 3, 2, 5),
                                    initial_state=(2, 2, 4, 5)).items()}
ones = np.ones
V, S = ValueError, t2fw.UnsupportedError

PARALLEL = [
    (dict(v=None), TypeError, "v is None"),
    (dict(v=[1.0]), TypeError, "v is a list"),
    (dict(v=ones((2, 3, 8))), V, r"v has shape \[2, 3, 8\]; expected \[B,T,H,D\]"),
    (dict(q=ones((2, 3, 2, 6))), V, r"q has shape .*expected \[B,T,H,K\] = \[2, 3, 2, 5\]"),
    (dict(k=ones((2, 4, 2, 5))), V, "k has shape"),
    (dict(k=ones((2, 3, 5))), V, "k has shape"),
    (dict(f=ones((2, 3, 2, 3))), V, r"f has shape .*\[B,T,H,1\]"),
    (dict(f=ones((2, 3, 1, 4))), V, "f has shape"),
    (dict(g=ones((2, 3, 2, 4))), V, "g has shape"),
    (dict(g=ones((3, 2, 1))), V, "g has shape"),
    (dict(initial_state=ones((2, 2, 5, 4))), V, r"initial_state has shape .*\[B,H,D,K\] = \[2, 2, 4, 5\]"),
    (dict(initial_state=ones((1, 2, 4, 5))), V, "initial_state has shape"),
    (dict(initial_state=ones((2, 2, 4, 5), "f4")), V, "initial_state has dtype float32; expected float64"),
    (dict(v=ones((2, 3, 2, 4), int)), V, "v has dtype int64; expected one of float64"),
    (dict(v=ones((2, 3, 2, 4), complex)), V, "v has dtype complex128"),
    (dict(q=ones((2, 3, 2, 5), "f4")), V, "q has dtype float32; expected float64, as v"),
    (dict(k=ones((2, 3, 2, 5), "f2")), V, "k has dtype float16"),
    (dict(f=ones((2, 3, 2, 4), "f4")), V, "f has dtype float32"),
    (dict(g=ones((2, 3, 2, 5), "i4")), V, "g has dtype int32"),
    (dict(backend="nonesuch"), (V, S), "nonesuch"),
    (dict(backend=3), TypeError, "backend is a int"),
    (dict(cu_seqlens=np.array([0, 3])), V, "cu_seqlens needs B = 1; got B = 2"),
    (dict(v=ones((2, 3, 2, 0))), V, "D"),
]
PACKED = [
    (np.array([0.0, 3.0]), V, "cu_seqlens has dtype float64"),
    (np.array([[0, 3]]), V, "cu_seqlens has shape"),
    (np.array([3]), V, "cu_seqlens has shape"),
    (np.array([0, 4]), V, "cu_seqlens"),
    (np.array([1, 3]), V, "cu_seqlens"),
    (np.array([0, 2, 1, 3]), V, "cu_seqlens"),
]
STEP = [
    (dict(v=ones((2, 3, 2, 4))), V, r"v has shape .*\[B,H,D\]"),
    (dict(q=ones((2, 2, 6))), V, r"q has shape \[2, 2, 6\]; expected \[B,H,K\]"),
    (dict(state=None), TypeError, "state is None"),
    (dict(state=ones((3, 2, 4, 5))), V, "state has shape"),
    (dict(out_state=ones((2, 2, 5, 4))), V, "out_state has shape"),
    (dict(out_state=ones((2, 2, 4, 5), "f4")), V, "out_state has dtype float32"),
    (dict(out_state=ones((2, 2, 4, 10))[..., ::2]), V, "out_state must be .*contiguous"),
    (dict(slot_indices=np.array([0])), V, "slot_indices has shape"),
    (dict(slot_indices=np.array([0.0, 1.0])), V, "slot_indices has dtype"),
    (dict(slot_indices=np.array([0, 2])), V, "slot"),
    (dict(slot_indices=np.array([0, -2])), V, "slot"),
    (dict(slot_indices=np.array([1, 1])), V, "slot"),
]


@pytest.mark.parametrize("change,error,message", PARALLEL)
def test_parallel(change, error, message):
    x = {**X, **change}
    with pytest.raises(error, match=message):
        t2fw.decay(x.pop("v"), x.pop("f"), x.pop("q"), x.pop("k"), x.pop("g"), x.pop("initial_state"), **x)


@pytest.mark.parametrize("cu,error,message", PACKED)
def test_packed(cu, error, message):
    x = [X[n][:1] for n in "vfqkg"]
    with pytest.raises(error, match=message):
        t2fw.decay(*x, cu_seqlens=cu)


@pytest.mark.parametrize("change,error,message", STEP)
def test_step(change, error, message):
    x = {**{n: X[n][:, 0] for n in "vfqkg"}, "state": X["initial_state"].copy(), **change}
    with pytest.raises(error, match=message):
        t2fw.decay_step(x.pop("v"), x.pop("f"), x.pop("q"), x.pop("k"), x.pop("g"), x.pop("state"), **x)


def test_mixed_libraries():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="q is not a torch tensor"):
        t2fw.decay(torch.ones(1, 1, 1, 1), None, np.ones((1, 1, 1, 1)), torch.ones(1, 1, 1, 1), None)


def test_gpu_tensor_needs_gpu_build():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available() or any("cuda" in b or "hip" in b for b in t2fw.backends()):
        pytest.skip("wants a GPU and a build without it")
    a = torch.ones(1, 1, 1, 1, device="cuda")
    with pytest.raises(t2fw.UnsupportedError, match="preset"):
        t2fw.decay(a, None, a, a, None)


def test_unsupported_is_not_implemented():
    assert issubclass(t2fw.UnsupportedError, NotImplementedError)
