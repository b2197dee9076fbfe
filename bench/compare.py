"""Times t2fw.decay beside PyTorch's attention, the TorchScript loop and other libraries. README.md beside this file says how.

Prints a table, and writes what it measured as JSON and as a plot of time and memory over T.
"""
import argparse
import concurrent.futures
import importlib.util
import json
import multiprocessing
import os
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

import t2fw
from contenders import CONTENDERS, Contender, Operands
from timing import MIB, WARM_UP, machine_name, median_seconds

FLUSH = 2048 * MIB  # half a millisecond of a GPU's, in which Python launches what is timed behind it
PASSES = {False: "forward", True: "forward+backward"}


class Shape(NamedTuple):
    B: int
    T: int
    H: int
    D: int
    K: int


class Kind(NamedTuple):
    device: str
    dtype: torch.dtype
    gate_dtype: torch.dtype
    gate_bias: float  # a gate is the sigmoid of a normal number around it


def operands(shape: Shape, kind: Kind) -> Operands:
    B, T, H, D, K = shape
    x = {n: torch.randn(B, T, H, D if n in "vf" else K, device=kind.device) for n in "vfqkg"}
    x["k"].mul_(K**-0.5)
    for n in "fg":
        x[n].add_(kind.gate_bias).sigmoid_()
    return {n: a.to(kind.gate_dtype if n in "fg" else kind.dtype) for n, a in x.items()}


def floor_bytes(shape: Shape, kind: Kind, backward: bool) -> int:
    """v f q k g read and y written; with backward, v f q k g d_y read and d_v d_f d_q d_k d_g written."""
    B, T, H, D, K = shape
    data, gates = 2 * (D + K), D + K
    if backward:
        data, gates = data + 3 * D + 4 * K, 3 * gates
    return B * T * H * (data * kind.dtype.itemsize + gates * kind.gate_dtype.itemsize)


def prepare(name: str, shape: Shape, kind: Kind, backward: bool) -> Callable[[], Any]:
    call, inputs = CONTENDERS[name].prepare(operands(shape, kind))
    if not backward:
        return torch.no_grad()(lambda: call(*inputs))
    with torch.no_grad():
        d_y = torch.randn_like(call(*inputs))
    inputs = [a.detach().requires_grad_() for a in inputs]
    return lambda: torch.autograd.grad(call(*inputs), inputs, d_y)


def copy_rate(device: str, flush: Optional[Tensor]) -> float:
    """Bytes read and written a second by a large copy."""
    source = torch.ones((128 if device == "cpu" else 1024) * MIB, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * source.numel() / median_seconds(lambda: target.copy_(source), device, flush)


def resident(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":"))


def peak_of_process(name: str, shape: Shape, kind: Kind, backward: bool) -> int:
    """How far this process' resident memory rises, from before the inputs exist, in one call."""
    for _ in range(WARM_UP):
        prepare(name, shape._replace(T=min(shape.T, 32)), kind, backward)()
    before = resident("VmRSS")
    run = prepare(name, shape, kind, backward)
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # the peak VmHWM starts again from here
    run()
    return resident("VmHWM") - before


def cpu_peak(*point: Any) -> int:
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # read when the child starts: what it frees goes back at once
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as child:
        return child.submit(peak_of_process, *point).result()


def measure(name: str, shape: Shape, kind: Kind, backward: bool, flush: Optional[Tensor]) -> Dict[str, Any]:
    before = torch.cuda.memory_allocated() if kind.device == "cuda" else 0
    run = prepare(name, shape, kind, backward)
    seconds = median_seconds(run, kind.device, flush)
    if kind.device == "cpu":
        del run
        peak = cpu_peak(name, shape, kind, backward)
    else:
        torch.cuda.reset_peak_memory_stats()
        run()
        peak = torch.cuda.max_memory_allocated() - before
    return {**shape._asdict(), "contender": name, "pass": PASSES[backward], "seconds": seconds, "peak_bytes": peak,
            "floor_bytes": floor_bytes(shape, kind, backward)}


def disagreement(contender: Contender, shape: Shape, kind: Kind) -> float:
    """The largest difference from t2fw with the same gates, relative to the largest value."""
    if contender.gates is None:
        return 0.0
    x = operands(shape._replace(T=min(shape.T, 128)), kind)
    call, inputs = contender.prepare(x)
    gates = {n: x[n] if n in contender.gates else None for n in "fg"}
    with torch.no_grad():
        expected = t2fw.decay(x["v"], gates["f"], x["q"], x["k"], gates["g"])[0].double()
        return ((call(*inputs).double() - expected).abs().max() / expected.abs().max()).item()


def reason_to_leave_out(contender: Contender, shape: Shape, kind: Kind) -> Optional[str]:
    if importlib.util.find_spec(contender.module) is None:
        return f"{contender.module} is not installed"
    if contender.gpu_only and kind.device == "cpu":
        return "it needs a GPU"
    try:
        error = disagreement(contender, shape, kind)
    except Exception as failure:  # of whatever library; the others go on
        return f"{type(failure).__name__}: {failure}"
    return None if error < 0.05 else f"it differs from t2fw by {error:.2g} of the largest value"


def measure_all(names: List[str], shapes: List[Shape], kind: Kind, limit: float, flush: Optional[Tensor],
                keep: Callable[[List[Dict[str, Any]]], None]) -> List[Dict[str, Any]]:
    """keep: is called with all points after each, so that a run that is cut short has not been for nothing."""
    points: List[Dict[str, Any]] = []
    last: Dict[Any, Dict[str, Any]] = {}  # the same contender, pass and shape but for T
    reasons = {name: reason_to_leave_out(CONTENDERS[name], shapes[0], kind) for name in names}
    for name in filter(reasons.get, reasons):
        print(f"{name} is left out: {reasons[name]}")
    todo = [(s, n, b) for s in shapes for n in reasons if reasons[n] is None for b in PASSES]
    for shape, name, backward in tqdm(todo):
        line = (name, backward, shape._replace(T=0))
        where = f"{name}, {PASSES[backward]}, {tuple(shape)}"
        if line in last and last[line]["seconds"] * (shape.T / last[line]["T"]) ** 2 > limit:
            tqdm.write(f"{where} is left out: a call may take over {limit:g} s")
            continue
        try:
            points.append(measure(name, shape, kind, backward, flush))
        except Exception as error:
            tqdm.write(f"{where} is left out: {type(error).__name__}: {error}")
            continue
        last[line] = points[-1]
        keep(points)
    return points


def complete(points: List[Dict[str, Any]], copied: float) -> None:
    """Adds what follows from what was measured."""
    def case(p: Dict[str, Any]) -> Tuple[Any, ...]:
        return (*(p[n] for n in Shape._fields), p["pass"])

    ours = {case(p): p["seconds"] for p in points if p["contender"] == next(iter(CONTENDERS))}
    for p in points:
        rate = p["floor_bytes"] / p["seconds"]
        p["ns_token_head"] = p["seconds"] * 1e9 / (p["B"] * p["T"] * p["H"])
        p["GB_s"] = rate * 1e-9
        p["copy_percent"] = 100 * rate / copied
        p["times_t2fw"] = p["seconds"] / ours[case(p)] if case(p) in ours else None


def print_table(points: List[Dict[str, Any]]) -> None:
    points = sorted(points, key=lambda p: (p["B"], p["H"], p["D"], p["K"], p["pass"], p["T"]))
    rows = [[",".join(str(p[n]) for n in Shape._fields), p["pass"], p["contender"], p["seconds"] * 1e3, p["ns_token_head"],
             p["GB_s"], p["copy_percent"], p["peak_bytes"] / MIB, p["times_t2fw"]] for p in points]
    heads = ["B,T,H,D,K", "pass", "contender", "ms", "ns/token/head", "GB/s", "% of copy", "peak MiB", "time / t2fw"]
    print(tabulate(rows, heads, floatfmt=("", "", "", ".3f", ".1f", ".2f", ".2f", ".1f", ".2f")))


def draw(points: List[Dict[str, Any]], title: str, path: str) -> None:
    import matplotlib  # here, so that the children that measure memory start sooner

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    groups = list(dict.fromkeys((p["B"], p["H"], p["D"], p["K"]) for p in points))
    for panel, value, label in ((panels[0], lambda p: p["seconds"] * 1e3, "milliseconds"),
                                (panels[1], lambda p: p["peak_bytes"] / MIB, "peak memory, MiB")):
        for color, name in enumerate(CONTENDERS):
            for style, passed in zip(("-", "--"), PASSES.values()):
                for number, group in enumerate(groups):
                    line = sorted((p["T"], value(p)) for p in points if p["contender"] == name and p["pass"] == passed
                                  and (p["B"], p["H"], p["D"], p["K"]) == group)
                    shape = "" if len(groups) == 1 else " B=%d H=%d D=%d K=%d" % group
                    if line:
                        panel.plot(*zip(*line), style, color=f"C{color}", marker="osD^vP*X"[number % 8],
                                   label=f"{name}, {passed}{shape}")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xlabel("T")
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize="small")
    figure.suptitle(title if len(groups) > 1 else title + "; B=%d H=%d D=%d K=%d" % groups[0])
    figure.savefig(path, dpi=150)


def main() -> None:
    dtypes = {n: getattr(torch, n) for n in ("float64", "float32", "float16", "bfloat16")}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shapes", nargs="+", metavar="B,T,H,D,K", help="default: 1,T,16,64,64 over a range of T")
    parser.add_argument("--dtype", choices=dtypes, default="float32")
    parser.add_argument("--gate-dtype", choices=dtypes, help="default: --dtype, float32 beside 16 bits")
    parser.add_argument("--gate-bias", type=float, default=2.0, metavar="X",
                        help="a gate is the sigmoid of a normal number around X; default: 2, about 0.85")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME",
                        help="default: all, " + "; ".join(CONTENDERS))
    parser.add_argument("--limit", type=float, default=3.0, help="seconds; a call that may take longer is left out")
    parser.add_argument("--out", default="compare", help="writes OUT.json and OUT.png")
    args = parser.parse_args()
    dtype = dtypes[args.dtype]
    gate_dtype = dtypes[args.gate_dtype] if args.gate_dtype else torch.promote_types(dtype, torch.float32)
    kind = Kind(args.device, dtype, gate_dtype, args.gate_bias)
    lengths = [2**i for i in (range(7, 13) if args.device == "cpu" else range(8, 17))]
    shapes = [Shape(*map(int, s.split(","))) for s in args.shapes or [f"1,{T},16,64,64" for T in lengths]]

    flush = None if args.device == "cpu" else torch.empty(FLUSH, dtype=torch.uint8, device="cuda")
    gates = f"{str(gate_dtype).removeprefix('torch.')} around sigmoid({args.gate_bias:g})"
    title = f"{machine_name(args.device)}; {args.dtype}, gates {gates}"
    copied = copy_rate(args.device, flush)
    print(f"{title}; PyTorch {torch.__version__}; a copy reads and writes {copied * 1e-9:.1f} GB/s")

    def keep(points: List[Dict[str, Any]]) -> None:
        complete(points, copied)
        with open(args.out + ".json", "w") as file:
            json.dump({"machine": title, "torch": torch.__version__, "t2fw": t2fw.__version__, "copy_GB_s": copied * 1e-9,
                       "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"), "points": points}, file, indent=1)

    points = measure_all(args.contenders, shapes, kind, args.limit, flush, keep)
    if not points:
        raise SystemExit("nothing was measured")
    print_table(points)
    draw(points, title, args.out + ".png")


if __name__ == "__main__":
    main()
