"""Index a folder of images for `search` and `serve`.

    xvlm2vec index ~/Photos --model ./xvlm2vec --out photos.index

Each image is embedded once. The same command again embeds what is new or changed, and takes out what is gone; a
file with the same path, size and time of change is not opened. Copies and moved files keep their embedding. After a
stop or a crash, the same command goes on. Files that cannot be read are listed at the end. OUT may be a URL that
LanceDB takes (s3://bucket/photos). HEIC needs pillow-heif. Needs `pip install "xvlm2vec-st[search]"`.
"""

from collections.abc import Callable
from functools import partial

from ..shared.command import run_prepared
from .extras import require
from .options import parse_index_args


def prepare() -> Callable[[], object]:
    """The work that the command line asks for."""
    arguments = parse_index_args(None, __doc__)
    require("lancedb", "search")
    from .indexing import build_index  # it imports torch

    return partial(build_index, arguments)


def main() -> None:
    """Run the command line."""
    run_prepared(prepare)


if __name__ == "__main__":
    main()
