"""Compare variants of the method: same start, same data order, several seeds, two worlds.

    python -m recipes.experiments.ablation mini --work W --records docs/ablation/mini.jsonl --document docs/results.md
    python -m recipes.experiments.ablation captions --work W --records captions.jsonl --model all-MiniLM-L6-v2 \\
        --languages de fr cs --train 'multi30k/train.{}.gz' --dev-set 'multi30k/val.{}.gz' \\
        --test 'Multi30k=multi30k/test_2016_flickr.{}.gz' 'XTD10=xtd10/test_1kcaptions_{}.txt.gz'

Each finished run is a line of RECORDS; the same command goes on after a stop. Captions: Moses files with {} in place
of the language, or a parallel.jsonl. The tables go between the marks <!-- ablation WORLD --> of DOCUMENT (with
--updates: <!-- ablation WORLD UPDATES -->), the plot beside it.
"""

import argparse
import ast
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mmmeb_tasks.mini.world import LANGUAGES
from mmmeb_tasks.mini.write import QUERIES
from xvlm2vec_st.utils.folders import Destination, expanded

from ...shared.command import parse_languages, parser_of
from ..measure import keep_table
from ..text_embedder import default_model
from .mini_world import SCENES, MiniWorld
from .records import Key, Record, append_record, read_records
from .report import report, same_updates, updates_for_equal_operations
from .text_world import TextWorld
from .training import BEFORE, settings_of, train_and_score, untrained_records
from .variants import Variant, find_variants
from .worlds import World


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("world", choices=("mini", "captions"))
    parser.add_argument("--work", type=expanded, required=True, help="folder for corpora and unfinished runs")
    parser.add_argument("--records", type=expanded, required=True, help="JSON Lines file of the finished runs")
    parser.add_argument("--document", type=expanded, help="the document to write the tables to")
    parser.add_argument("--variants", nargs="+", help="names; default: all")
    parser.add_argument("--set", nargs="+", default=[], metavar="OPTION=VALUE", help="change options of the variants")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--updates", type=int, help="weight updates; default: the world's")
    parser.add_argument("--languages", nargs="+", help="the languages that are taught; default: it es fr de; de fr cs")
    parser.add_argument("--dev", action="store_true", help="score the development set, to choose settings")
    parser.add_argument("--report", action="store_true", help="write the tables from RECORDS, and run nothing")
    mini = parser.add_argument_group("mini")
    mini.add_argument("--scenes", type=int, default=SCENES, help="training scenes, two corpus rows each")
    mini.add_argument("--queries", type=int, default=QUERIES, help="queries per task and language")
    texts = parser.add_argument_group("captions")
    texts.add_argument("--model", help="an English text embedder: folder or Hub id; default: all-MiniLM-L6-v2")
    texts.add_argument("--train", help="Moses files, train.{}.gz, or a JSON Lines file")
    texts.add_argument("--dev-set", help="the same, for --dev")
    texts.add_argument("--test", nargs="+", default=[], metavar="NAME=FILES", help="test sets; the first one decides")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> str:
    """Run what is missing, and write the report; returns its text."""
    args = parse_args(argv)
    changes = dict(map(parse_change, args.set))
    args.work.mkdir(parents=True, exist_ok=True)
    with Destination(args.work / f"ablation-{args.world}").hold():
        world = open_world(args)
        updates = args.updates or world.updates
        variants = [v.changed(changes) if changes else v for v in find_variants(args.variants, world.name)]
        check_records(args, world, variants)
        records = read_records(args.records) if args.report else run_missing(world, variants, updates, args)
        if (BEFORE, 0, 0) not in records:
            raise ValueError(f"--report: {args.records} has no runs yet; leave --report out to run them")
        section = f"ablation {world.name}" + (f" {args.updates}" if args.updates else "")
        plot = args.document.with_name(section.replace(" ", "-") + ".png") if args.document else None
        text = report(world, records, updates, plot)
        keep_table(args.document, "ablation", argv, text, section=section)
    print(text)
    return text


def parse_change(text: str) -> tuple[str, Any]:
    """An option and its value.

    >>> parse_change("english_weight=0.2"), parse_change("distance_metric=cosine")
    (('english_weight', 0.2), ('distance_metric', 'cosine'))
    """
    name, sign, value = text.partition("=")
    if not (name and sign):
        raise ValueError(f"--set {text!r}: pass OPTION=VALUE, such as english_weight=0.2")
    try:
        return name.replace("-", "_"), ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name.replace("-", "_"), value


def open_world(args: argparse.Namespace) -> World:
    """The world of the command line.

    Raises:
        ValueError: an option of it is missing.
    """
    if args.world == "mini":
        languages = parse_languages(args.languages or LANGUAGES[1:])
        return MiniWorld(args.work, languages, scenes=args.scenes, queries=args.queries, dev=args.dev)
    if not (args.train and (args.dev_set if args.dev else args.test)):
        raise ValueError("captions: pass --train, and --test or --dev-set: Moses files (train.{}.gz) or JSON Lines")
    tests = {"dev": args.dev_set} if args.dev else dict(test.partition("=")[::2] for test in args.test)
    if not all(tests.values()):
        raise ValueError(f"--test {' '.join(args.test)}: pass NAME=FILES, such as Multi30k=test.{{}}.gz")
    model = str(expanded(args.model)) if args.model else default_model()
    return TextWorld(
        args.work, model, parse_languages(args.languages or ["de", "fr", "cs"]), args.train, tests, dev=args.dev
    )


def check_records(args: argparse.Namespace, world: World, variants: Sequence[Variant]) -> None:
    """Refuse records of another world or of other settings: they would stand in one table.

    Raises:
        ValueError: the first of them.
    """
    settings = {variant.name: settings_of(world, variant) for variant in variants}
    for record in read_records(args.records).values():
        if missing := [cell for cell in world.headline() if cell not in record.cells()]:
            raise ValueError(f"{args.records}: {record.variant!r} has no score of {missing[0]}; pass another --records")
        expected = settings.get(record.variant, record.settings)
        if record.updates and dict(record.settings) != expected:
            raise ValueError(
                f"{args.records}: {record.variant!r} was run with {dict(record.settings)}, now {expected}; pass "
                "another --records, or remove its lines"
            )


def run_missing(
    world: World, variants: Sequence[Variant], updates: int, args: argparse.Namespace
) -> Mapping[Key, Record]:
    """Run what RECORDS lacks: first all at equal updates, seed after seed, then all at equal operations."""
    records = read_records(args.records)

    def keep(record: Record) -> None:
        append_record(args.records, record)
        records[record.key] = record
        print(score_line(world, record), file=sys.stderr, flush=True)

    def train(variant: Variant, seed: int, steps: int) -> None:
        if (variant.name, seed, steps) not in records:
            keep(train_and_score(world, variant, seed, steps, args.work / f"run-{world.name}"))

    if (BEFORE, 0, 0) not in records:
        for record in untrained_records(world):
            keep(record)
    for seed in args.seeds:
        for variant in variants:
            train(variant, seed, updates)
    runs = same_updates(records, updates)
    for seed in args.seeds:
        for variant in variants:
            train(variant, seed, updates_for_equal_operations(runs, variant.name, updates))
    return records


def score_line(world: World, record: Record) -> str:
    """A finished run in one line."""
    cells = record.cells()
    scores = [cells[cell].mean() for cell in world.headline() if cell in cells] or [h.mean() for h in cells.values()]
    mean = 100 * sum(scores) / len(scores)
    return f"{mean:5.1f}  {record.variant}, seed {record.seed}, {record.updates} updates, {record.seconds:.0f} s"
