"""Sources of English rows: files, datasets, catalogues. All become `ParallelRow`s with ids.

A source is a path, recognised by its suffix, or `hf:NAME[:CONFIG][@SPLIT]`, `xmmeb:LANGUAGE`, `cldr`.
Translations that a source already has are kept and checked, not translated again.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from xvlm2vec_st.data.corpus import (
    ParallelRow,
    check_id,
    check_image,
    parse_json,
    parse_object,
    parse_row,
    shorten,
    without_image_tokens,
)
from xvlm2vec_st.utils.texts import printable

from . import catalogues as human
from .mmeb import authors_row
from .readers import dataset_records, lines_of, parquet_records, table_records
from .records import Options, Record, parse_record, parse_text, place_of

Item = TypeVar("Item")
# Kinds of text that are read from gzip files too.
PACKED = (".jsonl", ".json", ".csv", ".tsv", ".tmx")
XMMEB = "swap-uniba/xMMEB-train"


def read_sources(specs: Sequence[str], options: Options) -> list[ParallelRow]:
    """The rows of all sources, in order; with several, ids begin with the source's name.

    Raises:
        ValueError: what a reader finds; an id twice, with where it stands.
    """
    rows: list[ParallelRow] = []
    seen: dict[str, str] = {}
    names = names_of(specs) if len(specs) > 1 else {}
    for spec in specs:
        for row in sample(read_source(spec, options), options.limit, f"{options.seed}/{stem_of(spec)}"):
            row_id = f"{names[spec]}/{row.id}" if names else row.id
            if row_id in seen:
                where = spec if seen[row_id] == spec else f"{seen[row_id]} and {spec}"
                raise ValueError(f"{where}: id {row_id!r} twice; every row needs its own")
            seen[row_id] = spec
            english = without_image_tokens(row.english)
            if not english.strip():
                raise ValueError(f"{spec}: id {row_id!r}: no English beside the image token; leave it out")
            translations = {code: without_image_tokens(text) for code, text in row.translations.items()}
            translations = {code: text for code, text in translations.items() if text.strip()}
            rows.append(ParallelRow(row_id, row.image, english, translations))
    if not rows and not options.refused:
        raise ValueError(f"{', '.join(specs)}: no rows")
    return rows


def stem_of(spec: str) -> str:
    """A source's name: its file's without the suffix.

    >>> stem_of("a/train.jsonl"), stem_of("hf:owner/name")
    ('train', 'hf-owner-name')
    """
    return Path(spec).stem if "." in spec else spec.replace(":", "-").replace("/", "-")


def names_of(specs: Sequence[str]) -> dict[str, str]:
    """`{spec: name}`: the stem, and where stems repeat the shortest end of the path that is its own.

    >>> list(names_of(["a/train.jsonl", "b/train.jsonl", "x.csv", "x.tsv", "cldr"]).values())
    ['a/train', 'b/train', 'x.csv', 'x.tsv', 'cldr']
    """
    tries = {}
    for spec in specs:
        paths = Path(spec).with_suffix("").parts, Path(spec).parts
        ends = [Path(*parts[-n:]).as_posix() for parts in paths for n in range(1, len(parts) + 1)]
        tries[spec] = [stem_of(spec), *ends]
    taken = {spec: {name for other in tries if other != spec for name in tries[other]} for spec in tries}
    return {spec: next((name for name in names if name not in taken[spec]), spec) for spec, names in tries.items()}


def sample(items: Iterable[Item], limit: int | None, seed: str) -> list[Item]:
    """At most `limit` items drawn with a seed in one pass, in their order; all where limit is None.

    >>> sample(range(100), 3, "0") == sample(range(100), 3, "0") != [0, 1, 2]
    True
    """
    if limit is None:
        return list(items)
    rng = random.Random(seed)
    drawn: list[tuple[int, Item]] = []
    for index, item in enumerate(items):
        if index < limit:
            drawn.append((index, item))
        elif (place := rng.randrange(index + 1)) < limit:
            drawn[place] = (index, item)
    return [item for _, item in sorted(drawn, key=lambda pair: pair[0])]


def read_source(spec: str, options: Options) -> Iterator[ParallelRow]:
    """The rows of one source.

    Raises:
        ValueError: an unknown kind of source; no such file; what its reader finds.
    """
    kind, _, rest = spec.partition(":")
    if spec == "cldr":
        return human.cldr_rows(options.languages)
    if kind == "hf":
        return record_rows(dataset_records(rest), options, root=Path())
    if kind == "xmmeb":
        return authors_rows(dataset_records(f"{XMMEB}:{rest}"), Path(), options, config=rest)
    path = Path(spec)
    if human.is_moses(path):
        return human.moses_rows(path, options.languages)
    readers: dict[str, Callable[[Path, Options], Iterator[ParallelRow]]] = {
        ".jsonl": jsonl_rows,
        ".json": coco_rows,
        ".csv": table_rows,
        ".tsv": table_rows,
        ".parquet": table_rows,
        ".po": catalogue_rows,
        ".mo": catalogue_rows,
        ".tmx": lambda path, options: human.tmx_rows(path, options.languages),
    }
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if path.suffix == ".gz" and suffix not in PACKED:
        raise ValueError(f"{path}: {suffix or 'such'} files cannot be read compressed; decompress it: gunzip {path}")
    if suffix not in readers:
        raise ValueError(
            f"{spec}: unknown kind of source; known: {', '.join(readers)}, FILE.en beside FILE.LANGUAGE, "
            "hf:NAME[:CONFIG][@SPLIT], xmmeb:LANGUAGE, cldr"
        )
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return readers[suffix](path, options)


def jsonl_rows(path: Path, options: Options) -> Iterator[ParallelRow]:
    """Rows of a JSONL file: ours, the authors' (`text_en`, `text_lang`), or with other column names."""
    root = options.images or path.parent
    for number, line in lines_of(path):
        try:
            if not options.columns and number > 1 and '"text_lang"' not in line:
                yield parse_line(line, number, options, root)
                continue
            record = parse_object(line, number)
            if "text_en" in record and "text_lang" in record:
                yield from authors_rows([record], root, options, start=number)
            elif options.columns:
                yield parse_record(record, number, options, root)
            else:
                yield parse_line(line, number, options, root)
        except ValueError as error:
            raise ValueError(f"{path}, {error}") from error


def parse_line(line: str, number: int, options: Options, root: Path) -> ParallelRow:
    """A line of our own format as a row."""
    row = parse_row(line, number, options.languages)
    image = place_of(row.image, root, options, f"line {number}, id {shorten(row.id)}")
    return ParallelRow(row.id, image, row.english, row.translations)


def table_rows(path: Path, options: Options) -> Iterator[ParallelRow]:
    """Rows of a CSV or TSV file with a header, or of a parquet file."""
    records = parquet_records(path) if path.suffix == ".parquet" else table_records(path)
    try:
        yield from record_rows(records, options, root=options.images or path.parent)
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from error


def record_rows(records: Iterable[Record], options: Options, *, root: Path) -> Iterator[ParallelRow]:
    """Records of a table as rows; those that --limit leaves out are not looked at."""
    for number, record in sample(enumerate(records, 1), options.limit, str(options.seed)):
        yield parse_record(record, number, options, root)


def coco_rows(path: Path, options: Options) -> Iterator[ParallelRow]:
    """COCO captions: `images` with file names, `annotations` with captions; the annotation's id.

    Raises:
        ValueError: no JSON; something missing or of another kind, with its place.
    """
    try:
        data = parse_json("".join(line for _, line in lines_of(path)))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: COCO captions have 'images' and 'annotations', got {type(data).__name__}")
    names: dict[str, str] = {}
    for number, image in enumerate(entries(data, "images", path), 1):
        where = f"{path}: image {number}"
        name = check_image(image.get("file_name"), where)
        if name is None:
            raise ValueError(f"{where}: no 'file_name'")
        names[check_id(image.get("id"), where)] = name
    root = options.images or path.parent
    for number, entry in enumerate(entries(data, "annotations", path), 1):
        where = f"{path}: annotation {number}"
        row_id = check_id(entry.get("id"), where)
        where = f"{path}: annotation {printable(row_id)[:80]}"
        if check_id(entry.get("image_id"), f"{where}, image_id") not in names:
            raise ValueError(f"{where}: no image {shorten(entry['image_id'])}")
        caption = parse_text(entry.get("caption"), "caption", where)
        if caption is None:
            raise ValueError(f"{where}: no caption")
        image = place_of(names[str(entry["image_id"])], root, options, where)
        yield ParallelRow(row_id, image, caption.strip(), {})


def entries(data: Record, name: str, path: Path) -> list[dict[str, Any]]:
    """A list of objects of a COCO file.

    Raises:
        ValueError: it is missing, or something else.
    """
    values = data.get(name)
    if values is None:
        raise ValueError(f"{path}: COCO captions have 'images' and 'annotations'; {name!r} is missing")
    if not isinstance(values, list):
        raise ValueError(f"{path}: {name!r} is a list, got {shorten(values)}")
    for number, entry in enumerate(values, 1):
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: {name} {number}: an object is needed, got {shorten(entry)}")
    return values


def catalogue_rows(path: Path, options: Options) -> Iterator[ParallelRow]:
    """Entries of a gettext catalogue."""
    return human.catalogue_rows(path, options.languages, options.source_language)


def authors_rows(
    records: Iterable[Record], root: Path, options: Options, *, config: str = "", start: int = 1
) -> Iterator[ParallelRow]:
    """Records of the authors' corpus as rows; `config`: a configuration that is named by its language."""
    language = options.source_language or config or None
    for number, record in enumerate(records, start):
        row = authors_row(record, number, options.images or root, language, options)
        if isinstance(row, ParallelRow):
            yield row
        else:
            options.refused.append(row)
