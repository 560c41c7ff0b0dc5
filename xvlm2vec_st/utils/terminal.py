"""What a command prints: its own lines, one bar per step, and a table."""

import logging
import sys

from huggingface_hub.utils import enable_progress_bars
from transformers.utils import logging as transformers_logging

LIBRARIES = (
    "accelerate",
    "datasets",
    "huggingface_hub",
    "mteb",
    "peft",
    "py.warnings",
    "sentence_transformers",
)


def quiet_libraries(*, bars: bool = False) -> None:
    """Keep the libraries' warnings off the terminal, and the bars of files that they load and save.

    Bars of downloads stay. For a command line, whose `--debug` leaves this out; nothing that is
    imported calls it.

    Args:
        bars: keep all bars.

    >>> quiet_libraries()
    """
    logging.captureWarnings(True)
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    if bars:
        return
    transformers_logging.disable_progress_bar()
    enable_progress_bars()  # the line above turns off those of downloads too
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()
