"""Sources of English rows: files, datasets, catalogues. All become `ParallelRow`s with ids.

A source is a path, told by its suffix, or `hf:NAME[:CONFIG][@SPLIT]`, `xmmeb:LANGUAGE`, `cldr`.
Translations that a source already has are kept and checked, not made again.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
from xvlm2vec_st.utils.folders import whole_file
from xvlm2vec_st.utils.texts import fault_of, is_blank, printable

from . import catalogues as human
from .mmeb import authors_row, inside
from .readers import dataset_records, lines_of, parquet_records, table_records

Item = TypeVar("Item")
Record = Mapping[str, Any]
# Kinds of text that are read from gzip files too.
PACKED = (".jsonl", ".json", ".csv", ".tsv", ".tmx")
# Of files that are written for images that a table holds.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
XMMEB = "swap-uniba/xMMEB-train"


@dataclass(frozen=True)
class Options:
    """How sources are read.

    Args:
        languages: which translations are wanted, if a source has them.
        columns: our name (`id`, `image`, `en`, a language) -> the column's, where they differ.
        images: the folder or archive of the images; by default the source's own.
        outside_images: whether rows may name images outside of it.
        image_output: where images that a dataset holds as bytes are written.
        limit: rows a source, drawn with `seed`; None: all.
        source_language: the language of a corpus that has one but does not tell it.
        refused: where readers put rows that they refuse one by one: (id, what is wrong, English).
    """

    languages: Sequence[str] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    images: Path | None = None
    outside_images: bool = False
    image_output: Path = Path("images")
    limit: int | None = None
    seed: int = 0
    source_language: str | None = None
    refused: list[tuple[str, str, str]] = field(default_factory=list)


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
            said = {code: without_image_tokens(text) for code, text in row.translations.items()}
            said = {code: text for code, text in said.items() if text.strip()}
            rows.append(ParallelRow(row_id, row.image, english, said))
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
        ".parquet": parquet_rows,
        ".po": catalogue_rows,
        ".mo": catalogue_rows,
        ".tmx": lambda path, options: human.tmx_rows(path, options.languages),
    }
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if path.suffix == ".gz" and suffix not in PACKED:
        raise ValueError(f"{path}: {suffix or 'such'} files are not read packed; unpack it: gunzip {path}")
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
                yield parsed(line, number, options, root)
                continue
            record = parse_object(line, number)
            if "text_en" in record and "text_lang" in record:
                yield from authors_rows([record], root, options, start=number)
            elif options.columns:
                yield record_row(record, number, options, root)
            else:
                yield parsed(line, number, options, root)
        except ValueError as error:
            raise ValueError(f"{path}, {error}") from error


def parsed(line: str, number: int, options: Options, root: Path) -> ParallelRow:
    """A line of our own format as a row."""
    row = parse_row(line, number, options.languages)
    image = located(row.image, root, options, f"line {number}, id {shorten(row.id)}")
    return ParallelRow(row.id, image, row.english, row.translations)


def located(name: str | None, root: Path, options: Options, where: str) -> str | None:
    """Where a row's image lies, or None.

    Raises:
        ValueError: outside of `root`, and --outside-images is not given.
    """
    return None if name is None else inside(name, root, where, outside=options.outside_images)


def table_rows(path: Path, options: Options) -> Iterator[ParallelRow]:
    """Rows of a CSV or TSV file with a head."""
    try:
        yield from record_rows(table_records(path), options, root=options.images or path.parent)
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from error


def parquet_rows(path: Path, options: Options) -> Iterator[ParallelRow]:
    """Rows of a parquet file."""
    try:
        yield from record_rows(parquet_records(path), options, root=options.images or path.parent)
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from error


def record_rows(records: Iterable[Record], options: Options, *, root: Path) -> Iterator[ParallelRow]:
    """Records of a table as rows; those that --limit leaves out are not looked at."""
    for number, record in sample(enumerate(records, 1), options.limit, str(options.seed)):
        yield record_row(record, number, options, root)


def record_row(record: Record, number: int, options: Options, root: Path) -> ParallelRow:
    """A record as a row; without an id column, its number is the id.

    Raises:
        ValueError: a column that is not there, no English, with the row and what there is.

    >>> record_row({"caption": "a dog"}, 7, Options(columns={"en": "caption"}), Path())
    ParallelRow(id='7', image=None, english='a dog', translations={})
    """
    for ours in ("en", *options.columns):
        name = options.columns.get(ours, ours)
        if not has(record, name):
            raise ValueError(
                f"row {number}: no column {name!r} for {ours!r}; it has {', '.join(map(printable, record))}; "
                f"pass --columns {ours}=NAME"
            )

    def cell(ours: str) -> Any:
        return value_of(record, options.columns.get(ours, ours))

    where = f"row {number}"
    english = checked_text(cell("en"), "English", where)
    if english is None:
        raise ValueError(f"{where}: the English text is {shorten(cell('en'))}; every row needs one")
    row_id = number if cell("id") in (None, "") else cell("id")
    said = {code: checked_text(cell(code), repr(code), where) for code in options.languages}
    image = image_of(cell("image"), root, options, where)
    return ParallelRow(check_id(row_id, where), image, english, {code: text for code, text in said.items() if text})


def checked_text(value: Any, name: str, where: str) -> str | None:
    """A cell's text; None where it is empty or blank.

    Raises:
        ValueError: it is no text, or holds half a character or a NUL.
    """
    if value is None or (isinstance(value, str) and is_blank(value)):
        return None
    if not isinstance(value, str):
        raise ValueError(f"{where}: the {name} text is {shorten(value)}; a text is needed")
    if fault := fault_of(value):
        raise ValueError(f"{where}: the {name} text {fault}")
    return value


def has(record: Record, name: str) -> bool:
    """Whether a record has a column, or a field of one: `translation.en`.

    >>> has({"translation": {"en": "dog"}}, "translation.en"), has({"en": "dog"}, "it")
    (True, False)
    """
    head, _, rest = name.partition(".")
    inner = record.get(head) if rest else None
    return name in record or (isinstance(inner, Mapping) and has(inner, rest))


def value_of(record: Record, name: str) -> Any:
    """The value of a column, or of a field of one; None where there is none.

    >>> value_of({"translation": {"en": "dog"}}, "translation.en")
    'dog'
    """
    head, _, rest = name.partition(".")
    if name in record or not rest:
        return record.get(name)
    return value_of(record[head], rest) if isinstance(record.get(head), Mapping) else None


def image_of(value: Any, root: Path, options: Options, where: str) -> str | None:
    """Where a cell's image lies: a name under `root`, or bytes, which are written to `options.image_output`.

    Raises:
        ValueError: neither a path nor an image column's value; a path outside of `root`.
    """
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return written(value["bytes"], value.get("path"), options.image_output, where)
        value = value.get("path")
    if value is None or value == "":
        return None
    return located(check_image(value, where), root, options, where)


def written(data: Any, name: Any, folder: Path, where: str) -> str:
    """Write an image's bytes to a file named by its content; returns its path.

    Raises:
        ValueError: no bytes.
    """
    if not isinstance(data, bytes) or not isinstance(name, str | None):
        raise ValueError(f"{where}: an image column holds {{path, bytes}}, got {shorten(name)}, {shorten(data)}")
    suffix = Path(name or "").suffix.lower()
    if suffix not in SUFFIXES:
        suffix = ".jpg" if data[:2] == b"\xff\xd8" else ".png"
    path = folder / f"{hashlib.sha256(data).hexdigest()[:20]}{suffix}"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            part.write_bytes(data)
    return str(path)


def coco_rows(path: Path, options: Options) -> Iterator[ParallelRow]:
    """COCO captions: `images` with file names, `annotations` with captions; the annotation's id.

    Raises:
        ValueError: no JSON; something missing or of another kind, with its place.
    """
    try:
        data = parse_json("".join(line for _, line in lines_of(path)))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from error
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
        caption = checked_text(entry.get("caption"), "caption", where)
        if caption is None:
            raise ValueError(f"{where}: no caption")
        image = located(names[str(entry["image_id"])], root, options, where)
        yield ParallelRow(row_id, image, caption.strip(), {})


def entries(data: Record, name: str, path: Path) -> list[dict[str, Any]]:
    """A list of objects of a COCO file.

    Raises:
        ValueError: it is missing, or something else.
    """
    found = data.get(name)
    if found is None:
        raise ValueError(f"{path}: COCO captions have 'images' and 'annotations'; {name!r} is missing")
    if not isinstance(found, list):
        raise ValueError(f"{path}: {name!r} is a list, got {shorten(found)}")
    for number, entry in enumerate(found, 1):
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: {name} {number}: an object is needed, got {shorten(entry)}")
    return found


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
