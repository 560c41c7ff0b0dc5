"""Stop at the next update, with a checkpoint, when the system or the user asks for it."""

import signal
import threading
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

ASKING = (signal.SIGTERM, signal.SIGINT)


class StopOnSignal(TrainerCallback):
    """SIGTERM or SIGINT: finish the update, save, stop; a second one ends at once, as without this.

    A signal may reach one process only, or each at another update: all agree after every update, so
    that they save the same one.

    Attributes:
        signal: what stopped the run; None: nothing did.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._asked: int = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {number: signal.signal(number, self._note) for number in ASKING}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = number
        signal.signal(number, self._before[number])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop where any process was asked to."""
        asked = self._asked
        if args.world_size > 1:
            most = torch.tensor(asked, device=args.device)
            torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
            asked = int(most)
        if asked:
            self.signal = signal.Signals(asked)
            control.should_save = control.should_training_stop = True
