import os

import pytest

# torch.compile keeps graphs on disk, by the operators a program calls: not by what their gradients call, or save, in this build.
for _cache in ("AUTOGRAD", "FX_GRAPH"):
    os.environ[f"TORCHINDUCTOR_{_cache}_CACHE"] = "0"

import t2fw


def devices():
    try:
        import torch
    except ImportError:
        return ["cpu"]
    gpu = torch.cuda.is_available() and any("cuda" in b or "hip" in b for b in t2fw.backends())
    return ["cpu", "cuda"] if gpu else ["cpu"]


@pytest.fixture(params=devices())
def device(request):
    """New tensors lie on this device."""
    torch = pytest.importorskip("torch")
    with torch.device(request.param):
        yield request.param
