"""Drop-in for the original functional_lfw: decay on one head, [B,T,D], [B,T,K], state [B,D,K]."""
from typing import Tuple

from torch import Tensor

from t2fw import decay


class LFWFunction:
    @staticmethod
    def apply(
        value: Tensor, forget: Tensor, query: Tensor, key: Tensor, f_key: Tensor, state: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """-> (outputs, next_state), differentiable in every argument"""
        tokens = (x.unsqueeze(2) for x in (value, forget, query, key, f_key))
        outputs, next_state = decay(*tokens, state.unsqueeze(1))
        return outputs.squeeze(2), next_state.squeeze(1)
