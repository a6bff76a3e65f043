"""What every benchmark needs: the machine, its matmul rate, peak memory, and one place for results."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lke_lightning.results import versions, write

RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Measured:
    """What one call cost."""

    value: Any
    """What it returned."""
    seconds: float
    peak_mib: float
    """Memory on top of what was held before the call."""


def device() -> torch.device:
    """Return the GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def measure(call: Callable[[], Any]) -> Measured:
    """Run something once; measure its wall time and peak memory."""
    on_gpu = torch.cuda.is_available()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # so that memory freed before is not counted as held
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = torch.cuda.memory_allocated() if on_gpu else _resident()
    peak, done = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, _resident())

    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    watcher = threading.Thread(target=watch, daemon=True)
    if not on_gpu:
        watcher.start()
    start = time.perf_counter()
    try:
        value = call()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    finally:
        done.set()
    peak = torch.cuda.max_memory_allocated() if on_gpu else max(peak, _resident())
    return Measured(value, seconds, (peak - before) / 2**20)


def alternate(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Measured]:
    """Run several things in turns, so that all meet the same machine; return the fastest of each."""
    best: dict[str, Measured] = {}
    for _ in range(repeats):
        for name, call in calls.items():
            measured = measure(call)
            if name not in best or measured.seconds < best[name].seconds:
                best[name] = measured
    return best


def matmul_rate(dtype: torch.dtype) -> float:
    """Measure the rate of a large matmul, in FLOP/s."""
    size = 8192 if torch.cuda.is_available() else 2048
    a = torch.randn(size, size, device=device()).to(dtype)
    seconds = min(measure(lambda: a @ a).seconds for _ in range(4))
    return 2 * size**3 / seconds


def report(name: str, result: dict[str, Any]) -> None:
    """Print a result as one JSON line and put it, with its provenance, into results/benchmark-NAME-DEVICE.json."""
    where = device().type
    line = {
        "benchmark": name,
        "command": " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        **result,
        "machine": machine(),
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(line))
    write(RESULTS / f"benchmark-{name}-{where}.json", json.dumps(line, indent=1) + "\n")


def machine() -> str:
    """Name the processor or the GPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), "")
    threads = torch.get_num_threads()
    return f"{model.partition(': ')[2] or platform.processor()}, {threads} thread{'s' * (threads > 1)}"


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
