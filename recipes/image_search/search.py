"""Search an index of images by a text in any language, an image, or both.

    xvlm2vec search photos.index "mela rossa"
    xvlm2vec search photos.index --image apple.jpg --html results.html
    xvlm2vec search photos.index "the same in green" --image apple.jpg --folder holiday --since 2024-05-01

Prints the cosine and the path of each image, best first. --model may be the model that made the index, or a model
that was distilled from it. Needs `pip install "xvlm2vec-st[search]"`.
"""

from collections.abc import Callable
from functools import partial

from ..shared.command import run_prepared
from .extras import require
from .options import parse_search_args


def prepare() -> Callable[[], object]:
    """The work that the command line asks for."""
    arguments = parse_search_args(None, __doc__)
    require("lancedb", "search")
    from .searching import search  # it imports torch

    return partial(search, arguments)


def main() -> None:
    """Run the command line."""
    run_prepared(prepare)


if __name__ == "__main__":
    main()
