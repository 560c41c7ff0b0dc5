"""Build a parallel corpus from English rows: read, translate, merge, report.

The command line is in `__main__` and `options`.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState
from sentence_transformers import SentenceTransformer

from xvlm2vec_st.data.corpus import ParallelRow, check_languages
from xvlm2vec_st.images.archives import resolve_image_root
from xvlm2vec_st.images.paths import split_place
from xvlm2vec_st.utils.folders import MOVING, FileDestination, remove
from xvlm2vec_st.utils.texts import printable

from . import report
from .dictionary import mini_dictionary
from .languages import language
from .merge import Merged, Refused, corpus_lines, merge, refuse_unlike, refused_lines, without_image
from .mmeb import SUBSETS, check_images, check_subsets, download_mmeb, mmeb_records, mmeb_rows
from .options import TranslateArguments, parse_args
from .schedule import TranslationStats, hash_texts, plan, wanted_fields, waste_of, work_through
from .sources import Options, read_sources, sample
from .translation_memory import Memory, check_run, find_changed_settings, read_memory, read_run, write_whole
from .translators import Translator, load_translator

# What a run writes in OUT.work.
PARTS = ("run.json*", "shard-*", "results", MOVING, "moving.part.json")


def main(argv: Sequence[str] | None = None, translator: Translator | None = None) -> Path:
    """Translate as the command line says; returns OUT. `translator` replaces that of --translator."""
    return translate(parse_args(argv), translator)


def translate(args: TranslateArguments, translator: Translator | None = None) -> Path:
    """Translate English rows, check the translations, and write the parallel corpus and its report.

    Args:
        args: the options.
        translator: used instead of `args.translator`.

    Returns:
        The corpus file.

    Raises:
        ValueError: an option, a source or a language is invalid; OUT exists; no translation was kept.
    """
    place = output_destination(args)
    args = replace(args, out=place.out)  # links are resolved, because image paths are relative to the real folder
    shard = check_options(args, place.work)
    with ExitStack() as locks:
        if PartialState().is_main_process:
            # The shards of a corpus may run at the same time, but each of them once.
            locks.enter_context(place.hold(shared=bool(args.shard)))
            if args.shard:
                locks.enter_context(FileDestination(place.work / f"shard-{shard[0] + 1}").hold())
        check_folders(args, place)
        run_in(place, args, translator, shard)
    return place.named


def output_destination(args: TranslateArguments) -> FileDestination:
    """OUT and OUT.work."""
    # Without a translator, the work of a run with one may lie there.
    keep = args.keep_work or args.translator == "none"
    return FileDestination(args.out, overwrite=args.overwrite, suffix=".work", keep_work=keep)


def run_in(
    place: FileDestination, args: TranslateArguments, translator: Translator | None, shard: tuple[int, int]
) -> None:
    """Read, translate in OUT.work, merge, and move the results into place."""
    work = place.work

    # 1. Rows: everything that can be wrong with the sources shows before a translator is loaded.
    rows, refused = read_rows(args)
    if args.check_images:
        rows, missing = without_image(rows)
        refused += missing
    for entry in refused[:10]:
        print(printable(f"refused: row {entry.id}: {entry.detail}"))
    print(f"{len(rows):,} English rows, {len(refused):,} refused for their image")

    # 2. Translate what is not known, batch by batch, into OUT.work.
    translator = translator or choose_translator(args)
    known, too_long, stats = translate_rows(rows, translator, args, work, shard)
    print(stats)
    if args.shard:
        print(f"shard {args.shard} done; when all are, run the same command without --shard to merge")
        return

    # 3. Join, repair, check, report; OUT appears last and whole.
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        known = read_memory([*args.memory, work]) if work.is_dir() else known
        merged = merge(
            rows, args.languages, known, too_long=too_long, skip=args.skip_check, complete=translator is not None
        )
        merged.refused[:0] = refused
        if args.quality:
            merged = refuse_unlike(merged, SentenceTransformer(args.quality), args.quality_min)
        write_results(merged, args, place, stats, translator.name if translator else "none")


def check_folders(args: TranslateArguments, place: FileDestination) -> None:
    """Refuse an OUT that is there, and an OUT.work that is not a translation's.

    Raises:
        ValueError: either; a corpus that is OUT itself.
    """
    place.check_files(targets(args.out))
    place.check_inputs(("--corpus", source) for source in args.corpus if os.path.exists(source))
    place.check_work(*PARTS)


def targets(out: Path) -> list[Path]:
    """The files that a run writes, the corpus last."""
    return [*map(out.with_suffix, (".report.md", ".report.html", ".refused.jsonl")), out]


def check_options(args: TranslateArguments, work: Path) -> tuple[int, int]:
    """Refuse what cannot be done; returns (this shard, how many).

    Raises:
        ValueError: no source; an unknown language, subset, column or shard.
    """
    if not args.corpus and not args.mmeb:
        raise ValueError("no source: pass --corpus FILE, or --mmeb SUBSET")
    check_languages(args.languages)
    for code in args.languages:
        language(code)
    args.mmeb = list(SUBSETS) if args.mmeb == ["all"] else args.mmeb
    check_subsets(args.mmeb)
    if wrong := [pair for pair in args.columns if "=" not in pair]:
        raise ValueError(f"--columns {wrong[0]}: pass OURS=THEIRS, as in en=caption")
    state = PartialState()
    shard = (state.process_index, state.num_processes)
    if args.shard:
        number, _, count = args.shard.partition("/")
        if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
            raise ValueError(f"--shard {args.shard}: give K/N, K from 1 to N, as in 1/4")
        shard = (int(number) - 1, int(count))
    if args.overwrite and args.shard:
        raise ValueError(f"--overwrite with --shard would drop the other shards' work; remove {work} yourself")
    return shard


def read_rows(args: TranslateArguments) -> tuple[list[ParallelRow], list[Refused]]:
    """(rows of all sources, sides of MMEB rows whose image and text do not agree)."""
    options = Options(
        languages=args.languages,
        columns=dict(pair.split("=", 1) for pair in args.columns),
        images=resolve_image_root(args.images),
        outside_images=args.outside_images,
        image_output=args.out.with_suffix(".images"),
        limit=args.limit,
        seed=args.seed,
        source_language=args.source_language,
    )
    rows = read_sources(args.corpus, options) if args.corpus else []
    wrong = list(options.refused)
    if args.mmeb:
        data = args.mmeb_data or download_mmeb(args.mmeb)
        for subset in args.mmeb:
            chosen = sample(mmeb_records(data, subset), args.limit, f"{args.seed}/{subset}")
            own: list[ParallelRow] = []
            for number, record in chosen:
                good, bad = mmeb_rows(number, record, subset, options.images or data, args.outside_images)
                own += good
                wrong += bad
            if args.check_images:
                check_images(subset, own)
            rows += own
    return rows, [Refused(i, "", "image", detail, english) for i, detail, english in wrong]


def choose_translator(args: TranslateArguments) -> Translator | None:
    """The translator that --translator names, its languages checked.

    Raises:
        ValueError: a language that it does not know, with the nearest.
    """
    if args.translator == "none":
        return None
    if args.translator == "cldr":
        return mini_dictionary(args.languages)
    translator = load_translator(
        args.translator, dtype=args.dtype, device=args.device, beams=args.beams, device_map=args.device_map
    )
    for code in args.languages:
        translator.check_language(code)
    return translator


def translate_rows(
    rows: Sequence[ParallelRow],
    translator: Translator | None,
    args: TranslateArguments,
    work: Path,
    shard: tuple[int, int],
) -> tuple[dict, set, TranslationStats]:
    """(what is known now, what is too long, what was done).

    Raises:
        ValueError: a run of another kind in OUT.work; what the translator and the memory raise.
    """
    wanted = wanted_fields(rows, args.languages)
    base = read_memory(args.memory)
    requested = sum(sum(fields.values()) for fields in wanted.values())
    texts = {code: [t for t in fields if (code, t) not in base] for code, fields in wanted.items()}
    if translator is None or not any(texts.values()):
        return base, set(), TranslationStats(requested=requested, unique=sum(map(len, wanted.values())))
    for code in args.languages:
        translator.check_language(code)
    batches, too_long = plan(texts, translator, args.tokens_per_batch)
    print(f"{len(batches):,} batches of at most {args.tokens_per_batch:,} tokens, padding {waste_of(batches):.1%}")
    settings = {"translator": translator.name, "tokens-per-batch": args.tokens_per_batch}
    settings |= {f"corpus {code}": hash_texts(fields) for code, fields in texts.items()}
    state = PartialState()
    if args.overwrite and state.is_main_process and find_changed_settings(read_run(work), settings):
        remove(work)
    state.wait_for_everyone()
    check_run(work, settings)
    memory = Memory(work, shard)
    memory.known |= base
    stats = work_through(batches, translator, memory, shard=shard, batch_tokens=args.tokens_per_batch)
    stats.requested = requested
    return memory.known, too_long, stats


def write_results(
    merged: Merged, args: TranslateArguments, place: FileDestination, stats: TranslationStats, translator: str
) -> None:
    """The report, what was refused, and at last the corpus.

    Raises:
        ValueError: nothing was kept; the disk is full; a file appeared meanwhile at one of their places.
    """
    out, content = args.out, (merged, args.languages, stats, translator)
    kept = sum(len(row.translations) for row in merged.kept)
    *reports, corpus = targets(out)
    markdown, page, refused = (place.drafts / path.name for path in reports)
    remove(place.drafts)
    place.drafts.mkdir(parents=True)
    write_whole(markdown, [report.markdown(*content)])
    write_whole(page, [report.html_page(*content)])
    write_whole(refused, refused_lines(merged.refused))
    if kept:
        write_whole(place.drafts / corpus.name, corpus_lines(merged.kept, out.parent))
    place.finish_files([*reports, corpus] if kept else reports)
    if not kept:
        raise ValueError(f"no translation was kept; {reports[0]} tells why")
    print(
        f"{place.named}: {len(merged.kept):,} rows, {kept:,} translations; refused {len(merged.refused):,}: "
        f"{out.with_suffix('.report.html')}"
    )
    images = [row.image for row in merged.kept if row.image is not None]
    if hint := how_to_train(images, args.images, out.parent):
        print(hint)


def how_to_train(images: Sequence[str], archive: Path | None, folder: Path) -> str | None:
    """The options that distill needs for a corpus' images, or None.

    >>> how_to_train(["/data/1.png"], None, Path("/out"))
    'its images lie outside /out: train with --outside-images'
    >>> how_to_train(["/out/1.png"], None, Path("/out"))
    """
    if any(split_place(image)[1] is not None for image in images):
        return f"its images lie in {archive}: train with --images {archive}"
    if all(Path(image).is_relative_to(folder) for image in images):
        return None
    return f"its images lie outside {folder}: train with --outside-images"
