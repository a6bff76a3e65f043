"""What this machine has: memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes, on macOS bytes
    return most if sys.platform == "darwin" else most * 1024


def free_memory(device: torch.device) -> int:
    """Return the bytes of memory that are free on a device; where a system does not say, half of what it has."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        kib = next(line.split()[1] for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
        return int(kib) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
