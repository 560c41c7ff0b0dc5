"""Callbacks of the trainer: stop on a signal, resume correctly, set the epoch of every sampler."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopOnSignal(TrainerCallback):
    """On SIGTERM or SIGINT, finish the update, save a checkpoint and stop. A second signal ends the run at once.

    A signal may reach one process only, or several processes at different updates. They agree after every
    update, so that all save the same one. transformers' `enable_jit_checkpoint` handles SIGTERM only, and its
    ranks do not agree.

    Attributes:
        signal: the signal that stopped the run, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._received: int = 0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        signal.signal(number, self._handlers[number])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop if any process has received a signal."""
        received = self._received
        if args.world_size > 1:
            largest = torch.tensor(received, device=args.device)
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
            received = int(largest)
        if received:
            self.signal = signal.Signals(received)
            control.should_save = control.should_training_stop = True


class ApplyNewIntervals(TrainerCallback):
    """Use the requested logging and saving intervals in a resumed run, and start the trainer's statistics.

    transformers takes the intervals from the state of the stopped run.
    """

    def __init__(self, reset_statistics: Callable[[], None]) -> None:
        self.reset_statistics = reset_statistics

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Run before the first update."""
        state.compute_steps(args, state.max_steps)
        self.reset_statistics()


class SetSamplerEpoch(TrainerCallback):
    """Set the epoch of every sampler behind the data loader.

    In a resumed run with several processes, transformers looks two wrappers deep, and a third one hides the
    sampler: the rows of a later epoch would come in the order of the first one.
    """

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Run before transformers sets the epoch."""
        wrapped = [train_dataloader]
        while wrapped:
            sampler = wrapped.pop()
            if sampler is not train_dataloader and hasattr(sampler, "set_epoch"):
                sampler.set_epoch(int(state.epoch or 0))
            inner = (getattr(sampler, name, None) for name in ("batch_sampler", "sampler"))
            wrapped += [part for part in inner if part is not None]
