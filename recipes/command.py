"""What the recipes' command lines share."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def run(main: Callable[[], object]) -> None:
    """Run a recipe; what the user can mend ends it with one line and status 2, Ctrl-C with 130.

    Raises:
        SystemExit: of either.
    """
    try:
        main()
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def codes(words: Sequence[str]) -> list[str]:
    """Language codes, with commas or spaces between them.

    >>> codes(["it,es", "pt-BR, zh"])
    ['it', 'es', 'pt-BR', 'zh']
    """
    return " ".join(words).replace(",", " ").split()


def check_folder(name: str | None) -> None:
    """Refuse a model's name that can only be a folder's, where there is none; the Hub would be asked for it.

    Raises:
        ValueError: no such folder.

    >>> check_folder("TIGER-Lab/VLM2Vec-LoRA")
    """
    if name is None or Path(name).is_dir():
        return
    if name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1:
        raise ValueError(f"{name}: no such folder")
