"""Run one workload in this process, with the library that PYTHONPATH names; prints seconds, peak and digest.

`bench_versions` starts it as a file, so that it does not import the version of the source that it lies in.
"""

import importlib.util
import json
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any


class PeakMemory(threading.Thread):
    """Samples the memory of this process and its children, every 5 ms. Bytes; Linux."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.ended = 0, threading.Event()

    def run(self) -> None:
        """Sample until `ended` is set."""
        while not self.ended.wait(0.005):
            self.peak = max(self.peak, resident())


def resident() -> int:
    """Resident bytes of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def digest_of(workload: Any, result: Any) -> str:
    """The digest of a workload's result. A workload whose digest takes long has a function for it: it is not timed."""
    return workload.digest(result) if hasattr(workload, "digest") else result


def main(file: Path, folder: Path) -> None:
    """Import the workload, run it, print one line of JSON."""
    spec = importlib.util.spec_from_file_location("workload", file)
    workload = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(workload)
    before = resident()
    memory = PeakMemory()
    memory.start()
    start = time.perf_counter()
    result = workload.run(folder)
    seconds = time.perf_counter() - start
    memory.ended.set()
    memory.join()
    digest = digest_of(workload, result)
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    peak = max(memory.peak - before, children)
    print(json.dumps({"seconds": seconds, "peak": peak, "digest": digest}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
