"""Keep the libraries' output off the terminal of a command."""

import logging
import sys

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
    """Hide the libraries' warnings, and their progress bars for loading and saving files.

    Bars of downloads stay. Commands call this unless --debug is passed; importing the package does not.

    Args:
        bars: keep all progress bars.

    >>> quiet_libraries()
    """
    # Imported here, because --help and refusals need none of them.
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    logging.captureWarnings(True)
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    if bars:
        return
    transformers_logging.disable_progress_bar()
    enable_progress_bars()  # the line above also disables those of downloads
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()
