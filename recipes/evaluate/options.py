"""The options of `evaluate`."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from mmmeb_tasks.data.languages import LANGUAGES
from mmmeb_tasks.instructions import STYLES
from xvlm2vec_st.utils.folders import expanded

from ..shared.command import parser_of


def parse_args(argv: Sequence[str] | None, description: str | None = None) -> argparse.Namespace:
    """The command line."""
    parser = parser_of(description)
    parser.add_argument("models", nargs="+", type=os.path.expanduser, help="folders, or names of mteb")
    what = parser.add_argument_group("what is scored")
    what.add_argument("--tasks", nargs="+", default=["MMMEB"], help="MMMEB, MMMEBMini, or single tasks")
    what.add_argument("--languages", nargs="+", type=three_letters, help="en it es fr de, or eng ita ...; default: all")
    what.add_argument("--styles", default="plain", help=f"how texts end, of {','.join(STYLES)}")
    what.add_argument(
        "--index", type=os.path.expanduser, help="model that embeds the candidates; default: each its own"
    )
    what.add_argument("--index-language", type=two_letters, help="of all candidates, en; default: that of the query")
    how = parser.add_argument_group("how")
    how.add_argument("--out", type=expanded, default=Path("report"), help="the report's folder")
    how.add_argument("--batch-size", type=int, default=32, help="rows a forward pass; lower: less memory")
    how.add_argument("--device", help="cpu, cuda, ...; default: what is there")
    how.add_argument("--resamples", type=int, default=2000, help="of the bootstrap over queries")
    how.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    return parser.parse_args(argv)


def three_letters(language: str) -> str:
    """A language of MMMEB as mteb names it; any other word as it is.

    >>> three_letters("it"), three_letters("ita")
    ('ita', 'ita')
    """
    return LANGUAGES.get(language, language).split("-")[0]


def two_letters(language: str) -> str:
    """A language of MMMEB as its files name it; any other word as it is.

    >>> two_letters("ita"), two_letters("it")
    ('it', 'it')
    """
    return {three_letters(short): short for short in LANGUAGES}.get(language, language)
