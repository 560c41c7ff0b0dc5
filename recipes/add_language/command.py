"""Add languages to an embedder: the five steps.

The command line is in `__main__` and `options`.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from sentence_transformers import SentenceTransformer

from mmmeb_tasks.data.layout import Kind
from mmmeb_tasks.mini.tasks import evaluate_mini
from mmmeb_tasks.mini.world import LANGUAGES as INSTRUCTED
from mmmeb_tasks.mini.write import write_benchmark, write_corpus
from mmmeb_tasks.models.encoder import MMMEBEncoder
from xvlm2vec_st import load_parallel
from xvlm2vec_st.training.evaluation import parallel_evaluator
from xvlm2vec_st.utils.folders import Destination, read_object, remove, whole_file
from xvlm2vec_st.utils.hub_names import check_folder
from xvlm2vec_st.utils.peft_version import check_peft

from ..distill.command import distill
from ..distill.options import DistillArguments, DistillTrainingArguments
from ..shared.report import score_table
from ..translate.command import TranslateArguments, translate
from ..translate.names import MADLAD
from ..translate.translators import Translator
from .held_out import hold_out
from .options import LARGE, SMALL, parse_args
from .work import PARTS, corpus_folder, drop_outdated_work, keep_corpus

CORPUS = "parallel.jsonl"
Scores = dict[str, dict[str, float]]


def main(argv: Sequence[str] | None = None, translator: Translator | None = None) -> Path:
    """Add languages as the command line says; returns the finished folder."""
    return add_languages(parse_args(argv), translator)


def add_languages(args: argparse.Namespace, translator: Translator | None = None) -> Path:
    """Add the languages; returns the finished folder. `translator` replaces that of --translator."""
    check_options(args)
    place = output_destination(args)
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
    """Run the five steps in the work folder; returns the scores as tables."""
    work, languages = place.work, [*args.languages, *args.known_languages]

    print(f"1/5  A parallel corpus in {', '.join(languages)}")
    corpus = build_corpus(args, languages, work, translator)
    train, held_out = hold_out(
        corpus,
        new=args.languages,
        known=args.known_languages,
        rows=args.eval_rows,
        rehearsal=args.rehearsal,
        seed=args.seed,
    )

    print("2/5  Scoring the model")
    # `translate` has checked where the images lie.
    rows = load_parallel(held_out, languages, outside_images=True, show_progress=False)
    data = write_benchmarks(args, work) if args.mini else {}
    teacher = SentenceTransformer(args.model)
    before = score(teacher, teacher, rows, languages, data, args.tasks, work / "before.json")

    print(f"3/5  Distilling {', '.join(args.languages)}; the model's own English is the target")
    built = work / "model"
    if not built.is_dir():
        distill_languages(args, languages, train, built)

    print("4/5  Scoring the new model")
    student = SentenceTransformer(str(built))
    after = score(student, teacher, rows, languages, data, args.tasks, work / "after.json")

    print("5/5  Saving")
    report = built / "report"
    report.mkdir(exist_ok=True)
    scores = {"new": args.languages, "kept": args.known_languages, "before": before, "after": after}
    (report / "languages.json").write_text(json.dumps(scores, indent=2) + "\n")
    tables = "\n\n".join(f"{name}\n\n{score_table(before[name], after[name])}" for name in before) + "\n"
    (report / "languages.md").write_text(tables, "utf-8")
    for file in corpus.parent.glob(f"{corpus.stem}.report.*"):
        shutil.copy(file, report / file.name.replace(corpus.stem, "corpus"))
    place.finish(built)
    return tables


def check_options(args: argparse.Namespace) -> None:
    """Check options against each other.

    Raises:
        ValueError: no corpus, or two; a language both new and known; the model's folder is missing;
            --new-tokens with --lora-rank, or --join-ascii without --new-tokens; --lora-rank with versions of
            transformers and peft that do not work together.
    """
    if bool(args.corpus) == bool(args.mini):
        raise ValueError("pass --corpus SOURCE or --mini SCENES, one of them")
    if args.lora_rank:
        check_peft("--lora-rank")
    if args.new_tokens and args.lora_rank:
        raise ValueError(
            "--lora-rank with --new-tokens: an adapter does not train embeddings, and those of new tokens must learn; "
            "leave one of them out"
        )
    if args.join_ascii and not args.new_tokens:
        raise ValueError("--join-ascii does nothing without --new-tokens; pass both, or leave it out")
    check_folder(args.model)
    if both := set(args.languages) & set(args.known_languages):
        raise ValueError(
            f"{', '.join(sorted(both))}: both new and in --known-languages; a language is one or the other"
        )


def output_destination(args: argparse.Namespace) -> Destination:
    """OUT and OUT.work; the corpus moves into place after OUT."""
    out = args.out or Path("-".join([Path(args.model).name, *args.languages]))
    place = Destination(out, overwrite=args.overwrite, suffix=".work")
    if args.corpus:
        paths = place.work / CORPUS, corpus_folder(place.out)
        place.after = lambda: keep_corpus(*paths, replace=args.overwrite)
    return place


def check_folders(args: argparse.Namespace, place: Destination) -> None:
    """Refuse an OUT that cannot be filled; drop outdated work: see `drop_outdated_work`.

    Raises:
        ValueError: OUT or OUT.corpus is not empty; OUT.work holds an unfinished run of another corpus, or
            foreign files.
    """
    place.check([("MODEL", args.model if Path(args.model).is_dir() else None)])
    if args.corpus:
        Destination(corpus_folder(place.named), overwrite=args.overwrite).check()
    place.check_work(*PARTS)
    drop_outdated_work(place.work, args)


def check_arguments(args: argparse.Namespace) -> tuple[Path, Path]:
    """(OUT, OUT.work), checked.

    Raises:
        ValueError: see `check_options` and `check_folders`.
    """
    check_options(args)
    place = output_destination(args)
    check_folders(args, place)
    return place.named, place.work


def build_corpus(args: argparse.Namespace, languages: Sequence[str], work: Path, translator: Translator | None) -> Path:
    """Translate the corpus into all languages, and check it."""
    out = work / CORPUS
    if out.is_file():
        return out
    sources = args.corpus
    if args.mini:
        if not (work / "english").is_dir():
            write_corpus(work / "english", ["en"], scenes=args.mini, seed=args.seed + 1)
        sources = [str(work / "english" / "parallel.jsonl")]
    arguments = TranslateArguments(
        corpus=sources,
        languages=list(languages),
        out=out,
        translator=args.translator or (MADLAD if args.corpus else "cldr"),
        dtype=args.dtype,
        images=args.images,
        outside_images=args.outside_images,
    )
    return translate(arguments, translator)


def write_benchmarks(args: argparse.Namespace, work: Path) -> dict[str, Path]:
    """`{language: data folder of MMMEBMini}` for English, the known and the new languages.

    MMMEB has no instructions in some languages. Their texts are written to a separate folder under the name
    of English, so that the encoder puts the English instruction before them, as in the training rows.
    """
    known = ["en", *(code for code in [*args.languages, *args.known_languages] if code in INSTRUCTED)]
    folders = {}
    for code in ["en", *args.languages, *args.known_languages]:
        separate = code not in known
        folder = work / ("mini-" + (code if separate else "known"))
        if not folder.is_dir():
            remove(work / "mini.part")  # left by a killed run
            write_benchmark(work / "mini.part", [code] if separate else known, queries=args.queries)
            if separate:
                for file in (work / "mini.part" / "datasets").glob(f"mini_{code}_*"):
                    file.rename(file.with_name(file.name.replace(f"mini_{code}_", "mini_en_", 1)))
            (work / "mini.part").rename(folder)
        folders[code] = folder
    return folders


def score(
    model: SentenceTransformer,
    teacher: SentenceTransformer,
    rows: Dataset,
    languages: Sequence[str],
    data: dict[str, Path],
    tasks: Sequence[Kind],
    note: Path,
) -> dict[str, Scores]:
    """`{set: {language: {task: 0 to 1}}}`; the sets are "held out" and, with `data`, "MMMEBMini".

    The scores are stored in the file `note`, and read from there if it exists.
    """
    if note.is_file():
        return read_object(note, "delete it; the model is then scored again")
    result = parallel_evaluator(rows, languages, teacher)(model)
    ways = {"en → x": "src2trg_accuracy", "x → en": "trg2src_accuracy"}
    scores = {
        "held out": {code: {way: float(result[f"{code}_{key}"]) for way, key in ways.items()} for code in languages}
    }
    if data:
        encoder = MMMEBEncoder(model)
        scores["MMMEBMini"] = {
            code: evaluate_mini(
                encoder, languages=[code if code in INSTRUCTED else "en"], data_root=folder, tasks=tasks
            ).popitem()[1]
            for code, folder in data.items()
        }
    with whole_file(note) as part:
        part.write_text(json.dumps(scores, indent=2) + "\n", "utf-8")
    return scores


def distill_languages(args: argparse.Namespace, languages: Sequence[str], corpus: Path, out: Path) -> Path:
    """Train the student; continue an unfinished run. Returns its folder."""
    defaults = SMALL if args.mini else LARGE
    chosen = {key: value if getattr(args, key) is None else getattr(args, key) for key, value in defaults.items()}
    arguments = DistillArguments(
        student=args.model,
        corpus=[str(corpus)],
        languages=list(languages),
        outside_images=True,
        eval_rows=0,
        lora_rank=args.lora_rank,
        muon_learning_rate=chosen["muon_learning_rate"] or None,
        new_tokens=args.new_tokens,
        new_tokens_for=args.languages if args.new_tokens else [],
        join_ascii=args.join_ascii,
    )
    begun = out.with_name(out.name + ".partial") / "arguments.json"
    training = DistillTrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=int(chosen["batch_size"]),
        max_steps=int(chosen["steps"]),
        learning_rate=chosen["learning_rate"],
        warmup_steps=max(int(chosen["steps"]) // 20, 0),
        max_grad_norm=1.0 if args.mini else 0.3,
        save_steps=100,
        bf16=args.bf16,
        seed=args.seed,
        resume_from_checkpoint="true" if begun.is_file() else None,
    )
    return distill(arguments, training)
