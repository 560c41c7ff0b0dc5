"""Programs that are killed (SIGKILL), at random or before every step on the disk."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

# What changes a disk, as Python's audit events call it.
STEPS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "open")


def killed_before(step: int, work: Callable[[], object]) -> bool:
    """Whether `work()`, in a forked process, was killed before its step of that number: else it ended."""

    def run() -> None:
        left = step

        def hook(event: str, args: tuple) -> None:
            nonlocal left
            # Opening to read changes nothing.
            if event in STEPS and not (event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR)):
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

        sys.addaudithook(hook)
        work()
        os._exit(0)

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join(60)
    assert child.exitcode in (0, -signal.SIGKILL), child.exitcode
    return child.exitcode != 0


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
