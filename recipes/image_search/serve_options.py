"""The options of `serve`."""

import argparse
import os
from collections.abc import Sequence

from ..shared.command import parser_of

LAST_PORT = 65535


def parse_args(argv: Sequence[str] | None, description: str | None = None) -> argparse.Namespace:
    """The command line.

    >>> parse_args(["photos.index", "--student", "./xvlm2vec"]).port
    7860
    """
    parser = parser_of(description)
    parser.add_argument("index", type=os.path.expanduser, metavar="INDEX", help="folder or URL of an index")
    parser.add_argument("--model", type=os.path.expanduser, help="embeds the queries; default: the index's own")
    parser.add_argument("--student", type=os.path.expanduser, help="a second model: its results are shown beside")
    parser.add_argument("--limit", type=int, default=20, help="how many images a query shows")
    parser.add_argument("--port", type=port_number, default=7860, help="of the page, on this machine")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    return parser.parse_args(argv)


def port_number(word: str) -> int:
    """A port that a program may take.

    >>> port_number("7860")
    7860

    Raises:
        ArgumentTypeError: it is something else.
    """
    if not (word.isdecimal() and len(word) < 6 and 0 < int(word) <= LAST_PORT):
        raise argparse.ArgumentTypeError(f"{word} is not a port; pass 1 to {LAST_PORT}")
    return int(word)
