"""What the recipes' command lines share."""

import sys
from collections.abc import Callable, Sequence

from xvlm2vec_st.terminal import quiet_libraries
from xvlm2vec_st.texts import printable


def run(main: Callable[[], object]) -> None:
    """Run a recipe; what the user can mend ends it with one line and status 2, Ctrl-C with 130.

    Raises:
        SystemExit: of either.
    """
    quiet_libraries()
    try:
        main()
    except ValueError as error:
        sys.stderr.write(f"error: {printable(error)}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def codes(words: Sequence[str]) -> list[str]:
    """Language codes, with commas or spaces between them.

    >>> codes(["it,es", "pt-BR, zh"])
    ['it', 'es', 'pt-BR', 'zh']
    """
    return " ".join(words).replace(",", " ").split()
