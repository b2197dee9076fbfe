"""Trains a byte-level language model whose layers mix with decaying fast weights, on the sources of Python's own library.

The exit status is 0 if the model predicts held-out files better than a bigram model of the same training bytes, and if
decoding token by token gives the logits of the parallel pass.
"""
import argparse
import math
import pathlib
import sysconfig
import time
from typing import Any, List, Tuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import t2fw

WIDTH, HEADS, SIZE, LAYERS, LENGTH, BATCH = 128, 4, 32, 2, 256, 16


class Mixer(nn.Module):
    """Projections to v, f, q, k, g, the decay rule, and a projection back. D = K = SIZE."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * HEADS * SIZE, bias=False)
        self.gates = nn.Linear(WIDTH, 2 * HEADS * SIZE)
        self.out = nn.Linear(HEADS * SIZE, WIDTH, bias=False)
        with torch.no_grad():  # the gates start at 0.9 (short memory) to 0.99 (long memory)
            start = torch.linspace(0.9, 0.99, HEADS * SIZE)
            self.gates.bias.copy_(torch.logit(start).repeat(2))
            self.gates.weight.mul_(0.1)

    def operands(self, x: Tensor) -> Tuple[Tensor, ...]:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, SIZE)).unbind(-3)
        f, g = self.gates(x).sigmoid().unflatten(-1, (2, HEADS, SIZE)).unbind(-3)
        return v, f, q, k * SIZE**-0.5, g

    def forward(self, x: Tensor) -> Tensor:
        y, _ = t2fw.decay(*self.operands(x))
        return self.out(y.flatten(-2))

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        y, _ = t2fw.decay_step(*self.operands(x), state, out_state=state)
        return self.out(y.flatten(-2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mixer = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), Mixer()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor, *state: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + (self.mixer.step(h, *state) if state else self.mixer(h))
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B,T] -> logits [B,T,256], all tokens at once."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def step(self, token: Tensor, states: List[Tensor]) -> Tensor:
        """[B] -> logits [B,256], one token; the states are updated in place."""
        x = self.embed(token)
        for block, state in zip(self.blocks, states):
            x = block(x, state)
        return self.head(x)

    def states(self) -> List[Tensor]:
        return [torch.zeros(1, HEADS, SIZE, SIZE) for _ in self.blocks]


def corpus() -> Tuple[Tensor, Tensor]:
    """The bytes of the training files, and of every tenth file, which is held out."""
    files = sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py"))
    held_out = files[5::10]
    parts = [f for f in files if f not in held_out], held_out
    train, valid = (torch.frombuffer(bytearray(b"".join(f.read_bytes() for f in part)), dtype=torch.uint8) for part in parts)
    return train.long(), valid.long()


def windows(data: Tensor, starts: Tensor) -> Tuple[Tensor, Tensor]:
    rows = data[starts[:, None] + torch.arange(LENGTH + 1)]
    return rows[:, :-1], rows[:, 1:]


def bigram_loss(train: Tensor, x: Tensor, y: Tensor) -> float:
    """Add-one smoothing, in nats per byte."""
    counts = 1 + torch.bincount(train[:-1] * 256 + train[1:], minlength=256 * 256).view(256, 256).double()
    return -(counts / counts.sum(1, keepdim=True)).log()[x, y].mean().item()


def loss_of(model: Model, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


@torch.no_grad()
def validate(model: Model, x: Tensor, y: Tensor) -> float:
    parts = zip(x.split(BATCH), y.split(BATCH))
    return sum(loss_of(model, a, b).item() * len(a) for a, b in parts) / len(x)


def train_model(model: Model, data: Tensor, x: Tensor, y: Tensor, args: Any) -> Tuple[List[float], List[Tuple[int, float]]]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, betas=(0.9, 0.98), weight_decay=0.01)
    warm = 20
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / warm, 0.55 + 0.45 * math.cos(math.pi * i / args.steps)))
    losses: List[float] = []
    validation: List[Tuple[int, float]] = []
    with tqdm(total=args.steps, unit="step", desc="training", mininterval=0.5) as bar:
        for i in range(args.steps + 1):
            if i % args.every == 0 or i == args.steps:
                validation.append((i, validate(model, x, y)))
                bar.write(f"step {i:4}: validation loss {validation[-1][1]:.3f}")
            if i == args.steps:
                break
            loss = loss_of(model, *windows(data, torch.randint(len(data) - LENGTH, (BATCH,))))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            bar.update()
    return losses, validation


@torch.no_grad()
def sample(model: Model, prompt: bytes, count: int) -> Tuple[bytes, float]:
    """The prompt and `count` bytes more, and the largest difference of their logits to those of the parallel pass."""
    states, tokens, rows = model.states(), list(prompt), []
    for i in range(len(prompt) + count - 1):
        rows.append(model.step(torch.tensor(tokens[i : i + 1]), states))
        if i + 1 == len(tokens):
            tokens.append(int(torch.multinomial(rows[-1][0].softmax(0), 1)))
    parallel = model(torch.tensor([tokens[:-1]]))[0]
    return bytes(tokens), (torch.cat(rows) - parallel).abs().max().item()


def plot(path: pathlib.Path, losses: List[float], validation: List[Tuple[int, float]], bigram: float) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(losses, color="tab:blue", alpha=0.4, linewidth=1, label="training")
    axes.plot(*zip(*validation), color="tab:blue", marker="o", label="validation")
    axes.axhline(bigram, color="tab:gray", linestyle="--", label="bigram, validation")
    axes.set(xlabel="step", ylabel="loss (nats per byte)", title="Decaying fast weights on Python's library sources")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=40, help="steps from one validation to the next")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--plot", type=pathlib.Path, default=pathlib.Path("demo.png"))
    args = parser.parse_args()

    start = time.monotonic()
    torch.manual_seed(1)
    data, held_out = corpus()
    x, y = windows(held_out, torch.linspace(0, len(held_out) - LENGTH - 1, 128).long())
    model, bigram = Model(), bigram_loss(data, x, y)
    print(f"{len(data)} bytes to train on, {len(held_out)} held out (validation: {y.numel()} of them); "
          f"{sum(p.numel() for p in model.parameters())} parameters; backends: {', '.join(t2fw.backends())}", flush=True)
    losses, validation = train_model(model, data, x, y, args)
    plot(args.plot, losses, validation, bigram)
    text, difference = sample(model, b"def ", 200)
    print(f"A sample, decoded token by token:\n{text.decode(errors='replace')}\n{'-' * 40}")
    final, same = validation[-1][1], difference <= 1e-3
    print(f"decoded and parallel logits differ by at most {difference:.1e}{'' if same else ': TOO MUCH'}")
    print(f"validation loss {final:.3f} nats per byte, bigram {bigram:.3f}{'' if final < bigram else ': NOT BELOW IT'}")
    print(f"{time.monotonic() - start:.0f} s; plot: {args.plot}")
    raise SystemExit(not (same and final < bigram))


if __name__ == "__main__":
    main()
