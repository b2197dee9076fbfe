"""What generation costs: time and memory of the tokens that follow a prompt, for any causal model of transformers."""
import statistics
import time
from typing import Any, NamedTuple, Tuple

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache


class Cost(NamedTuple):
    prefill_ms: float  # of the pass over the prompt
    token_ms: float  # of a token after it, the median
    cache_bytes: int  # when the prompt has been read


def next_token(model: Any, tokens: Tensor, cache: Cache) -> Tuple[Tensor, float]:
    """Reads tokens [B,T] after what is in the cache -> (the likeliest next ones [B,1], milliseconds that took)."""
    def now() -> float:
        if tokens.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    start = now()
    logits = model(tokens, cache=cache, use_cache=True, logits_to_keep=1).logits
    tokens = logits.argmax(-1)
    return tokens, (now() - start) * 1e3


@torch.no_grad()
def generation_cost(model: Any, prompt: Tensor, count: int = 32) -> Tuple[Cost, Tensor, Cache]:
    """Generates `count` tokens after prompt [B,T], greedily -> (cost, the last one [B,1], the cache of all before it)."""
    cache, times = DynamicCache(config=model.config), []
    token, prefill_ms = next_token(model, prompt, cache)
    held = sum(a.nbytes for layer in cache.layers for a in vars(layer).values() if torch.is_tensor(a))
    for _ in range(count):
        token, ms = next_token(model, token, cache)
        times.append(ms)
    return Cost(prefill_ms, statistics.median(times), held), token, cache
