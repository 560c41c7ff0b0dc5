"""Check that the installed transformers and peft work together."""

from importlib.metadata import PackageNotFoundError, version

import transformers
from packaging.version import Version
from transformers.integrations import peft as integration

# As in pyproject.toml, extra `train`.
PAIR = '"transformers>=5.23,<5.24" "peft>=0.21.2"'


def check_peft(what: str) -> None:
    """Check that transformers and peft can add, load and save adapters together.

    transformers does not require peft, so pip installs pairs that do not work: transformers 5.24.0 requires peft 0.22
    for every adapter call, and peft 0.21.2 is the newest release (2026-11). peft alone merges adapters, so merging
    needs no check.

    Args:
        what: the caller, which starts the message.

    Raises:
        ValueError: peft is missing, or older than the installed transformers requires.

    >>> check_peft("an adapter")
    """
    fix = f"run: pip install {PAIR}"
    try:
        installed = version("peft")
    except PackageNotFoundError:
        raise ValueError(f"{what} needs peft; {fix}") from None
    # An undocumented constant of transformers.
    required = getattr(integration, "MIN_PEFT_VERSION", "0")
    if Version(installed) < Version(required):
        raise ValueError(
            f"{what}: transformers {transformers.__version__} needs peft {required} or later, and peft {installed} "
            f"is installed; {fix}"
        )
