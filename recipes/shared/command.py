"""What the recipes' command lines share."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from xvlm2vec_st.utils.failures import reason
from xvlm2vec_st.utils.terminal import quiet_libraries
from xvlm2vec_st.utils.texts import printable

from .numbers import check_numbers

DEBUG = "--debug"


def parser_of(description: str | None, **kwargs: object) -> argparse.ArgumentParser:
    """A parser that shows the description as it stands, and takes --debug.

    >>> parser_of("Train.").parse_args(["--debug"])
    Namespace()
    """
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
    parser.add_argument(
        DEBUG,
        action=OfTheStart,
        nargs=0,
        default=argparse.SUPPRESS,
        help="show the libraries' log and warnings, and the traceback of an error",
    )
    return parser


class Parser(argparse.ArgumentParser):
    """argparse's, with checked numbers."""

    def parse_known_args(self, *args: Any, **kwargs: Any) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's.

        Raises:
            ValueError: as `check_numbers`.
        """
        options, rest = super().parse_known_args(*args, **kwargs)
        check_numbers(options, self)
        return options, rest


class OfTheStart(argparse.Action):
    """An option that `run` reads, and that is no part of what a recipe does."""

    def __call__(self, *args: object, **kwargs: object) -> None:
        """Store nothing among the options."""


def run(main: Callable[[], object]) -> None:
    """Run a recipe.

    Raises:
        SystemExit: see `run_prepared`.
    """
    run_prepared(lambda: main)


def run_prepared(prepare: Callable[[], Callable[[], object]]) -> None:
    """Run what `prepare` returns.

    `prepare` reads the command line, and imports the libraries only then: --help and refusals come at once.

    Bad input and failures of the machine end it with one line and status 2, Ctrl-C with 130. With --debug
    on the command line, the libraries' log is shown, and the traceback.

    Raises:
        SystemExit: the recipe failed or was stopped.
    """
    debug = DEBUG in sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        # A console of another encoding: replace what it cannot print. Not every stream is one.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if debug:
        logging.basicConfig(format="%(name)s: %(message)s", level=logging.INFO)
    try:
        main = prepare()
        if not debug:
            quiet_libraries()  # after the imports: some libraries set their level then
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        line = reason(error)
        if debug or line is None:
            raise
        sys.stderr.write(f"error: {printable(line)}\n")
        raise SystemExit(2) from None


def parse_languages(words: Sequence[str]) -> list[str]:
    """Split language codes at commas and spaces.

    >>> parse_languages(["it,es", "pt-BR, zh"])
    ['it', 'es', 'pt-BR', 'zh']
    """
    return " ".join(words).replace(",", " ").split()
