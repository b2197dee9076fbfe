"""Plain PyTorch token loops: what t2fw computes, slowly and differentiably. [B,T,D], [B,T,K], state [B,D,K].

Importing this module also registers the operators torch.ops.t2fw.*, which are else there from the first call with a tensor on:
a program that torch.export saved needs them.
"""
from typing import Tuple

import torch
from torch import Tensor

import t2fw._torch


def t2fw_torch(
    value: Tensor, forget: Tensor, query: Tensor, key: Tensor, f_key: Tensor, state: Tensor
) -> Tuple[Tensor, Tensor]:
    """Decay: -> (outputs, next_state)"""
    outputs = []
    for t in range(value.shape[1]):
        gate = forget[:, t, :, None] * f_key[:, t, None, :]
        state = gate * state + value[:, t, :, None] * key[:, t, None, :]
        outputs.append((state @ query[:, t, :, None]).squeeze(-1))
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(value)), state


def t2dfw_torch(query: Tensor, key: Tensor, value: Tensor, state: Tensor) -> Tuple[Tensor, Tensor]:
    """Delta: -> (outputs, next_state)"""
    outputs = []
    for t in range(value.shape[1]):
        outputs.append((state @ query[:, t, :, None]).squeeze(-1))
        error = value[:, t] - (state @ key[:, t, :, None]).squeeze(-1)
        state = state + error[:, :, None] * key[:, t, None, :]
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(value)), state
