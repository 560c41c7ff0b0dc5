"""Run the page on this machine."""

import argparse
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .answers import Answers
from .models import load_query_model
from .queries import embed_query
from .reading import register_heif
from .store import ImageIndex, Space

if TYPE_CHECKING:
    import gradio

Embed = Callable[[str | None, str | None], np.ndarray]

HOST = "127.0.0.1"


def serve(arguments: argparse.Namespace) -> None:
    """Show the page until Ctrl-C.

    Raises:
        ValueError: there is no index; a model embeds into another space; the port is taken.
    """
    refuse_taken_port(arguments.port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the uploads go
    with private_gradio():
        index = ImageIndex.open(arguments.index)
        names = [arguments.model, arguments.student] if arguments.student else [arguments.model]
        answers = Answers(index, load_models(index.space, names), arguments.limit)
        page = start_page(answers, arguments.port, open_browser=arguments.open)
        print(f"Search on {page.local_url} - Ctrl-C ends it")
        page.block_thread()


def load_models(space: Space, names: Sequence[str | None]) -> dict[str, Embed]:
    """How each model embeds a query, by the last part of its name, or by the whole where two are alike.

    Args:
        space: of the index.
        names: folders or Hub ids; None: the model that made the index.

    Raises:
        ValueError: a folder does not exist; a model embeds into another space than the index's.
    """
    titles = [name or space.model for name in names]
    short = [Path(os.path.realpath(title) if os.path.isdir(title) else title).name for title in titles]
    if len(set(short)) == len(short):
        titles = short
    return {
        title: partial(embed_query, load_query_model(space, name), alone=space.prompt)
        for title, name in zip(titles, names, strict=True)
    }


def refuse_taken_port(port: int) -> None:
    """Check before the models load that the port is free.

    Raises:
        ValueError: another program listens there.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gradio does
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ValueError(f"port {port} of {HOST}: {error.strerror}; pass another --port") from None


@contextmanager
def private_gradio() -> Iterator[None]:
    """gradio without telemetry, with its uploads in a folder of this process that goes at the end.

    Every other setting in the environment is dropped: one could open the page, or more folders, to others.
    """
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="xvlm2vec-serve-") as folder:
        # gradio serves what lies in these two folders.
        os.environ["GRADIO_TEMP_DIR"] = os.path.join(folder, "uploads")
        os.environ["GRADIO_EXAMPLES_CACHE"] = os.path.join(folder, "examples")
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        register_heif()  # gradio opens an upload before the search does
        yield


def start_page(answers: Answers, port: int, *, open_browser: bool = False) -> "gradio.Blocks":
    """Start the page in a thread; its `close` stops it. Within `private_gradio` only."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from .origins import OwnOrigin
    from .page import CSS, LARGEST_UPLOAD, build_page, theme

    # A site may let its own name point to 127.0.0.1, and would read the page from within the visitor's browser.
    own_names = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    page = build_page(answers)
    page.launch(
        server_name=HOST,
        server_port=port,
        inbrowser=open_browser,
        share=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        max_file_size=LARGEST_UPLOAD,
        footer_links=[],
        theme=theme(),
        css=CSS,
        app_kwargs={"middleware": [own_names, Middleware(OwnOrigin)]},
        prevent_thread_lock=True,
        quiet=True,
    )
    return page
