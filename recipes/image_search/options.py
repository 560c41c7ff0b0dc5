"""The options of `index` and `search`."""

import argparse
import os
from collections.abc import Sequence
from datetime import date

from xvlm2vec_st.utils.folders import expanded

from ..shared.command import parser_of

DTYPES = ("bf16", "fp16", "fp32")


def parse_index_args(argv: Sequence[str] | None, description: str | None = None) -> argparse.Namespace:
    """The command line of `index`.

    >>> parse_index_args(["photos", "--model", "m", "--out", "photos.index"]).batch_size
    16
    """
    parser = parser_of(description)
    parser.add_argument("images", type=expanded, metavar="IMAGES", help="folder of images, and the folders below it")
    parser.add_argument("--model", type=os.path.expanduser, required=True, help="folder or Hub id")
    parser.add_argument("--out", type=os.path.expanduser, required=True, help="folder or URL (s3://…) of the index")
    parser.add_argument("--revision", help="commit of a model on the Hub; default: the newest")
    parser.add_argument("--prompt", help="instruction beside each image; default: the model's, else VLM2Vec's")
    parser.add_argument("--batch-size", type=int, default=16, help="images a forward pass; lower: less memory")
    parser.add_argument("--dtype", choices=DTYPES, help="that the model runs in; default: that of its files")
    parser.add_argument("--device", help="cpu, cuda, ...; default: what is there")
    parser.add_argument("--overwrite", action="store_true", help="begin the index anew")
    return parser.parse_args(argv)


def parse_search_args(argv: Sequence[str] | None, description: str | None = None) -> argparse.Namespace:
    """The command line of `search`.

    Raises:
        ValueError: --since is after --until.

    >>> parse_search_args(["photos.index", "mela rossa", "--since", "2024-05-01"]).since
    datetime.date(2024, 5, 1)
    """
    parser = parser_of(description)
    parser.add_argument("index", type=os.path.expanduser, metavar="INDEX", help="folder or URL of an index")
    parser.add_argument("text", nargs="?", metavar="TEXT", help="what to look for, in any language of the model")
    parser.add_argument("--image", type=expanded, help="look for images like this one, alone or with TEXT")
    parser.add_argument("--model", type=os.path.expanduser, help="that embeds the query; default: the index's own")
    parser.add_argument("--prompt", help="instruction before the query; default: the model's, else VLM2Vec's")
    parser.add_argument("--limit", type=int, default=20, help="how many images")
    parser.add_argument("--folder", help="only images below this folder of IMAGES: holiday/Rome")
    parser.add_argument("--since", type=day, help="only files last changed on this day or later: 2024-05-31")
    parser.add_argument("--until", type=day, help="only files last changed on this day or before")
    parser.add_argument("--html", type=expanded, metavar="FILE", help="write a page of the results, in one file")
    parser.add_argument("--device", help="cpu, cuda, ...; default: what is there")
    options = parser.parse_args(argv)
    if options.since and options.until and options.since > options.until:
        raise ValueError(f"--since {options.since} is after --until {options.until}; swap them, or leave one out")
    return options


def day(word: str) -> date:
    """A date as ISO 8601 writes it.

    Raises:
        ArgumentTypeError: it is something else.
    """
    try:
        return date.fromisoformat(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not a date; write 2024-05-31") from None
