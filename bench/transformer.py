"""Times a GPT-2 with decaying fast weights beside the same one with PyTorch's flash attention: training steps and generation.

Weights are random and no dropout is used. A training step is forward, loss, backward and AdamW on batches of a fixed number
of tokens, under autocast to bfloat16 with float32 weights, as one fine-tunes; generation is greedy, with bfloat16 weights.
Prints tables, and writes what it measured as JSON and as a plot over the length. README.md beside this file says more.
"""
import argparse
import contextlib
import gc
import importlib.util
import json
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
import transformers
from tabulate import tabulate
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from transformers import AttentionInterface, GPT2Config, GPT2LMHeadModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import t2fw
from t2fw.generation import generation_cost
from timing import MIB, machine_name, median_seconds

MODELS = ("attention", "decay")
Point = Dict[str, Any]

# transformers' own "sdpa" makes a mask under torch.compile, which the flash kernel does not take; this one is causal by flag
AttentionInterface.register("causal_sdpa", sdpa_attention_forward)


class Size(NamedTuple):
    width: int
    layers: int
    heads: int
    vocabulary: int
    step_tokens: int  # of a training step: sequences times their length
    train_lengths: Tuple[int, ...]
    lengths: Tuple[int, ...]  # of prompts
    decoded: int  # tokens after a prompt


SIZES = {
    "tiny": Size(32, 2, 2, 128, 256, (64, 128), (64, 256), 4),
    "small": Size(768, 12, 12, 50257, 16384, (1024, 2048, 4096, 16384), (1024, 4096, 16384, 65536), 32),
}


def make(name: str, size: Size, positions: int, device: str) -> Any:
    config = GPT2Config(
        vocab_size=size.vocabulary, n_embd=size.width, n_layer=size.layers, n_head=size.heads, n_positions=positions,
        bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="causal_sdpa")
    torch.manual_seed(0)
    with torch.device(device):
        model = GPT2LMHeadModel(config)
        model.loss_type = "ForCausalLM"  # else it takes this after a warning, which torch.compile cannot print
        return model if name == "attention" else t2fw.convert(model, name)


def random_tokens(size: Size, batch: int, length: int, device: str) -> Tensor:
    return torch.randint(size.vocabulary, (batch, length), device=device)


def reset_peak(device: str) -> None:
    """What is not in use any more goes, and the peak of memory in use starts again."""
    torch._dynamo.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: str) -> Optional[int]:
    return torch.cuda.max_memory_allocated() if device == "cuda" else None


def training(name: str, size: Size, device: str, length: int, compiled: bool) -> Point:
    reset_peak(device)
    model = make(name, size, length, device).train()
    call = torch.compile(model, fullgraph=True, dynamic=False) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device == "cuda")
    tokens = random_tokens(size, max(size.step_tokens // length, 1), length, device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = call(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = median_seconds(step, device)
    return dict(model=name, compiled=compiled, length=length, batch=len(tokens), step_ms=seconds * 1e3,
                tokens_per_second=tokens.numel() / seconds, peak_bytes=peak_bytes(device))


@torch.no_grad()
def graph_ms(model: Any, token: Tensor, cache: Any) -> Optional[float]:
    """Milliseconds of a token when a CUDA graph launches what decodes it: the GPU's own, none of Python's."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            model(token, cache=cache, use_cache=True)
    except RuntimeError as error:
        tqdm.write(f"no CUDA graph: {error}")
        return None
    return median_seconds(graph.replay, "cuda") * 1e3


def generation(name: str, size: Size, device: str, length: int, batch: int) -> Point:
    reset_peak(device)
    model = make(name, size, length + size.decoded + 1, device).to(torch.bfloat16).eval()
    prompt = random_tokens(size, batch, length, device)
    generation_cost(model, prompt, 2)  # not counted
    cost, token, cache = generation_cost(model, prompt, size.decoded)
    peak = peak_bytes(device)
    return dict(model=name, length=length, batch=batch, **cost._asdict(), peak_bytes=peak,
                graph_ms=graph_ms(model, token, cache) if device == "cuda" else None)


def measure(what: Callable[..., Point], cases: List[Tuple[Any, ...]], *common: Any) -> List[Point]:
    """Every case with every model; one that fails, for want of memory say, is left out and named."""
    points = []
    for case in tqdm(cases, desc=what.__name__):
        for name in MODELS:
            try:
                points.append(what(name, *common, *case))
            except Exception as error:
                tqdm.write(f"{what.__name__} of {case} with {name} is left out: {type(error).__name__}: {error}")
    return points


def compare(points: List[Point], value: str, case: Tuple[str, ...]) -> None:
    """Adds what attention takes over what this takes."""
    attention = {tuple(p[n] for n in case): p[value] for p in points if p["model"] == "attention"}
    for p in points:
        there = attention.get(tuple(p[n] for n in case))
        p["times_attention"] = there / p[value] if there else None


def print_tables(trained: List[Point], generated: List[Point]) -> None:
    def mib(n: Optional[int]) -> Optional[float]:
        return None if n is None else n / MIB

    if trained:
        print("\nA training step")
        rows = [[p["length"], p["batch"], "compiled" if p["compiled"] else "eager", p["model"], p["step_ms"],
                 p["tokens_per_second"] * 1e-3, mib(p["peak_bytes"]), p["times_attention"]] for p in trained]
        print(tabulate(rows, ["T", "batch", "mode", "model", "ms", "thousand tokens/s", "peak MiB",
                              "times as fast as attention"], floatfmt=("", "", "", "", ".2f", ".1f", ".0f", ".2f")))
    if generated:
        print("\nA generated token, eager; `graph` is the GPU's time alone")
        rows = [[p["length"], p["batch"], p["model"], p["prefill_ms"], p["token_ms"], p["graph_ms"], mib(p["cache_bytes"]),
                 mib(p["peak_bytes"]), p["times_attention"]] for p in generated]
        print(tabulate(rows, ["after", "batch", "model", "prefill ms", "token ms", "graph ms", "cache MiB", "peak MiB",
                              "times as fast as attention"],
                       floatfmt=("", "", "", ".2f", ".3f", ".3f", ".2f", ".0f", ".2f")))


def draw(trained: List[Point], generated: List[Point], title: str, path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plots = [plot for plot in (
        (trained, "compiled", lambda p: p["step_ms"], "training step, ms"),
        (generated, "batch", lambda p: p["graph_ms"] or p["token_ms"], "generated token, ms"),
        (generated, "batch", lambda p: p["cache_bytes"] / MIB, "cache or state, MiB"),
    ) if plot[0]]
    figure, panels = plt.subplots(1, len(plots), figsize=(5 * len(plots), 4.5), layout="constrained", squeeze=False)
    for panel, (points, mode, value, label) in zip(panels[0], plots):
        for color, name in enumerate(MODELS):
            for number, kind in enumerate(sorted({p[mode] for p in points})):
                line = [(p["length"], value(p)) for p in points if p["model"] == name and p[mode] == kind]
                if line:
                    panel.plot(*zip(*sorted(line)), ("-", "--", ":", "-.")[number % 4], color=f"C{color}", marker="o",
                               label=f"{name}, {mode}: {kind}")
        panel.set_xscale("log", base=2)
        panel.set(yscale="log", xlabel="tokens", ylabel=label)
        panel.legend(fontsize="small")
        panel.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=SIZES, help="small: GPT-2 small; default: tiny on the CPU, small on a GPU")
    parser.add_argument("--train-lengths", type=int, nargs="*", metavar="T", help="tokens of a sequence in training")
    parser.add_argument("--lengths", type=int, nargs="*", metavar="T", help="tokens of a prompt")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="sequences in generation")
    parser.add_argument("--compile", action="store_true", help="train with torch.compile too, without graph breaks")
    parser.add_argument("--out", default="transformer", help="writes OUT.json and OUT.png")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    size = SIZES[args.size or ("tiny" if args.device == "cpu" else "small")]
    train_lengths = size.train_lengths if args.train_lengths is None else args.train_lengths
    lengths = size.lengths if args.lengths is None else args.lengths
    title = f"{machine_name(args.device)}; GPT-2, {size.layers} layers of {size.width}"
    print(f"{title}; PyTorch {torch.__version__}, transformers {transformers.__version__}; backends: "
          f"{', '.join(t2fw.backends())}")

    modes = (False, True) if args.compile else (False,)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if args.device == "cuda" else contextlib.nullcontext():
        trained = measure(training, [(n, c) for c in modes for n in train_lengths], size, args.device)
        generated = measure(generation, [(n, b) for b in args.batch for n in lengths], size, args.device)
    compare(trained, "step_ms", ("compiled", "length"))
    compare(generated, "token_ms", ("batch", "length"))
    print_tables(trained, generated)
    with open(args.out + ".json", "w") as file:
        json.dump({"machine": title, "torch": torch.__version__, "transformers": transformers.__version__,
                   "t2fw": t2fw.__version__, "training": trained, "generation": generated}, file, indent=1)
    if importlib.util.find_spec("matplotlib") is None:
        print("no plot is drawn: matplotlib is not installed")
    elif trained or generated:
        draw(trained, generated, title, args.out + ".png")


if __name__ == "__main__":
    main()
