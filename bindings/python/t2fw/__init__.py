"""Decaying fast weights and the delta rule.

decay:  S_t = (f_t (x) g_t) o S_{t-1} + v_t (x) k_t,   y_t = S_t q_t
delta:  y_t = S_{t-1} q_t,   S_t = S_{t-1} + (v_t - S_{t-1} k_t) (x) k_t

v, f, y are [B,T,H,D]; q, k, g are [B,T,H,K]; a state is [B,H,D,K]. A gate is a raw multiplier of any value, or else its
logit (gate_logits); it may be None (counts as 1), [B,T,H,1] or full width. Arrays are NumPy arrays, torch tensors (CPU or
GPU; differentiable once, by torch.autograd and not torch.func), or CPU objects with __dlpack__, for which the results are
NumPy arrays. Strides are free; an array whose last dimension is not contiguous is copied first. States are float32 beside
16-bit data, else of the data's dtype; the dtype of an initial state that is given wins. `backend` names one of
`backends()`; None takes the first that accepts.

Errors: ValueError for a wrong argument, UnsupportedError where every backend declines (with each one's reason).
"""
import sys
from typing import Any, Optional, Tuple

from . import _core, _t2fw
from ._numpy import Numpy, array
from ._t2fw import UnsupportedError

__all__ = ["UnsupportedError", "backends", "convert", "decay", "decay_step", "delta", "delta_step"]
__version__ = "0.1.0"


def backends() -> Tuple[str, ...]:
    """The backends of this build, in the order they are asked, each as "name(device)"."""
    return tuple(name.strip() for name in _t2fw.backends().split(",") if name.strip())


def _is_torch(*arrays: Any) -> bool:
    for a in arrays:
        if hasattr(a, "__torch_function__"):
            return True
    return False


def decay(
    v: Any, f: Any, q: Any, k: Any, g: Any, initial_state: Any = None, *, cu_seqlens: Any = None,
    backend: Optional[str] = None, batch_invariant: bool = False, gate_logits: bool = False,
) -> Tuple[Any, Any]:
    """-> (y, final_state). With cu_seqlens (int64 [sequences + 1], from 0 to T) B is 1, the sequences lie one after
    another in T, and a state is [sequences,H,D,K]. With batch_invariant, which may be slower, a sequence's results and
    gradients have the same bits whatever else is in the batch. With gate_logits f and g are logits, of any value, and the
    gates their logistic function, computed in float32 (float64 for float64); their gradients are those of the logits."""
    if _is_torch(v, q, k):
        from . import _torch

        return _torch.parallel("decay", v, f, q, k, g, initial_state, cu_seqlens, (backend, batch_invariant, gate_logits))
    return _parallel("decay", v, f, q, k, g, initial_state, cu_seqlens, (backend, batch_invariant, gate_logits))


def delta(
    q: Any, k: Any, v: Any, initial_state: Any = None, *, cu_seqlens: Any = None, backend: Optional[str] = None,
    batch_invariant: bool = False,
) -> Tuple[Any, Any]:
    """-> (y, final_state). cu_seqlens and batch_invariant as in `decay`."""
    if _is_torch(v, q, k):
        from . import _torch

        return _torch.parallel("delta", v, None, q, k, None, initial_state, cu_seqlens, (backend, batch_invariant))
    return _parallel("delta", v, None, q, k, None, initial_state, cu_seqlens, (backend, batch_invariant))


def decay_step(
    v: Any, f: Any, q: Any, k: Any, g: Any, state: Any, *, slot_indices: Any = None, out_state: Any = None,
    backend: Optional[str] = None, gate_logits: bool = False,
) -> Tuple[Any, Any]:
    """One token: v, f [B,H,D] and q, k, g [B,H,K] -> (y [B,H,D], new state).

    With slot_indices (int64 [B], no slot twice, -1 passes over a row) the state is a pool [slots,H,D,K]. The new state
    is a fresh array; out_state takes it instead, and out_state=state works in place. gate_logits as in `decay`."""
    if _is_torch(v, q, k):
        from . import _torch

        return _torch.step("decay", v, f, q, k, g, state, slot_indices, out_state, (backend, False, gate_logits))
    return _step("decay", v, f, q, k, g, state, slot_indices, out_state, (backend, False, gate_logits))


def delta_step(
    q: Any, k: Any, v: Any, state: Any, *, slot_indices: Any = None, out_state: Any = None,
    backend: Optional[str] = None,
) -> Tuple[Any, Any]:
    """One token: q, k [B,H,K] and v [B,H,D] -> (y [B,H,D], new state). The rest as in `decay_step`."""
    if _is_torch(v, q, k):
        from . import _torch

        return _torch.step("delta", v, None, q, k, None, state, slot_indices, out_state, (backend, False))
    return _step("delta", v, None, q, k, None, state, slot_indices, out_state, (backend, False))


def convert(model: Any, rule: str = "decay", kdim: Optional[int] = None) -> Any:
    """Replaces, in place, the self-attention of a Hugging Face transformers GPT2LMHeadModel or LlamaForCausalLM by
    `t2fw.nn.DecayingFastWeights`, to be fine-tuned; returns the model. Needs torch and transformers.

    rule is one of t2fw.nn.RULES, kdim the memory slots a head (None: the head size). Embeddings, MLPs, norms and head stay,
    and the query, key, value and output projections keep their weights. With fewer slots than the head size, a head keeps the
    first kdim dimensions of its queries and keys; with more, the further queries start at zero. Grouped keys and values stay
    grouped. Rotary embeddings are dropped: the gates know what is recent, and any kdim goes. Gates are new.

    The model becomes a t2fw.models.GPT2FastWeightsLMHeadModel or LlamaFastWeightsForCausalLM, saved by save_pretrained and
    loaded by transformers.AutoModelForCausalLM.from_pretrained once `t2fw.models` has been imported. generate() and cached
    calls keep one state [B,H,D,K] a layer in their transformers.Cache.

    Errors: ValueError for a wrong argument, naming it, before anything is changed."""
    from . import models

    return models.convert(model, rule, kdim)


def _arrays(**named: Any) -> Any:
    for name in "vqk":
        if named[name] is None:
            raise TypeError(f"{name} is None; expected an array")
    return [array(name, a) for name, a in named.items()]


def _parallel(rule, v, f, q, k, g, initial_state, cu_seqlens, options):  # type: ignore[no-untyped-def]
    arrays = _arrays(v=v, f=f, q=q, k=k, g=g, initial_state=initial_state, cu_seqlens=cu_seqlens)
    return _core.forward(Numpy, rule, arrays, options, save=False)[:2]


def _step(rule, v, f, q, k, g, state, slot_indices, out_state, options):  # type: ignore[no-untyped-def]
    if state is None:
        raise TypeError("state is None; expected an array")
    in_place = out_state is state
    *arrays, out = _arrays(v=v, f=f, q=q, k=k, g=g, state=state, slot_indices=slot_indices, out_state=out_state)
    if out is not None and out is out_state and not out.flags.writeable:
        raise ValueError("out_state is read-only; expected an array that can be written to")
    if in_place:
        out = arrays[5]
    elif out is None:
        out = Numpy.like(arrays[5]) if slot_indices is None else Numpy.copy(arrays[5])
    return _core.step(Numpy, rule, (*arrays, out), options), out


if sys.modules.get("torch") is not None:  # else at the first call with a tensor
    from . import _torch as _torch
