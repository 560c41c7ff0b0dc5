"""The mini world as a folder of images to search: one image per thing, searched by its name in each language."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from mmmeb_tasks.mini.scenes import Scene, draw
from mmmeb_tasks.mini.world import load_world

from .prompts import text_prompt
from .store import ImageIndex


def write_mini_images(folder: Path) -> None:
    """Draw each thing of the mini world once, in files named in English ("red apple.png")."""
    world = load_world(["en"])
    folder.mkdir(parents=True, exist_ok=True)
    for concept in range(len(world.concepts)):
        draw(Scene(concept, seed=concept), world).save(folder / f"{world.name(concept, 'en')}.png")


def search_mini_images(
    index: ImageIndex, model: SentenceTransformer, languages: Sequence[str]
) -> dict[str, np.ndarray]:
    """Search for every thing by its name in each language.

    Args:
        index: of the folder that `write_mini_images` wrote.
        model: that embeds the queries.
        languages: codes, such as "it".

    Returns:
        Per language, whether the right image came first (things,).
    """
    world = load_world(["en", *languages])
    concepts = range(len(world.concepts))
    files = [f"{world.name(concept, 'en')}.png" for concept in concepts]
    hits: dict[str, np.ndarray] = {}
    for language in languages:
        names = [world.name(concept, language) for concept in concepts]
        queries = model.encode_query(names, prompt=text_prompt(model), show_progress_bar=False)
        best = [index.search(query, limit=1)[0].path for query in queries]
        hits[language] = np.array([path == file for path, file in zip(best, files, strict=True)])
    return hits
