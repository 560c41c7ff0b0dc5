"""Programs that are killed (SIGKILL), at a random time or before a step on the disk."""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from processes import PATIENCE

fork = multiprocessing.get_context("fork")
# What changes a disk, as Python's audit events call it.
STEPS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "open")
REFUSED, FAILED = 2, 1


def start(work: Callable[[], object], *, kill_before: int = -1, log: Path | None = None) -> tuple[Any, Any]:
    """(a forked process that does `work`, the number of its steps on the disk so far)."""
    steps = fork.Value("q", 0)

    def run() -> None:
        os.setsid()  # what it starts is killed with it
        torch.set_num_threads(1)  # the parent's threads did not come along
        if log is not None:
            sys.stdout = sys.stderr = log.open("a", buffering=1)
            os.dup2(sys.stdout.fileno(), 1)
            os.dup2(sys.stdout.fileno(), 2)

        def hook(event: str, args: tuple) -> None:
            # Opening to read changes nothing.
            if event in STEPS and not (event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR)):
                if steps.value == kill_before:
                    os.killpg(0, signal.SIGKILL)
                steps.value += 1

        sys.addaudithook(hook)
        try:
            work()
        except ValueError as error:
            sys.stderr.write(f"error: {error}\n")
            sys.stderr.flush()
            os._exit(REFUSED)
        except BaseException:
            traceback.print_exc()
            os._exit(FAILED)
        os._exit(0)

    child = fork.Process(target=run)
    child.start()
    return child, steps


def killed_before(step: int, work: Callable[[], object], log: Path | None = None) -> bool:
    """Whether `work()`, in a process of its own, was killed before its step of that number: else it ended."""
    child, _ = start(work, kill_before=step, log=log)
    child.join(PATIENCE)
    assert child.exitcode in (0, REFUSED, -signal.SIGKILL), child.exitcode
    return child.exitcode == -signal.SIGKILL


def killed_after(seconds: float, work: Callable[[], object], log: Path | None = None) -> bool:
    """Whether `work()`, in a process of its own, was killed after that time: else it ended before."""
    child, _ = start(work, log=log)
    child.join(seconds)
    running = child.exitcode is None
    if running:
        # The child may not have made its own process group yet.
        os.killpg(child.pid, signal.SIGKILL) if os.getpgid(child.pid) == child.pid else child.kill()
        child.join()
    return running


def to_the_end(work: Callable[[], object], log: Path | None = None) -> tuple[int, float, int]:
    """(exit status, seconds, steps on the disk) of `work()` in a process of its own."""
    began = time.monotonic()
    child, steps = start(work, log=log)
    child.join(PATIENCE)
    assert child.exitcode is not None, "it hangs"
    return child.exitcode, time.monotonic() - began, steps.value


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too; links and empty folders by their names."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}".encode()
        elif path.is_file():
            found[name] = path.read_bytes()
        elif not any(path.iterdir()):
            found[f"{name}/"] = b""
    return found
