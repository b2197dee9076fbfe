"""What the tests of the PyTorch bindings share."""
import pytest

torch = pytest.importorskip("torch")

import t2fw
import t2fw.torch  # registers the operators
from torch.utils._python_dispatch import TorchDispatchMode

RULES = {"decay": ("v", "f", "q", "k", "g"), "delta": ("q", "k", "v")}
OPTIONS = {"decay": (None, False, False), "delta": (None, False)}  # of the operators


def tensors(x, dtype="float64", grad=True):
    x = {n: None if a is None else torch.tensor(a, dtype=getattr(torch, dtype)) for n, a in x.items()}
    if dtype in ("float16", "bfloat16"):
        x["initial_state"] = x["initial_state"].float()
    return {n: a if a is None else a.requires_grad_(grad) for n, a in x.items()}


def wide(a):
    return None if a is None else a.detach().double().cpu().numpy()


class Calls(TorchDispatchMode):
    """The operators that are called, and of each the shape of its first tensor, if that is its first argument."""

    def __init__(self):
        super().__init__()
        self.seen, self.shapes = [], []

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        self.seen.append(str(call))
        self.shapes.append(tuple(args[0].shape) if args and torch.is_tensor(args[0]) else None)
        return call(*args, **kwargs or {})


def call(rule, x, module=t2fw, **more):
    return getattr(module, rule)(*(x[n] for n in RULES[rule]), x["initial_state"], **more)
