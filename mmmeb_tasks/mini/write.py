"""Write the mini world to disk: the benchmark in MMMEB's published layout, and a parallel corpus.

python -m mmmeb_tasks.mini.write benchmark mini-data
python -m mmmeb_tasks.mini.write corpus mini-corpus --languages en it pt --scenes 2000
"""

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import cast

from PIL import Image

from mmmeb_tasks.data.download import cache_folder
from mmmeb_tasks.data.layout import Kind
from mmmeb_tasks.instructions import EXTRA_INSTRUCTIONS, PUBLISHED, render_query, render_target
from mmmeb_tasks.mini.bundle import BUNDLE
from mmmeb_tasks.mini.scenes import Scene, crop, draw, pair_scene, single_scenes, split_pairs, test_scenes
from mmmeb_tasks.mini.world import LANGUAGES, World, load_world
from mmmeb_tasks.utils.folders import Destination, expanded, is_complete, remove

QUERIES = 300
CANDIDATES = 100
DATASET = "mini"
CORPUS_SEED, SINGLES_SEED = 724, 97
SINGLE_EVERY = 8  # one scene in eight of the corpus shows one concept
# Kinds of text for an image of two things, by weight. The texts of vqa and vg queries vary and need many rows;
# i2t, t2i and crop are one instruction each.
IMAGE_KINDS = {"vqa": 5, "vg": 5, "i2t": 1, "t2i": 1, "crop": 1}
# What decides the files' content: the cache is named by it, so that no older world is ever read.
SOURCES = (BUNDLE, *(Path(__file__).with_name(name) for name in ("phrases.py", "scenes.py", "write.py")))


def _near(scenes: Sequence[Scene], index: int) -> list[int]:
    """Scenes that share a concept with scene `index`; its swapped twin, which shares both, first."""
    own = {scenes[index].subject, scenes[index].other}
    shared = {i: len(own & {s.subject, s.other}) for i, s in enumerate(scenes) if i != index}
    return sorted((i for i, n in shared.items() if n), key=lambda i: -shared[i])


def _filled(gold: object, hard: Sequence, pool: Sequence, rng: random.Random) -> list:
    """The gold, then the hard candidates, then others of the pool at random, 100 in all."""
    chosen = dict.fromkeys([gold, *hard])
    rest = [item for item in pool if item not in chosen]
    return [*chosen, *rng.sample(rest, CANDIDATES - len(chosen))]


def _images(scenes: Sequence[Scene], singles: Sequence[Scene], world: World, folder: Path) -> None:
    folder.mkdir(parents=True)
    for i, scene in enumerate(scenes):
        draw(scene, world).save(folder / f"scene_{i:04d}.png")
        for place, concept in enumerate(scene.pair[:2]):
            crop(scene, world, concept).save(folder / f"crop_{i:04d}_{place}.png")
    for i, scene in enumerate(singles):
        draw(scene, world).save(folder / f"single_{i:04d}.png")


def _rows(kind: str, language: str, world: World, scenes: Sequence[Scene], singles: Sequence[Scene]) -> Iterator:
    """The rows of one file. The candidates' choice does not depend on the language."""
    rng = random.Random(f"{SINGLES_SEED}/{kind}")
    concepts = range(len(world.concepts))

    def name(concept: int) -> str:
        return world.name(concept, language)

    if kind == "c":
        for i, scene in enumerate(singles):
            labels = _filled(scene.subject, (), concepts, rng)
            yield {"id": i, "img": f"single_{i:04d}.png", "classes": [name(c) for c in labels]}
        return
    crops = [(i, place) for i in range(len(scenes)) for place in (0, 1)]
    for i, scene in enumerate(scenes):
        image = f"scene_{i:04d}.png"
        if kind in ("i2t", "t2i"):
            chosen = _filled(i, _near(scenes, i), range(len(scenes)), rng)
            if kind == "i2t":
                captions = [scenes[j].caption(world, language) for j in chosen]
                yield {"id": i, "img": image, "captions": captions}
            else:
                images = [f"scene_{j:04d}.png" for j in chosen]
                yield {"id": i, "text": scene.caption(world, language), "images": images}
        elif kind == "vqa":
            answers = _filled(scene.answer, (scene.asked,), concepts, rng)
            question = scene.question(world, language)
            yield {"id": i, "img": image, "question": question, "answers": [name(c) for c in answers]}
        else:
            place = rng.randrange(2)
            shown = scene.pair[:2]
            # A crop of the same concept out of another scene would be as right as the gold.
            pool = [(j, p) for j, p in crops if (scenes[j].subject, scenes[j].other)[p] != shown[place]]
            chosen = _filled((i, place), [(i, 1 - place)], pool, rng)
            imgs = [f"crop_{j:04d}_{p}.png" for j, p in chosen]
            yield {"id": i, "img": image, "text": name(shown[place]), "imgs": imgs}


def write_benchmark(
    out: str | Path, languages: Sequence[str] = LANGUAGES, *, queries: int = QUERIES, dev: bool = False
) -> Path:
    """Write MMMEBMini to the new folder `out`, whole or not at all, and return it.

    Five kinds of task per language, `queries` rows per file, 100 candidates per row. The candidates are drawn from
    at least 100 scenes, also for fewer queries.

    Args:
        queries: 1 to 100, or an even number above.
        dev: scenes of other pairs than the benchmark's, for choosing settings.

    Raises:
        ValueError: `out` exists; a language has no names; `queries` is out of range.
    """
    if queries < 1:
        raise ValueError(f"queries is {queries}; pass 1 or more")
    out = Path(out)
    world = load_world(languages)
    scenes = test_scenes(world, max(queries, CANDIDATES), dev=dev)
    singles = single_scenes(world, len(scenes), SINGLES_SEED)
    with _new_folder(out, what="benchmark", languages=list(languages), queries=queries, dev=dev) as folder:
        _images(scenes, singles, world, folder / f"{DATASET}_images")
        (folder / "datasets").mkdir()
        for language in languages:
            for kind in ("i2t", "t2i", "c", "vqa", "vg"):
                file = f"{DATASET}_{language}_{CANDIDATES}_formatted_{kind}.jsonl"
                rows = islice(_rows(kind, language, world, scenes, singles), queries)
                _write_lines(folder / "datasets" / file, rows)
    return out


def instruction_language(kind: Kind, language: str) -> str:
    """The language to give an instruction in: the text's own, or English where there is none.

    >>> instruction_language("vg", "it"), instruction_language("vg", "pt")
    ('it', 'en')
    """
    return language if language in PUBLISHED[kind] | EXTRA_INSTRUCTIONS.get(kind, {}) else "en"


def _query(kind: Kind, language: str, text: str | None = None) -> str:
    return render_query(kind, instruction_language(kind, language), text)


def _target(kind: Kind, language: str) -> str:
    return render_target(kind, instruction_language(kind, language))


def _text_of_image(kind: str, scene: Scene, named: int, world: World, language: str) -> str:
    """What goes with an image in one language: the query or the target of a kind."""
    if kind in ("t2i", "crop"):
        return _target("vg" if kind == "crop" else "t2i", language)
    text = {"vqa": scene.question, "vg": lambda *_: world.name(named, language)}.get(kind)
    return _query(cast(Kind, kind), language, text and text(world, language))


CorpusRow = tuple[str, Image.Image | None, dict[str, str]]


def _corpus_rows(world: World, scenes: int, rng: random.Random) -> Iterator[CorpusRow]:
    """(id, image or None, {language: text}): a text alone and a text with an image, a scene."""
    train, _ = split_pairs(len(world.concepts))
    for i in range(scenes):
        if i % SINGLE_EVERY:
            scene = pair_scene(rng.choice(train), rng)
            kind = rng.choices(list(IMAGE_KINDS), list(IMAGE_KINDS.values()))[0]
        else:
            scene, kind = Scene(rng.randrange(len(world.concepts)), seed=rng.getrandbits(30)), "c"
        named = rng.choice([c for c in (scene.subject, scene.other) if c is not None])
        texts = {language: scene.caption(world, language) for language in world.languages}
        if rng.random() < 0.5:
            yield f"{i}/caption", None, texts
        else:
            yield (
                f"{i}/t2i",
                None,
                {language: _query("t2i", language, text) for language, text in texts.items()},
            )
        image = crop(scene, world, named) if kind == "crop" else draw(scene, world)
        texts = {language: _text_of_image(kind, scene, named, world, language) for language in world.languages}
        yield f"{i}/picture/{kind}", image, texts


def write_corpus(
    out: str | Path, languages: Sequence[str] = LANGUAGES, *, scenes: int, seed: int = CORPUS_SEED
) -> Path:
    """Write a parallel corpus over train pairs to the new folder `out`: parallel.jsonl and images/.

    Two rows a scene: its caption or t2i query (text only), and a text with an image.

    Raises:
        ValueError: if `out` exists, for a language without names, or for no scene.
    """
    if "id" in languages:
        raise ValueError("'id' is the row's id; write Indonesian as 'ind'")
    if scenes < 1:
        raise ValueError(f"scenes {scenes}: at least 1 is needed, of two rows")
    out = Path(out)
    world = load_world(languages)
    rng = random.Random(seed)
    with _new_folder(out, what="corpus", languages=list(languages), scenes=scenes, seed=seed) as folder:
        (folder / "images").mkdir()

        def lines() -> Iterator[dict]:
            for row_id, image, texts in _corpus_rows(world, scenes, rng):
                name = None
                if image is not None:
                    name = f"images/{row_id.split('/')[0]}.png"
                    image.save(folder / name)
                yield {"id": row_id, "image": name, **texts}

        _write_lines(folder / "parallel.jsonl", lines())
    return out


def _write_lines(path: Path, rows: Iterator[dict]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@contextmanager
def _new_folder(out: Path, **settings: object) -> Iterator[Path]:
    """Where to write what becomes the new folder `out` in one step; gone again if the writing fails."""
    place = Destination(out, command="mmmeb_tasks.mini.write", option="OUT")
    with place.hold():  # which also clears the lock of a run that was killed in its last step
        if place.named.exists():
            raise ValueError(f"{out} exists; pass a new folder")
        place.check()
        if place.check_work():  # what a killed run left: writing it again takes seconds
            remove(place.work)
        place.begin(settings)
        place.draft.mkdir()
        try:
            yield place.draft
        except BaseException:
            place.abandon()
            raise
        place.finish(place.draft)


def ensure_mini(languages: Sequence[str] = LANGUAGES) -> Path:
    """The folder of MMMEBMini in the cache, written on first use; a second process waits for it.

    `MMMEB_CACHE` names the cache; the default is `~/.cache/mmmeb`. The folder's name holds a hash of
    the bundle, of the code that draws and writes, and of the languages.
    """
    content = b"".join(source.read_bytes() for source in SOURCES)
    digest = hashlib.sha256(content + "/".join(languages).encode()).hexdigest()[:12]
    folder = cache_folder() / f"mini-{digest}"
    if is_complete(folder):
        return folder
    place = Destination(folder, command="mmmeb_tasks.mini.write", option="MMMEB_CACHE")
    with place.hold(wait=True):
        if not folder.is_dir():
            remove(place.work)  # what a killed run left; the name is of the content
            place.begin({})
            place.finish(write_benchmark(place.work / "mini", languages))
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring. A line of error and status 2 for what the user can mend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("benchmark", "corpus"))
    parser.add_argument("out", type=expanded)
    parser.add_argument("--languages", nargs="+", default=LANGUAGES, help="CLDR locales, English first")
    parser.add_argument("--scenes", type=int, default=2000, help="corpus: how many scenes (two rows each)")
    args = parser.parse_args(argv)
    try:
        if args.what == "benchmark":
            write_benchmark(args.out, args.languages)
        else:
            write_corpus(args.out, args.languages, scenes=args.scenes)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
