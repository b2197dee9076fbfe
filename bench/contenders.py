"""What compare.py times. Another contender is a function that prepares its call, and a line in the table at the end."""
from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

import t2fw
from t2fw.torch import t2fw_torch

Operands = Dict[str, Tensor]  # v f q k g, [B,T,H,X]
Prepared = Tuple[Callable[..., Tensor], List[Tensor]]  # a call, and the inputs it is differentiable in


@dataclass
class Contender:
    prepare: Callable[[Operands], Prepared]
    gates: Optional[str]  # which of f and g it has; it must agree with t2fw given these. None: it computes something else
    module: str = "torch"
    gpu_only: bool = False


def decay(x: Operands) -> Prepared:
    return lambda v, f, q, k, g: t2fw.decay(v, f, q, k, g)[0], [x[n] for n in "vfqkg"]


def attention(x: Operands) -> Prepared:
    inputs = [x[n].transpose(1, 2).contiguous() for n in "qkv"]
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), inputs


def loop(x: Operands) -> Prepared:
    """Heads lie in the batch, and everything is of the wider dtype: `@` does not mix them."""
    B, _, H, D = x["v"].shape
    wide = torch.promote_types(x["v"].dtype, x["f"].dtype)
    inputs = [x[n].transpose(1, 2).flatten(0, 1).to(wide).contiguous() for n in "vfqkg"]
    state = inputs[0].new_zeros(B * H, D, x["k"].shape[3])
    scripted = torch.jit.script(t2fw_torch)
    return lambda *tokens: scripted(*tokens, state)[0].unflatten(0, (B, H)).transpose(1, 2), inputs


def chunk_gla(x: Operands) -> Prepared:
    from fla.ops.gla import chunk_gla as call

    return lambda q, k, v, g: call(q, k, v, g, scale=1.0)[0], [x["q"], x["k"], x["v"], x["g"].log()]


def fused_recurrent_gla(x: Operands) -> Prepared:
    from fla.ops.gla import fused_recurrent_gla as call

    inputs = [x["q"], x["k"], x["v"], x["g"].log(), x["f"].log()]
    return lambda q, k, v, gk, gv: call(q, k, v, gk=gk, gv=gv, scale=1.0)[0], inputs


CONTENDERS = {  # the first is what the others are compared with
    "t2fw.decay": Contender(decay, "fg"),
    "attention": Contender(attention, None),
    "TorchScript loop": Contender(loop, "fg"),
    "fla chunk_gla, key gate": Contender(chunk_gla, "g", "fla", gpu_only=True),
    "fla fused_recurrent_gla": Contender(fused_recurrent_gla, "fg", "fla", gpu_only=True),
}
