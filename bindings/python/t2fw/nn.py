"""A layer of decaying fast weights for PyTorch: what stands where a Transformer has self-attention."""
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import t2fw

RULES = ("add", "gated", "delta", "decay")


def expect(name: str, got: object, good: bool, expected: str) -> None:
    """Raises a ValueError that names the argument, what came and what was expected, unless `good`."""
    if not good:
        raise ValueError(f"{name} is {got!r}; expected {expected}")


class Projection(nn.Linear):
    """A linear layer whose first `scaled` outputs come multiplied by `scale`, which the parameters know nothing of. `bias`, or
    None, is that of all outputs but the last `unbiased` ones; a call may bring theirs."""

    def __init__(self, in_features: int, out_features: int, bias: bool, unbiased: int, scaled: int, scale: float) -> None:
        super().__init__(in_features, out_features, bias)
        self.scaled, self.scale = scaled, scale
        if bias:
            self.bias = nn.Parameter(self.bias.detach()[: out_features - unbiased].clone())

    def forward(self, x: Tensor, last_bias: Optional[Tensor] = None) -> Tensor:
        weight, bias = self.weight, self.bias
        if last_bias is not None:
            rest = self.out_features - last_bias.shape[0]
            bias = F.pad(last_bias, (rest, 0)) if bias is None else torch.cat([bias, last_bias])
        elif bias is not None:
            bias = F.pad(bias, (0, self.out_features - bias.shape[0]))
        if torch.is_grad_enabled():  # else tokens may be few, as in decoding, and scaling the weight takes longer than they do
            return F.linear(x, self._scaled(weight), None if bias is None else self._scaled(bias))
        y = F.linear(x, weight, bias)
        y[..., : self.scaled] *= self.scale
        return y

    def _scaled(self, rows: Tensor) -> Tensor:
        first, rest = rows.split([self.scaled, rows.shape[0] - self.scaled])
        return torch.cat([first * self.scale, rest])


class DecayingFastWeights(nn.Module):
    """Causal token mixing with a state of constant size: attention's projections, and a recurrence for its softmax.

    Each head keeps fast weights S, [D,K], and computes from its query, key and value (no softmax, no feature map, no
    normalisation by a sum of weights), after H. H. Mao, Fine-Tuning Pre-trained Transformers into Decaying Fast Weights
    (EMNLP 2022):

        decay  S_t = (f_t (x) g_t) o S_{t-1} + v_t (x) k_t          f_t = sigmoid(W_f x_t + b_f), [D];  g_t likewise, [K]
        add    S_t = S_{t-1} + v_t (x) k_t                          Katharopoulos et al. 2020
        gated  S_t = a_t S_{t-1} + (1 - a_t) v_t (x) k_t            a_t = sigmoid(w x_t + b), a scalar; Peng et al. 2021
        delta  S_t = S_{t-1} + a_t (v_t - S_{t-1} k_t) (x) k_t      a_t likewise; |k_t| = 1; Schlag et al. 2021

    and y_t = S_t q_t / sqrt(K) (delta: S_{t-1} q_t / sqrt(K)), as attention divides. The biases of the gates start by
    uniform gate initialisation (Gu et al. 2020): logit(u), u ~ U(1/n, 1 - 1/n), n = embed_dim.
    The logits of f and g are of the dtype of q, k and v, 16-bit under such an autocast; within t2fw.decay their sigmoid is
    computed in float32. a is computed in float32 from w x_t on.

    One linear layer, `project`, makes all of them of x: its rows are those of q (H*K), k and v (num_kv_heads*K and *D), then of
    f (H*D) and g (H*K), or of a (H, and up to 7 unused ones that keep rows of 16 bits aligned); `rows` says how many. Its bias is that of q, k and v, `gate_bias` that of the rest.

    A state is a tensor [B,num_heads,head_dim,kdim], float32 beside 16-bit data, else of the data's dtype. It is never
    written to, so that it can be kept, saved, cloned or indexed by sequence (`state[rows]`); `zero_state` starts anew.

    Args:
        embed_dim: width of x and y.
        num_heads: heads H, each with a state of its own.
        kdim: K, memory slots a head; default head_dim.
        head_dim: D, values a head; default embed_dim / num_heads.
        num_kv_heads: heads of keys and values, each shared by num_heads / num_kv_heads neighbours (grouped-query
            attention); default num_heads.
        rule: one of RULES.
        bias: whether the projections of q, k, v and of the output have a bias; gates always have one.
        dropout: probability on the output while training.

    Errors: ValueError that names the argument.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, *, kdim: Optional[int] = None, head_dim: Optional[int] = None,
        num_kv_heads: Optional[int] = None, rule: str = "decay", bias: bool = True, dropout: float = 0.0,
    ) -> None:
        super().__init__()
        expect("embed_dim", embed_dim, embed_dim > 0, "a positive number")
        expect("num_heads", num_heads, num_heads > 0, "a positive number")
        if head_dim is None:
            expect("num_heads", num_heads, embed_dim % num_heads == 0, f"a divisor of embed_dim = {embed_dim}, or head_dim")
            head_dim = embed_dim // num_heads
        kdim = head_dim if kdim is None else kdim
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        expect("head_dim", head_dim, head_dim > 0, "a positive number")
        expect("kdim", kdim, kdim > 0, "a positive number or None")
        expect("num_kv_heads", num_kv_heads, num_kv_heads > 0 and num_heads % num_kv_heads == 0,
               f"a divisor of num_heads = {num_heads}")
        expect("rule", rule, rule in RULES, f"one of {', '.join(RULES)}")
        expect("dropout", dropout, 0 <= dropout < 1, "0 <= dropout < 1")
        self.embed_dim, self.num_heads, self.num_kv_heads = embed_dim, num_heads, num_kv_heads
        self.head_dim, self.kdim, self.rule = head_dim, kdim, rule
        gates = dict(f=num_heads * head_dim, g=num_heads * kdim) if rule == "decay" else dict(a=num_heads + -num_heads % 8)
        gates = {} if rule == "add" else gates
        self.rows = dict(q=num_heads * kdim, k=num_kv_heads * kdim, v=num_kv_heads * head_dim, **gates)
        gate_rows = sum(gates.values())
        self.project = Projection(embed_dim, sum(self.rows.values()), bias, gate_rows, self.rows["q"], kdim**-0.5)
        self.gate_bias = nn.Parameter(torch.empty(gate_rows if rule == "decay" else num_heads)) if gates else None
        self.out = nn.Linear(num_heads * head_dim, embed_dim, bias)
        self.dropout = nn.Dropout(dropout)
        self.reset_gates()

    @torch.no_grad()
    def reset_gates(self) -> None:
        """Uniform gate initialisation of the gates' biases."""
        if self.gate_bias is not None:
            least = 1 / max(self.embed_dim, 2)
            self.gate_bias.copy_(torch.empty_like(self.gate_bias, dtype=torch.float32).uniform_(least, 1 - least).logit())

    def extra_repr(self) -> str:
        return f"rule={self.rule!r}, num_heads={self.num_heads}, head_dim={self.head_dim}, kdim={self.kdim}"

    def zero_state(self, batch_size: int) -> Tensor:
        """The state before any token, [batch_size,H,D,K]."""
        weight = self.project.weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return torch.zeros(batch_size, self.num_heads, self.head_dim, self.kdim, dtype=dtype, device=weight.device)

    def forward(
        self, x: Tensor, state: Optional[Tensor] = None, padding_mask: Optional[Tensor] = None
    ) -> Tuple[Tensor, Tensor]:
        """x [B,T,embed_dim], the state after what came before x -> (y [B,T,embed_dim], the state after x).

        padding_mask [B,T], of bool or numbers, is zero where x is padding, anywhere in a sequence: such a token leaves the
        state as it was, and its y means nothing."""
        expect("x", list(x.shape), x.dim() == 3 and x.shape[2] == self.embed_dim, f"a shape [B,T,{self.embed_dim}]")
        if padding_mask is not None:
            expect("padding_mask", list(padding_mask.shape), padding_mask.shape == x.shape[:2],
                   f"a shape [B,T] = {list(x.shape[:2])}")
        v, f, q, k, g = self._operands(x, padding_mask)
        if x.shape[1] == 1:
            state = self.zero_state(x.shape[0]) if state is None else state
            v, f, q, k, g = (None if a is None else a.squeeze(1) for a in (v, f, q, k, g))
            if self.rule == "delta":
                y, state = t2fw.delta_step(q, k, v, state)
            else:
                y, state = t2fw.decay_step(v, f, q, k, g, state, gate_logits=self.rule == "decay")
            y = y.unsqueeze(1)
        elif self.rule == "delta":
            y, state = t2fw.delta(q, k, v, state)
        else:
            y, state = t2fw.decay(v, f, q, k, g, state, gate_logits=self.rule == "decay")
        return self.dropout(self.out(y.flatten(2))), state

    def step(self, x: Tensor, state: Tensor) -> Tuple[Tensor, Tensor]:
        """One token: x [B,embed_dim] and a state -> (y [B,embed_dim], the state after it); what forward makes of it."""
        y, state = self(x.unsqueeze(1), state)
        return y.squeeze(1), state

    def _operands(self, x: Tensor, padding_mask: Optional[Tensor]) -> Tuple[Optional[Tensor], ...]:
        """v, f, q, k, g as t2fw.decay and t2fw.delta take them; of rule decay, f and g are logits."""
        B, T, _ = x.shape
        widths = dict(q=self.kdim, k=self.kdim, v=self.head_dim, f=self.head_dim, g=self.kdim, a=1)
        results = self.project(x, self.gate_bias if self.rule == "decay" else None).split(list(self.rows.values()), 2)
        rows = {n: z.view(B, T, self.rows[n] // widths[n], widths[n]) for n, z in zip(self.rows, results)}
        q, k, v = (rows[n] for n in "qkv")
        if self.num_kv_heads != self.num_heads:
            k, v = (a.repeat_interleave(self.num_heads // self.num_kv_heads, 2) for a in (k, v))
        f, g, a = (rows.get(n) for n in "fga")
        if a is not None:
            a = (a[:, :, : self.num_heads] + self.gate_bias[:, None].to(torch.promote_types(a.dtype, torch.float32))).sigmoid()
        if self.rule == "gated":
            f, v = a, v * (1 - a).to(v.dtype)
        elif self.rule == "delta":  # (sqrt(a) v - S sqrt(a) k) (x) sqrt(a) k = a (v - S k) (x) k
            root = a.sqrt().to(v.dtype)
            k = F.normalize(k, dim=-1, eps=max(torch.finfo(k.dtype).tiny, 1e-12)) * root  # 1e-12 is zero in float16
            v = v * root
        if padding_mask is not None:
            padding = (padding_mask == 0)[:, :, None, None]
            k, v = k.masked_fill(padding, 0), v.masked_fill(padding, 0)
            f, g = (None if a is None else a.masked_fill(padding, torch.inf if self.rule == "decay" else 1) for a in (f, g))
        return v, f, q, k, g
