"""Two processes over gloo, forked: they start in no time, and one that hangs fails the test."""

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

CONFIGS = Path(__file__).parents[1] / "recipes" / "configs"
PATIENCE = 600  # seconds, on a machine that does much else


def environment(config: str | None) -> dict[str, str]:
    """What `accelerate launch --cpu --config_file` tells its processes."""
    told = {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    settings = yaml.safe_load((CONFIGS / config).read_text())
    if settings["distributed_type"] == "FSDP":
        told["ACCELERATE_USE_FSDP"] = "true"
        told |= {key.upper(): str(value) for key, value in settings["fsdp_config"].items()}
    return told


def _child(rank: int, size: int, port: int, config: str, work: Callable, given: tuple, answers: Any) -> None:
    from accelerate.state import AcceleratorState, GradientState

    os.environ |= environment(config)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(size), "MASTER_PORT": str(port)}
    torch.set_num_threads(1)  # the parent's threads did not come along
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    try:
        answers.put((rank, True, work(rank, *given)))
    except BaseException as error:
        answers.put((rank, False, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
    answers.close()
    answers.join_thread()
    os._exit(0)


def together(config: str, work: Callable, *given: Any, size: int = 2) -> list[Any]:
    """What `work(rank, *given)` returns in each of the processes; a process that fails or hangs ends all."""
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [
        fork.Process(target=_child, args=(rank, size, port, config, work, given, answers), daemon=True)
        for rank in range(size)
    ]
    for child in children:
        child.start()
    found: dict[int, Any] = {}
    until = time.monotonic() + PATIENCE
    try:
        while len(found) < size:
            rank, fine, answer = answers.get(timeout=max(until - time.monotonic(), 1))
            assert fine, f"process {rank}: {answer}"
            found[rank] = answer
    finally:
        for child in children:
            if len(found) == size:
                child.join(30)
            child.kill()
    return [found[rank] for rank in range(size)]


def apart(work: Callable, *given: Any) -> multiprocessing.Process:
    """`work(*given)` in a forked process of one thread, running; to be killed, or joined."""

    def run() -> None:
        torch.set_num_threads(1)
        work(*given)
        os._exit(0)

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    return child
