"""Search an index of images on a web page of this machine.

    xvlm2vec serve INDEX                          # http://127.0.0.1:7860
    xvlm2vec serve INDEX --model ./xvlm2vec       # queries in the languages of a student of the index's model
    xvlm2vec serve INDEX --student ./xvlm2vec     # the index's model and its student, side by side

A query is a text, an image, or both. The page works without a network, answers this machine only, and keeps
nothing: an uploaded image is deleted within two hours, and all of them when the command ends. It shows the index's
thumbnails; the images themselves are never read. Needs `pip install "xvlm2vec-st[app]"`.
"""

from collections.abc import Callable
from functools import partial

from ..shared.command import run_prepared
from .extras import require
from .serve_options import parse_args


def prepare() -> Callable[[], object]:
    """The work that the command line asks for."""
    arguments = parse_args(None, __doc__)
    require("lancedb", "app")
    require("gradio", "app")
    from .server import serve  # it imports torch

    return partial(serve, arguments)


def main() -> None:
    """Run the command line."""
    run_prepared(prepare)


if __name__ == "__main__":
    main()
