"""Seconds, floating-point operations and peak memory of a function, and a marked table in a document."""

import ctypes
import gc
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

STATUS, REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Cost:
    """What one call takes: the median of several in seconds, operations, and bytes above the start."""

    seconds: float
    flops: int
    peak: int | None


def costs(routes: dict[str, Callable[[], Any]], *, repeats: int) -> dict[str, Cost]:
    """Costs of several routes to one result, timed in turn, so that a slow minute hits them all.

    The peak is that of the CUDA device where there is one, else of the process (Linux; None elsewhere).
    """
    counted, peaks = {}, {}
    for name, run in routes.items():
        counted[name] = operations(run)
        peaks[name] = peak_of(run)
    seconds: dict[str, list[float]] = {name: [] for name in routes}
    for turn in range(repeats):
        # What ran before leaves its mark on caches and allocator: 7 % for whoever always comes second.
        for name, run in list(routes.items())[:: 1 if turn % 2 else -1]:
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: Cost(median(seconds[name]), counted[name], peaks[name]) for name in routes}


def operations(run: Callable[[], Any]) -> int:
    """Floating-point operations of a call, as torch counts them.

    Its counter knows matrix products and CUDA's fused attention, but not the CPU's: there attention is
    taken apart into its products while we count.
    """
    apart = nullcontext() if torch.cuda.is_available() else sdpa_kernel(SDPBackend.MATH)
    with apart, FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def peak_of(run: Callable[[], Any]) -> int | None:
    """Most bytes that a call holds above what was held before it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    return process_peak_of(run)


def process_peak_of(run: Callable[[], Any]) -> int | None:
    """Most bytes of the process that a call holds above what was held before it (Linux; None elsewhere)."""
    if not REFS.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # else a call may live on what an earlier one left
    REFS.write_text("5")  # the high-water mark starts again from what is resident
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def device_name() -> str:
    """The GPU, or how many threads of which CPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"


def stamp(command: str) -> str:
    """Date, device, versions and command of a measurement."""
    # torch names its build (+cpu, +cu130) in `__version__`; its metadata may leave the build out.
    names = ("transformers", "sentence-transformers")
    packages = {"torch": torch.__version__} | {name: version(name) for name in names}
    versions = ", ".join(f"{name} {number}" for name, number in packages.items())
    return f"{date.today()}, {device_name()}, {versions}:\n\n    {command}\n"


def replace_section(document: Path, name: str, text: str) -> None:
    """Put `text` between the marks of `name` in a document.

    Raises:
        ValueError: the document has no such marks.
    """
    first, last = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    whole = document.read_text("utf-8") if document.exists() else ""
    if first not in whole or last not in whole:
        raise ValueError(f"{document}: no section between {first.strip()} and {last}; add both marks")
    head, rest = whole.split(first, 1)
    document.write_text(head + first + text.strip("\n") + "\n" + last + rest.split(last, 1)[1], "utf-8")


def keep_table(
    document: Path | None, recipe: str, argv: Sequence[str] | None, text: str, *, section: str | None = None
) -> None:
    """Write a measurement, stamped with its command, into the recipe's section of a document, if one is given.

    Raises:
        ValueError: the document has no such section.
    """
    if document:
        command = f"python -m recipes.experiments.{recipe} " + " ".join(sys.argv[1:] if argv is None else argv)
        replace_section(document, section or recipe, stamp(command.strip()) + "\n" + text)
