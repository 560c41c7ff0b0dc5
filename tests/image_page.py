"""The page of `serve` over images of the mini world, as several tests use it."""

import contextlib
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmmeb_tasks.mini import TEACHER
from mmmeb_tasks.mini.scenes import Scene, draw
from mmmeb_tasks.mini.world import LANGUAGES, load_world

WORLD = load_world(LANGUAGES)
# gradio 6.31 counts its events in pandas, with what pandas 4 will drop.
PANDAS = "ignore:('future.no_silent_downcasting' is|The copy keyword is) deprecated"
NASTY = "<img src=x onerror=alert(1)>.png"  # shows a violin


def concept(text: str, language: str = "en") -> int:
    """The number of the concept that a name stands for."""
    return next(i for i in range(len(WORLD.concepts)) if WORLD.name(i, language) == text)


def file_of(number: int) -> str:
    """The file that shows a concept."""
    name = WORLD.name(number, "en")
    return NASTY if name == "violin" else f"{name}.png"


def make_index(folder: Path, concepts: Sequence[int]) -> Path:
    """An index of one image for each concept, made by the mini world's teacher."""
    from recipes.image_search.indexing import build_index
    from recipes.image_search.options import parse_index_args

    images, out = folder / "images", folder / "index"
    images.mkdir()
    for number in concepts:
        draw(Scene(number, seed=number), WORLD).save(images / file_of(number))
    build_index(parse_index_args([str(images), "--model", str(TEACHER), "--out", str(out)]))
    return out


def free_port() -> int:
    """A port that no program listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def served(index: Path, models: Sequence[str | None], limit: int = 6) -> Iterator[str]:
    """The page's address while it runs in this process."""
    from recipes.image_search.answers import Answers
    from recipes.image_search.server import load_models, private_gradio, start_page
    from recipes.image_search.store import ImageIndex

    with private_gradio():
        opened = ImageIndex.open(str(index))
        page = start_page(Answers(opened, load_models(opened.space, models), limit), free_port())
        try:
            yield page.local_url
        finally:
            page.close()
