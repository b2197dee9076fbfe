"""Models of Hugging Face transformers with decaying fast weights for attention, and the conversion of a pre-trained one.

Importing this module makes the models known to transformers' AutoConfig and AutoModelForCausalLM. In the transformers.Cache
that generate() or a caller hands them, each layer of theirs keeps a `StateLayer`, whose memory does not grow.
"""
from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig,
    LlamaForCausalLM, PreTrainedModel,
)
from transformers.cache_utils import Cache, CacheLayerMixin

from .nn import RULES, DecayingFastWeights, expect

NAME = "fast_weights"  # of the attention implementation


class StateLayer(CacheLayerMixin):
    """One layer of a transformers.Cache: the state [B,H,D,K] after the tokens so far, instead of their keys and values."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.state: Optional[Tensor] = None
        self.length = 0

    def lazy_initialization(self, *args: Any) -> None:
        """The first update brings the state."""

    def update(self, state: Tensor, tokens: int) -> None:  # type: ignore[override]
        self.state, self.length, self.is_initialized = state, self.length + tokens, True

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> Tuple[int, int]:
        return self.length + query_length, 0

    def reset(self) -> None:
        self.state, self.length, self.is_initialized = None, 0, False

    def _replace(self, state: Any) -> None:
        if self.state is not None:
            self.state = state(self.state)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._replace(lambda state: state.index_select(0, beam_idx.to(state.device)))

    batch_select_indices = reorder_cache

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._replace(lambda state: state.repeat_interleave(repeats, 0))

    def offload(self) -> None:
        self._replace(lambda state: state.cpu())

    def prefetch(self) -> None:
        """A state moves to where its layer is when that layer runs."""

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise ValueError(f"tokens_to_remove is {tokens_to_remove}; expected 0: a state of fast weights cannot be taken back")


def _padding_mask(q_length: int, attention_mask: Optional[Tensor] = None, **kwargs: Any) -> Optional[Tensor]:
    """What transformers hands the layers as attention mask: the padding among this call's tokens [B,T], None for none."""
    if attention_mask is None:
        return None
    attention_mask = attention_mask[:, -q_length:]
    return attention_mask if torch.compiler.is_compiling() or not attention_mask.all() else None


def _no_attention(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError(f"attn_implementation={NAME!r} is for models that t2fw.convert made")


AttentionMaskInterface.register(NAME, _padding_mask)
AttentionInterface.register(NAME, _no_attention)


class FastWeightsAttention(nn.Module):
    """`DecayingFastWeights` with the signature of transformers' attention modules."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.fast_weights = DecayingFastWeights(
            config.hidden_size, config.num_attention_heads, kdim=config.kdim, head_dim=getattr(config, "head_dim", None),
            num_kv_heads=getattr(config, "num_key_value_heads", None), rule=config.rule,
            bias=getattr(config, "attention_bias", True), dropout=getattr(config, "resid_pdrop", 0.0))

    def forward(
        self, hidden_states: Tensor, cache: Optional[Cache] = None, attention_mask: Optional[Tensor] = None, **kwargs: Any
    ) -> Tuple[Tensor, None]:
        layer = None if cache is None else self._place(cache)
        state = None if layer is None or layer.state is None else layer.state.to(hidden_states.device)
        y, state = self.fast_weights(hidden_states, state, attention_mask)
        if layer is not None:
            layer.update(state, hidden_states.shape[1])
        return y, None

    def _place(self, cache: Cache) -> StateLayer:
        """This layer's place in a cache; at first use it takes the one that was made for keys and values."""
        if self.layer_idx == len(cache.layers):
            cache.layers.append(StateLayer())
        layer = cache.layers[self.layer_idx]
        if not isinstance(layer, StateLayer):
            if layer.is_initialized:
                raise ValueError(f"cache holds a {type(layer).__name__} in use; expected a new cache, or one of this model")
            layer = cache.layers[self.layer_idx] = StateLayer()
        return layer


class GPT2FastWeightsConfig(GPT2Config):
    """GPT2Config with `rule` and `kdim` (None: the head size), as of `t2fw.convert`."""

    model_type = "gpt2_fast_weights"
    rule: str = "decay"
    kdim: Optional[int] = None


class LlamaFastWeightsConfig(LlamaConfig):
    """LlamaConfig with `rule` and `kdim` (None: the head size), as of `t2fw.convert`."""

    model_type = "llama_fast_weights"
    rule: str = "decay"
    kdim: Optional[int] = None


def _attentions(model: nn.Module) -> Any:
    """(layer index, the block that has an attention module, the attribute's name)"""
    for i, block in enumerate(model.transformer.h if isinstance(model, GPT2LMHeadModel) else model.model.layers):
        yield i, block, "attn" if isinstance(model, GPT2LMHeadModel) else "self_attn"


class _FastWeightsModel:
    _is_stateful = True  # a state cannot be rolled back, which assisted generation would have to

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        for i, block, name in _attentions(self):  # type: ignore[arg-type]
            setattr(block, name, FastWeightsAttention(config, i))

    def get_correct_attn_implementation(self, requested_attention: Optional[str], is_init_check: bool = False) -> str:
        return NAME


class GPT2FastWeightsLMHeadModel(_FastWeightsModel, GPT2LMHeadModel):
    """GPT2LMHeadModel with decaying fast weights for self-attention; `t2fw.convert` makes one of a GPT2LMHeadModel."""

    config_class = GPT2FastWeightsConfig


class LlamaFastWeightsForCausalLM(_FastWeightsModel, LlamaForCausalLM):
    """LlamaForCausalLM with decaying fast weights for self-attention; `t2fw.convert` makes one of a LlamaForCausalLM."""

    config_class = LlamaFastWeightsConfig


for _model in (GPT2FastWeightsLMHeadModel, LlamaFastWeightsForCausalLM):
    AutoConfig.register(_model.config_class.model_type, _model.config_class)
    AutoModelForCausalLM.register(_model.config_class, _model)


class Projections(NamedTuple):
    """Pre-trained weights with their bias, if any, as one more column: q [H,d,E], k and v [H',d,E], and out."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: nn.Module


def _heads(weight: Tensor, bias: Optional[Tensor], heads: int) -> Tensor:
    rows = weight if bias is None else torch.cat([weight, bias[:, None]], 1)
    return rows.view(heads, -1, rows.shape[1])


def _projections(attention: Any, config: Any) -> Projections:
    """The weights of an attention module; the scale of its scores is taken into q."""
    if isinstance(config, GPT2Config):
        q, k, v = (_heads(w, b, config.n_head) for w, b in zip(
            attention.c_attn.weight.t().chunk(3), attention.c_attn.bias.chunk(3)))
        return Projections(q * attention.scaling, k, v, attention.c_proj)
    q, k, v = (_heads(p.weight, p.bias, heads) for p, heads in (
        (attention.q_proj, config.num_attention_heads), (attention.k_proj, config.num_key_value_heads),
        (attention.v_proj, config.num_key_value_heads)))
    return Projections(q * attention.scaling, k, v, attention.o_proj)


def _resize(q: Tensor, k: Tensor, fresh_k: Tensor) -> Tuple[Tensor, Tensor]:
    """q [H,d,E] and k [H',d,E] with as many rows K a head as fresh_k [H',K,E] has: the first K of them or, if there are
    fewer, all, and further keys from fresh_k with zero for their queries, so that no score q.k changes at first."""
    missing = max(fresh_k.shape[1] - q.shape[1], 0)
    q = torch.cat([q, q.new_zeros(q.shape[0], missing, q.shape[2])], 1)
    return q[:, : fresh_k.shape[1]], torch.cat([k, fresh_k[:, k.shape[1] :]], 1)[:, : fresh_k.shape[1]]


def _load(layer: DecayingFastWeights, old: Projections) -> None:
    """Gives a fresh layer the pre-trained weights; the gates stay as they were initialised."""
    weight, bias = layer.project.weight, layer.project.bias
    keys = slice(layer.rows["q"], layer.rows["q"] + layer.rows["k"])
    q, k = _resize(old.q, old.k, _heads(weight[keys], None if bias is None else bias[keys], layer.num_kv_heads))
    rows = torch.cat([a.flatten(0, 1) for a in (q * layer.kdim**0.5, k, old.v)])
    weight[: len(rows)] = rows[:, : layer.embed_dim]
    if bias is not None:
        bias.copy_(rows[:, -1])
    layer.out.weight.copy_(old.out.weight if isinstance(old.out, nn.Linear) else old.out.weight.t())  # GPT-2's lies transposed
    if layer.out.bias is not None:
        layer.out.bias.copy_(old.out.bias)


_CONVERSIONS: Dict[type, type] = {
    GPT2LMHeadModel: GPT2FastWeightsLMHeadModel, LlamaForCausalLM: LlamaFastWeightsForCausalLM}


@torch.no_grad()
def convert(model: PreTrainedModel, rule: str = "decay", kdim: Optional[int] = None) -> PreTrainedModel:
    """As `t2fw.convert`."""
    new_class = _CONVERSIONS.get(type(model))
    expect("model", type(model).__name__, new_class is not None, f"one of {', '.join(c.__name__ for c in _CONVERSIONS)}")
    expect("rule", rule, rule in RULES, f"one of {', '.join(RULES)}")
    expect("kdim", kdim, kdim is None or kdim > 0, "a positive number or None")
    old = model.config
    expect("model.config.add_cross_attention", True, not getattr(old, "add_cross_attention", False), "False")
    settings = {k: v for k, v in old.to_dict().items() if k not in ("model_type", "architectures", "transformers_version")}
    config = new_class.config_class(**settings, rule=rule, kdim=kdim)  # type: ignore[union-attr]
    config._attn_implementation = NAME
    for i, block, name in _attentions(model):
        attention = getattr(block, name)
        weight = next(attention.parameters())
        layer = FastWeightsAttention(config, i)
        layer.fast_weights.to(weight.device, weight.dtype)
        _load(layer.fast_weights, _projections(attention, old))
        setattr(block, name, layer.train(attention.training))
    for module in model.modules():
        if getattr(module, "config", None) is old:
            module.config = config
    model.__class__ = new_class  # type: ignore[assignment]
    return model
