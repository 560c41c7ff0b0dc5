"""Words that an English reader takes for another thing: a false friend is nearer than the meaning.

A word is here if it is spelled as an English word, or nearly so, and both the thing that it means and the
thing that the English word means are concepts of the mini world. Some are CLDR names of the world; the
others are common words.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from mmmeb_tasks.data.layout import BenchmarkRow
from mmmeb_tasks.mini.scenes import Scene, draw
from mmmeb_tasks.mini.tasks import MiniT2IRanking
from mmmeb_tasks.mini.world import load_world
from mmmeb_tasks.retrieval import split_data


@dataclass(frozen=True)
class Homograph:
    """A word of a language, the emoji of what it means, and of what an English reader takes it for."""

    language: str
    word: str
    meant: str
    false_friend: str


HOMOGRAPHS: tuple[Homograph, ...] = tuple(
    Homograph(*(part.replace("_", " ") for part in row.split()))
    for row in (
        "de Hut 🎩 🏠",  # hut
        "de Hose 👖 💧",  # water hose
        "de Boot ⛵ 👠",  # boot: a shoe
        "de Rock 👗 💎",  # rock: a stone
        "de Glocke 🔔 ⏰",  # clock
        "fr trombone 📎 🎺",
        "fr singe 🐒 🔥",  # singe: to burn
        "fr lit 🛏 💡",  # lit
        "fr pain 🍞 💊",  # pain: a pill helps
        "fr car 🚌 🚗",
        "fr chat 🐈 📱",  # chat: to talk
        "fr ballon ⚽ 🎈",
        "fr football ⚽ 🏈",  # the American game
        "fr basket 🏀 🪣",  # basket: a bucket
        "fr croissant_de_lune 🌙 🥐",
        "it ape 🐝 🐒",
        "it sole ☀ 🐟",  # sole: a fish
        "it tacco 👠 🌮",
        "it regalo 🎁 👑",  # regal
        "it busta ✉ 🚌",
        "es león 🦁 🍋",
        "es limón 🍋 🦁",
        "es tacón 👠 🌮",
        "es carro 🚗 🥕",
        "es cubo 🪣 🎲",  # cube
        "es cometa 🪁 ⭐",  # comet
        "es tuna 🌵 🐟",  # the fruit of a cactus
    )
)


def homographs_of(languages: Sequence[str]) -> list[Homograph]:
    """The words of some languages.

    >>> [word.word for word in homographs_of(["de"])]
    ['Hut', 'Hose', 'Boot', 'Rock', 'Glocke']
    """
    return [word for word in HOMOGRAPHS if word.language in languages]


def homograph_task(language: str, folder: Path) -> MiniT2IRanking:
    """The words of a language as a task of image search: the meaning against the false friend.

    Its P@1 is the share of words whose meaning is nearer. Its query ids are `number:word`.

    Args:
        language: which language.
        folder: where the images are written; it must stay until the task has been scored.

    Raises:
        ValueError: a language without such words.

    Example:
        task = homograph_task("it", tmp_path)
        mteb.evaluate(encoder, task, cache=None)
    """
    words = homographs_of([language])
    if not words:
        known = ", ".join(dict.fromkeys(word.language for word in HOMOGRAPHS))
        raise ValueError(f"no false friends of English are known in {language!r}; choose one of {known}")
    images = _draw({emoji for word in words for emoji in (word.meant, word.false_friend)}, folder)
    rows = (
        BenchmarkRow(number, word.word, None, word.word, (images[word.meant], images[word.false_friend]))
        for number, word in enumerate(words, 1)
    )
    task = MiniT2IRanking()
    task.dataset = {language: {"test": split_data(rows, "t2i")}}
    task.hf_subsets, task.data_loaded = [language], True
    return task


def _draw(emoji: set[str], folder: Path) -> dict[str, Path]:
    """An image of each concept."""
    world = load_world()
    paths = {}
    for number, concept in enumerate(world.concepts):
        if concept.emoji in emoji:
            paths[concept.emoji] = folder / f"{number}.png"
            draw(Scene(number), world).save(paths[concept.emoji])
    return paths


def table_hash() -> str:
    """Of the words and their concepts: a measurement of other words is another one."""
    return sha256("\n".join(_lines()).encode()).hexdigest()[:12]


def _lines() -> Iterator[str]:
    for word in HOMOGRAPHS:
        yield " ".join((word.language, word.word, word.meant, word.false_friend))
