"""Drop-in for the original functional_dfw: delta on one head, [B,T,D], [B,T,K], state [B,D,K]."""
from typing import Tuple

from torch import Tensor

from t2fw import delta


class DFWFunction:
    @staticmethod
    def apply(query: Tensor, key: Tensor, value: Tensor, state: Tensor) -> Tuple[Tensor, Tensor]:
        """-> (outputs, next_state), differentiable in every argument"""
        tokens = (x.unsqueeze(2) for x in (query, key, value))
        outputs, next_state = delta(*tokens, state.unsqueeze(1))
        return outputs.squeeze(2), next_state.squeeze(1)
