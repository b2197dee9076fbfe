import importlib.util
import pathlib

import numpy as np
import pytest

TOLERANCE = {"float64": 1e-13, "float32": 3e-6, "float16": 1.5e-3, "bfloat16": 8e-3}
SHAPES = [(2, 0, 1, 3, 2), (2, 1, 2, 4, 4), (1, 2, 1, 1, 5), (2, 17, 2, 8, 5), (1, 65, 2, 5, 16)]  # B T H D K
GATES = [("none", "none"), ("head", "none"), ("full", "head"), ("full", "full"), ("none", "full")]


def close(got, want, dtype, factor=1.0):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    assert np.isfinite(got).all() and np.isfinite(want).all()
    error = np.linalg.norm(got - want)
    assert error <= factor * TOLERANCE[dtype] * np.linalg.norm(want), (error, np.linalg.norm(want))


def gate(rng, kind, shape):
    if kind == "none":
        return None
    shape = (*shape[:3], 1) if kind == "head" else shape
    a = rng.uniform(0.5, 1.0, shape)
    special = rng.random(shape)
    for i, value in enumerate((0.0, -0.5, 1e-30, 1.0, 1.5)):
        a[(special >= 0.03 * i) & (special < 0.03 * (i + 1))] = value
    return a


def inputs(B, T, H, D, K, f="full", g="full", seed=0):
    """v f q k g and a state; keys short enough that the delta rule contracts"""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal
    return dict(v=normal((B, T, H, D)), f=gate(rng, f, (B, T, H, D)), q=normal((B, T, H, K)),
                k=normal((B, T, H, K)) / np.sqrt(K), g=gate(rng, g, (B, T, H, K)), initial_state=normal((B, H, D, K)))


def logits(x, dtype, seed=0):
    """x with logits for its gates, of that dtype, and x with the gates that those are."""
    rng, x, gates = np.random.default_rng(seed), dict(x), dict(x)
    for n in "fg":
        if x[n] is not None:
            a, special = rng.uniform(-4.6, 9.2, x[n].shape), rng.random(x[n].shape)
            for i, value in enumerate((-np.inf, -1000, -40, 40, 1000, np.inf)):
                a[(special >= 0.03 * i) & (special < 0.03 * (i + 1))] = value
            x[n] = a.astype(dtype)
            with np.errstate(over="ignore"):
                gates[n] = 1 / (1 + np.exp(-x[n].astype(np.float64)))
    return x, gates


def load_script(path):
    """A script of the repository, by its path there, as a module; skips where the tests lie alone."""
    file = pathlib.Path(__file__).parents[2] / path
    if not file.exists():
        pytest.skip(f"no {path} beside these tests")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
