"""Whether the installed transformers and peft work together."""

from importlib.metadata import PackageNotFoundError, version

import transformers
from packaging.version import Version
from transformers.integrations import peft as integration

# What pyproject.toml asks for in the extra `train`.
PAIR = '"transformers>=5.23,<5.24" "peft>=0.21.2"'


def check_peft(what: str) -> None:
    """Refuse versions of transformers and peft that cannot add, load or save an adapter together.

    transformers does not require peft, so pip installs pairs that do not work: transformers 5.24.0
    wants peft 0.22 for every adapter call, and peft 0.21.2 is the newest release (2026-11). Merging an
    adapter into a model is peft's work alone, and needs no check.

    Args:
        what: what needs the pair, the first words of the message.

    Raises:
        ValueError: peft is missing, or older than the installed transformers wants.

    >>> check_peft("an adapter")
    """
    fix = f"run: pip install {PAIR}"
    try:
        found = version("peft")
    except PackageNotFoundError:
        raise ValueError(f"{what} needs peft; {fix}") from None
    # A constant of transformers, not part of its documented interface.
    wanted = getattr(integration, "MIN_PEFT_VERSION", "0")
    if Version(found) < Version(wanted):
        raise ValueError(
            f"{what}: transformers {transformers.__version__} needs peft {wanted} or later, and peft {found} "
            f"is installed; {fix}"
        )
