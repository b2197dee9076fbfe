"""The recurrences and their gradients as float64 token loops in NumPy: shares nothing with the library."""
import numpy as np


def decay(v, f, q, k, g, state=None, d_y=None, d_final=None):
    """-> y, final_state, and with d_y a dict of gradients"""
    v, q, k = (np.asarray(a, np.float64) for a in (v, q, k))
    B, T, H, D = v.shape
    K = k.shape[3]
    F = np.ones(v.shape) if f is None else np.broadcast_to(np.asarray(f, np.float64), v.shape)
    G = np.ones(k.shape) if g is None else np.broadcast_to(np.asarray(g, np.float64), k.shape)
    states = [np.zeros((B, H, D, K)) if state is None else np.asarray(state, np.float64)]
    y = np.zeros(v.shape)
    for t in range(T):
        S = F[:, t, :, :, None] * G[:, t, :, None, :] * states[-1] + v[:, t, :, :, None] * k[:, t, :, None, :]
        y[:, t] = np.einsum("bhdk,bhk->bhd", S, q[:, t])
        states.append(S)
    if d_y is None:
        return y, states[-1]
    d_y = np.asarray(d_y, np.float64)
    dS = np.zeros_like(states[0]) if d_final is None else np.asarray(d_final, np.float64)
    d = {n: np.zeros(s) for n, s in (("v", v.shape), ("f", v.shape), ("q", k.shape), ("k", k.shape), ("g", k.shape))}
    for t in reversed(range(T)):
        dS = dS + d_y[:, t, :, :, None] * q[:, t, :, None, :]
        d["q"][:, t] = np.einsum("bhdk,bhd->bhk", states[t + 1], d_y[:, t])
        d["v"][:, t] = np.einsum("bhdk,bhk->bhd", dS, k[:, t])
        d["k"][:, t] = np.einsum("bhdk,bhd->bhk", dS, v[:, t])
        d["f"][:, t] = np.einsum("bhdk,bhdk,bhk->bhd", dS, states[t], G[:, t])
        d["g"][:, t] = np.einsum("bhdk,bhdk,bhd->bhk", dS, states[t], F[:, t])
        dS = F[:, t, :, :, None] * G[:, t, :, None, :] * dS
    for n, a in (("f", f), ("g", g)):
        if a is None:
            d[n] = None
        elif np.shape(a)[3] == 1:
            d[n] = d[n].sum(3, keepdims=True)
    d["initial_state"] = dS
    return y, states[-1], d


def delta(q, k, v, state=None, d_y=None, d_final=None):
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    B, T, H, D = v.shape
    K = k.shape[3]
    states = [np.zeros((B, H, D, K)) if state is None else np.asarray(state, np.float64)]
    y, u = np.zeros(v.shape), np.zeros(v.shape)
    for t in range(T):
        S = states[-1]
        y[:, t] = np.einsum("bhdk,bhk->bhd", S, q[:, t])
        u[:, t] = v[:, t] - np.einsum("bhdk,bhk->bhd", S, k[:, t])
        states.append(S + u[:, t, :, :, None] * k[:, t, :, None, :])
    if d_y is None:
        return y, states[-1]
    d_y = np.asarray(d_y, np.float64)
    dS = np.zeros_like(states[0]) if d_final is None else np.asarray(d_final, np.float64)
    d = {"v": np.zeros(v.shape), "q": np.zeros(q.shape), "k": np.zeros(k.shape)}
    for t in reversed(range(T)):
        S = states[t]
        du = np.einsum("bhdk,bhk->bhd", dS, k[:, t])
        d["v"][:, t] = du
        d["k"][:, t] = np.einsum("bhdk,bhd->bhk", dS, u[:, t]) - np.einsum("bhdk,bhd->bhk", S, du)
        d["q"][:, t] = np.einsum("bhdk,bhd->bhk", S, d_y[:, t])
        dS = dS + d_y[:, t, :, :, None] * q[:, t, :, None, :] - du[:, :, :, None] * k[:, t, :, None, :]
    d["initial_state"] = dS
    return y, states[-1], d
