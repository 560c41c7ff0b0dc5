"""Add languages to an embedder: translate, check, distil, score before and after, save.

    python -m recipes.add_language ./xvlm2vec pt --corpus english.jsonl --keep it es fr de
    python -m recipes.add_language ./xvlm2vec pt zh --mini 8000 --keep it es fr de     # offline, 12 minutes

The teacher is the model itself, frozen: its English embedding of a text is the target for that text in
all languages, the new ones and those of --keep, which are rehearsed lest they be forgotten. With --mini
the corpus is the mini world's English, the translator its names by people (Unicode CLDR), and
MMMEBMini is scored too. The work lies in OUT.work until all is done; run the same command again to go on.
The corpus stays as OUT.corpus/parallel.jsonl: the next language takes it, with this one in --keep.
"""

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from sentence_transformers import SentenceTransformer

from mmmeb_tasks.data.layout import KINDS, Kind
from mmmeb_tasks.mini.tasks import evaluate_mini
from mmmeb_tasks.mini.write import QUERIES, write_benchmark, write_corpus
from mmmeb_tasks.models.encoder import MMMEBEncoder
from mmmeb_tasks.retrieval import LANGUAGES as PUBLISHED
from xvlm2vec_st import load_parallel
from xvlm2vec_st.building.builder import check_folder
from xvlm2vec_st.training.trainer import parallel_evaluator
from xvlm2vec_st.utils.folders import Destination, expanded, read_object, remove, whole_file
from xvlm2vec_st.utils.peft_version import check_peft

from ..distill import command as distill
from ..shared.command import codes, parser_of
from ..shared.report import score_table
from ..translate import command as translate
from ..translate.translators import DTYPES, MADLAD, Translator
from .held_out import hold_out
from .work import PARTS, corpus_folder, keep_corpus, settle

CORPUS = "parallel.jsonl"
Scores = dict[str, dict[str, float]]
# The paper's training, for models of billions of parameters; and what suits the mini world's.
LARGE = {"steps": -1, "batch-size": 8, "learning-rate": 1e-5, "muon": 0.0}
SMALL = {"steps": 500, "batch-size": 40, "learning-rate": 3e-3, "muon": 0.01}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, by theme."""
    parser = parser_of(__doc__)
    parser.add_argument("model", type=os.path.expanduser, help="the embedder: folder or Hub id")
    parser.add_argument("languages", nargs="+", help="the new ones, as in pt zh")
    parser.add_argument("--out", type=expanded, help="default: the model's name and the new languages")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace OUT in the end; drop another corpus in OUT.work"
    )
    add = parser.add_argument_group("corpus").add_argument
    add("--corpus", nargs="+", metavar="SOURCE", help="English rows, as recipes.translate takes them")
    add("--mini", type=int, metavar="SCENES", help="instead: the mini world, two rows a scene")
    add("--images", type=expanded, help="the folder of the images; default: the source's own")
    add("--outside-images", action="store_true", help="take images that lie outside that folder")
    add("--keep", nargs="*", default=[], metavar="LANGUAGE", help="what the model has learned before")
    add(
        "--rehearsal", type=float, default=0.7, help="the share of rows in which a kept language is rehearsed"
    )
    add("--translator", help=f"as recipes.translate takes it; default: {MADLAD}, with --mini: cldr")
    add("--dtype", choices=tuple(DTYPES), default="fp32", help="of the translator")
    add("--eval-rows", type=int, default=200, help="rows held out for the scores")
    add("--tasks", nargs="+", choices=KINDS, default=KINDS, help="of MMMEBMini")
    add("--queries", type=int, default=QUERIES, help="of MMMEBMini, a task and language")
    add = parser.add_argument_group("training").add_argument
    add("--steps", type=int, help="weight updates; default: one pass over the corpus, with --mini: 500")
    add(
        "--batch-size", type=int, help="rows an update, lower it when memory runs out; default: 8, --mini: 40"
    )
    add("--learning-rate", type=float, help="default: 1e-5; with --mini 3e-3, of embeddings and norms")
    add("--muon", type=float, metavar="RATE", help="of all other matrices; default: none, with --mini 0.01")
    add(
        "--lora", type=int, metavar="RANK", help="train a LoRA on the language model; default: all but vision"
    )
    add("--bf16", action="store_true", help="autocast")
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.languages, args.keep = codes(args.languages), codes(args.keep)
    return args


def main(argv: Sequence[str] | None = None, translator: Translator | None = None) -> Path:
    """Add the languages; returns the finished folder. `translator`: instead of --translator's."""
    args = parse_args(argv)
    check_options(args)
    place = destination(args)
    with place.hold():
        if place.ended is None:
            check_folders(args, place)
            if place.waiting():
                place.finish(place.final)
            else:
                print(run_in(place, args, translator))
    corpus = f"; its corpus: {corpus_folder(place.named) / CORPUS}" if args.corpus else ""
    print(f"Done: {place.named}, its report in {place.named}/report{corpus}")
    return place.named


def run_in(place: Destination, args: argparse.Namespace, translator: Translator | None) -> str:
    """The five steps, in the work folder; returns the scores as tables."""
    work, codes = place.work, [*args.languages, *args.keep]

    print(f"1/5  A parallel corpus in {', '.join(codes)}")
    corpus = parallel_corpus(args, codes, work, translator)
    train, held_out = hold_out(
        corpus,
        new=args.languages,
        kept=args.keep,
        rows=args.eval_rows,
        rehearsal=args.rehearsal,
        seed=args.seed,
    )

    print("2/5  Where the model stands")
    # Where the corpus was made, translate has looked at its images' names.
    rows = load_parallel(held_out, codes, outside_images=True, show_progress=False)
    data = benchmarks(args, work) if args.mini else {}
    teacher = SentenceTransformer(args.model)
    before = scored(teacher, teacher, rows, codes, data, args.tasks, work / "before.json")

    print(f"3/5  Distilling {', '.join(args.languages)}; the model's own English is the target")
    built = work / "model"
    if not built.is_dir():
        distill.main(training(args, codes, train, built))

    print("4/5  Where it stands now")
    after = scored(
        SentenceTransformer(str(built)), teacher, rows, codes, data, args.tasks, work / "after.json"
    )

    print("5/5  Saving")
    told = {"new": args.languages, "kept": args.keep, "before": before, "after": after}
    report = built / "report"
    report.mkdir(exist_ok=True)
    (report / "languages.json").write_text(json.dumps(told, indent=2) + "\n")
    table = "\n\n".join(tables(before, after)) + "\n"
    (report / "languages.md").write_text(table, "utf-8")
    for file in corpus.parent.glob(f"{corpus.stem}.report.*"):
        shutil.copy(file, report / file.name.replace(corpus.stem, "corpus"))
    place.finish(built)
    return table


def check_options(args: argparse.Namespace) -> None:
    """Refuse what cannot be done.

    Raises:
        ValueError: no corpus, or two; a language both new and kept; the model's folder is missing; --lora
            with versions of transformers and peft that do not work together.
    """
    if bool(args.corpus) == bool(args.mini):
        raise ValueError("pass --corpus SOURCE or --mini SCENES, one of them")
    if args.lora:
        check_peft("--lora")
    check_folder(args.model)
    if both := set(args.languages) & set(args.keep):
        raise ValueError(f"{', '.join(sorted(both))}: new and in --keep; a language is one or the other")


def destination(args: argparse.Namespace) -> Destination:
    """OUT and OUT.work; with OUT, its corpus goes into place."""
    out = args.out or Path("-".join([Path(args.model).name, *args.languages]))
    place = Destination(out, overwrite=args.overwrite, suffix=".work")
    if args.corpus:
        kept = place.work / CORPUS, corpus_folder(place.out)
        place.after = lambda: keep_corpus(*kept, replace=args.overwrite)
    return place


def check_folders(args: argparse.Namespace, place: Destination) -> None:
    """Refuse an OUT that cannot be filled; drop what a run with other arguments left: see `settle`.

    Raises:
        ValueError: OUT or OUT.corpus is not empty; an unfinished run of another corpus, or of something
            else, lies in OUT.work.
    """
    place.check([("MODEL", args.model if Path(args.model).is_dir() else None)])
    if args.corpus:
        Destination(corpus_folder(place.named), overwrite=args.overwrite).check()
    place.check_work(*PARTS)
    settle(place.work, args)


def check_arguments(args: argparse.Namespace) -> tuple[Path, Path]:
    """(OUT, OUT.work), checked.

    Raises:
        ValueError: as `check_options` and `check_folders`.
    """
    check_options(args)
    place = destination(args)
    check_folders(args, place)
    return place.named, place.work


def parallel_corpus(
    args: argparse.Namespace, codes: Sequence[str], work: Path, translator: Translator | None
) -> Path:
    """The corpus in all languages, translated and checked by `recipes.translate`."""
    out = work / CORPUS
    if out.is_file():
        return out
    sources, name = args.corpus, args.translator or (MADLAD if args.corpus else "cldr")
    if args.mini:
        if not (work / "english").is_dir():
            write_corpus(work / "english", ["en"], scenes=args.mini, seed=args.seed + 1)
        sources = [str(work / "english" / "parallel.jsonl")]
    words = ["--corpus", *sources, "--to", *codes, "--out", str(out), "--translator", name]
    words += ["--dtype", args.dtype, *(["--images", str(args.images)] if args.images else [])]
    words += ["--outside-images"] if args.outside_images else []
    return translate.main(words, translator)


def benchmarks(args: argparse.Namespace, work: Path) -> dict[str, Path]:
    """`{language: data folder of MMMEBMini}` for English, the kept and the new languages.

    Where MMMEB has no instructions in a language, its texts stand in a folder of their own in the place
    of the English ones, so that the encoder puts the English instruction before them. So the mini
    world's training rows are made.
    """
    known = ["en", *(code for code in [*args.languages, *args.keep] if code in PUBLISHED)]
    folders = {}
    for code in ["en", *args.languages, *args.keep]:
        own = code not in known
        folder = work / ("mini-" + (code if own else "known"))
        if not folder.is_dir():
            remove(work / "mini.part")  # what a killed run left
            write_benchmark(work / "mini.part", [code] if own else known, queries=args.queries)
            if own:
                for file in (work / "mini.part" / "datasets").glob(f"mini_{code}_*"):
                    file.rename(file.with_name(file.name.replace(f"mini_{code}_", "mini_en_", 1)))
            (work / "mini.part").rename(folder)
        folders[code] = folder
    return folders


def scored(
    model: SentenceTransformer,
    teacher: SentenceTransformer,
    rows: object,
    codes: Sequence[str],
    data: dict[str, Path],
    tasks: Sequence[Kind],
    note: Path,
) -> dict[str, Scores]:
    """`{set: {language: {task: 0 to 1}}}`; sets are "held out" and, where `data` has it, "MMMEBMini"."""
    if note.is_file():
        return read_object(note, "delete it; the scores are then taken again")
    found = parallel_evaluator(rows, codes, teacher)(model)
    ways = {"en → x": "src2trg_accuracy", "x → en": "trg2src_accuracy"}
    scores = {
        "held out": {
            code: {way: float(found[f"{code}_{key}"]) for way, key in ways.items()} for code in codes
        }
    }
    if data:
        encoder = MMMEBEncoder(model)
        scores["MMMEBMini"] = {
            code: evaluate_mini(
                encoder, languages=[code if code in PUBLISHED else "en"], data_root=folder, tasks=tasks
            ).popitem()[1]
            for code, folder in data.items()
        }
    with whole_file(note) as part:
        part.write_text(json.dumps(scores, indent=2) + "\n", "utf-8")
    return scores


def tables(before: dict[str, Scores], after: dict[str, Scores]) -> list[str]:
    """Before and after as Markdown, a table a set of scores."""
    return [f"{name}\n\n{score_table(before[name], after[name])}" for name in before]


def training(args: argparse.Namespace, codes: Sequence[str], corpus: Path, out: Path) -> list[str]:
    """The command line of `recipes.distill`."""
    usual = SMALL if args.mini else LARGE
    own = {key: getattr(args, key.replace("-", "_")) for key in usual}
    chosen = {key: usual[key] if value is None else value for key, value in own.items()}
    options = {
        "student": args.model,
        "corpus": corpus,
        "languages": ",".join(codes),
        "out": out,
        "warmup": max(chosen["steps"] // 20, 0),
        "max-grad-norm": 1 if args.mini else 0.3,
        "eval-rows": 0,
        "save-steps": 100,
        "seed": args.seed,
    }
    options |= {key: value for key, value in chosen.items() if value}
    options |= {"lora": args.lora} if args.lora else {}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    words += ["--outside-images", *(["--bf16"] if args.bf16 else [])]
    begun = out.with_name(out.name + ".partial") / "arguments.json"
    return words + (["--resume"] if begun.is_file() else [])
