"""How the benchmarks take times."""
import statistics
import time
from typing import Any, Callable, List, Optional

import torch
from torch import Tensor

WARM_UP = 5  # TorchScript compiles in its first, second and fourth call
FEWEST, MOST, ENOUGH_SECONDS = 3, 25, 2.0  # timed calls
MIB = 2**20


def machine_name(device: str) -> str:
    return f"CPU, {torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name()


def time_once(run: Callable[[], Any], device: str, flush: Optional[Tensor] = None) -> float:
    """Seconds; on a GPU by events, after `flush`, if any, was written: what the last call left in the L2 cache goes."""
    if device == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    if flush is not None:
        flush.zero_()
    events[0].record()
    run()
    events[1].record()
    events[1].synchronize()
    return events[0].elapsed_time(events[1]) * 1e-3


def median_seconds(run: Callable[[], Any], device: str, flush: Optional[Tensor] = None) -> float:
    for _ in range(WARM_UP):
        time_once(run, device, flush)
    times: List[float] = []
    while len(times) < FEWEST or (len(times) < MOST and sum(times) < ENOUGH_SECONDS):
        times.append(time_once(run, device, flush))
    return statistics.median(times)
