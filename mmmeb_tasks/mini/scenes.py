"""Scenes of the mini world: one or two glyphs on a plain ground, drawn from a seed.

Train and test scenes share single concepts, never a pair of them: `split_pairs` parts the
unordered pairs, and every scene of two concepts takes its pair from one side.
"""

import colorsys
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from PIL import Image

from mmmeb_tasks.mini.phrases import OPPOSITE, phrases
from mmmeb_tasks.mini.world import World

PIXELS = 96
SPLIT_SEED = 2503
# Each concept stands in 2 test pairs: queries that share one concept are each other's hard candidates.
TEST_PAIRS_PER_CONCEPT = 2
BENCHMARK_SCENES = 300

Pair = tuple[int, int]


@dataclass(frozen=True)
class Scene:
    """`subject` stands `relation` of `other`; both None for a scene of one concept.

    The relation is "left" or "above", so a caption names things in reading order. `flipped` turns the
    question round: it names the subject and asks for the other. `seed` decides ground and jitter.
    """

    subject: int
    other: int | None = None
    relation: str | None = None
    flipped: bool = False
    seed: int = 0

    @property
    def pair(self) -> tuple[int, int, str]:
        """(subject, other, relation).

        Raises:
            ValueError: a scene of one concept.
        """
        if self.other is None or self.relation is None:
            raise ValueError(f"{self} shows one concept; two are needed")
        return self.subject, self.other, self.relation

    def caption(self, world: World, language: str) -> str:
        """What the scene shows, in `language`: a name, or two in reading order with their relation."""
        if self.other is None:
            return world.name(self.subject, language)
        subject, other, relation = self.pair
        names = {"a": world.name(subject, language), "b": world.name(other, language)}
        return phrases(language).caption[relation].format(**names)

    def question(self, world: World, language: str) -> str:
        """`what is to the left of {b}?`, answered by `answer`."""
        relation = OPPOSITE[self.pair[2]] if self.flipped else self.pair[2]
        return phrases(language).question[relation].format(b=world.name(self.asked, language))

    @property
    def answer(self) -> int:
        """The concept that the question asks for."""
        return self.pair[1] if self.flipped else self.subject

    @property
    def asked(self) -> int:
        """The concept that the question names."""
        return self.subject if self.flipped else self.pair[1]

    def swapped(self) -> "Scene":
        """The same two concepts with places changed, on another ground."""
        subject, other, relation = self.pair
        return Scene(other, subject, relation, self.flipped, self.seed + 1)


def split_pairs(concepts: int, *, per_concept: int = TEST_PAIRS_PER_CONCEPT) -> tuple[list[Pair], list[Pair]]:
    """All unordered pairs of concept numbers, parted into (train, test), the same on every call.

    Each concept is in exactly 2 * `per_concept` test pairs, for i joins i + step in a shuffled ring.

    >>> train, test = split_pairs(10, per_concept=1)
    >>> len(train), len(test), set(train) & set(test)
    (35, 10, set())
    """
    ring = list(range(concepts))
    random.Random(SPLIT_SEED).shuffle(ring)
    steps = range(1, per_concept + 1)
    joined = [(ring[i], ring[(i + step) % concepts]) for step in steps for i in range(concepts)]
    test = {(min(pair), max(pair)) for pair in joined}
    train = [pair for pair in combinations(range(concepts), 2) if pair not in test]
    return train, sorted(test)


def pair_scene(pair: Pair, rng: random.Random) -> Scene:
    """A scene of two concepts: side by side or one above the other, in a random order."""
    subject, other = rng.sample(pair, 2)
    relation = rng.choice(("left", "above"))
    return Scene(subject, other, relation, rng.random() < 0.5, rng.getrandbits(30))


def _ground(rng: random.Random) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.05, 0.35), rng.uniform(0.85, 1.0))
    return round(255 * red), round(255 * green), round(255 * blue)


def boxes(scene: Scene) -> list[tuple[int, int, int, int]]:
    """Where the glyphs stand, subject first: (left, top, right, bottom) in pixels."""
    rng = random.Random(scene.seed)
    if scene.other is None:
        side = rng.randint(36, 56)
        left, top = rng.randint(2, PIXELS - side - 2), rng.randint(2, PIXELS - side - 2)
        return [(left, top, left + side, top + side)]
    placed = []
    for start in (2, PIXELS // 2 + 1):
        side = rng.randint(36, 44)
        along = start + rng.randint(0, PIXELS // 2 - 3 - side)
        across = (PIXELS - side) // 2 + rng.randint(-12, 12)  # the other axis never rivals the relation
        left, top = (along, across) if scene.relation == "left" else (across, along)
        placed.append((left, top, left + side, top + side))
    return placed


def draw(scene: Scene, world: World) -> Image.Image:
    """The scene as a 96 x 96 RGB image; the same scene always gives the same pixels."""
    image = Image.new("RGB", (PIXELS, PIXELS), _ground(random.Random(scene.seed + 7)))
    for concept, (left, top, right, _) in zip(_shown(scene), boxes(scene), strict=True):
        glyph = world.concepts[concept].glyph.resize((right - left,) * 2, Image.Resampling.BILINEAR)
        image.paste(glyph, (left, top), glyph)
    return image


def crop(scene: Scene, world: World, concept: int) -> Image.Image:
    """The part of the drawn scene that holds `concept`, with a margin of 2 pixels."""
    left, top, right, bottom = boxes(scene)[_shown(scene).index(concept)]
    box = (max(left - 2, 0), max(top - 2, 0), min(right + 2, PIXELS), min(bottom + 2, PIXELS))
    return draw(scene, world).crop(box)


def _shown(scene: Scene) -> list[int]:
    return [scene.subject] if scene.other is None else [scene.subject, scene.other]


def test_scenes(world: World, count: int, seed: int = SPLIT_SEED, *, dev: bool = False) -> list[Scene]:
    """`count` scenes over test pairs, each beside its swapped twin, rings of shared concepts kept.

    With `dev`, they are over pairs that stand neither in training nor in the benchmark's 300 scenes, for choosing
    settings.

    Raises:
        ValueError: when `count` is odd, or above twice the number of pairs.
    """
    rng = random.Random(seed)
    _, pairs = split_pairs(len(world.concepts))
    if dev:
        tested = {tuple(sorted(scene.pair[:2])) for scene in test_scenes(world, BENCHMARK_SCENES, seed)}
        pairs = [pair for pair in pairs if pair not in tested]
    if count % 2 or not 0 < count <= 2 * len(pairs):
        raise ValueError(f"count {count}: an even number from 2 to {2 * len(pairs)} is needed")
    scenes: list[Scene] = []
    for pair in rng.sample(pairs, count // 2):
        scene = pair_scene(pair, rng)
        scenes += [scene, scene.swapped()]
    return scenes


def single_scenes(world: World, count: int, seed: int) -> list[Scene]:
    """`count` scenes of one concept, every concept in turn."""
    rng = random.Random(seed)
    order: Sequence[int] = range(len(world.concepts))
    return [Scene(order[i % len(order)], seed=rng.getrandbits(30)) for i in range(count)]
