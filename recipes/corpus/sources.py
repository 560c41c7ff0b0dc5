"""Sources of English rows: files, datasets, catalogues. All become `ParallelRow`s with ids.

A source is a path, told by its suffix, or `hf:NAME[:CONFIG][@SPLIT]`, `xmmeb:LANGUAGE`, `cldr`.
Translations that a source already has are kept and checked, not made again.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from recipes.corpus import human
from recipes.corpus.files import dataset_records, lines_of, parquet_records, table_records
from recipes.corpus.published import authors_row
from xvlm2vec_st.parallel import ParallelRow, parse_row
from xvlm2vec_st.reading import without_image_tokens

Item = TypeVar("Item")
Record = Mapping[str, Any]
XMMEB = "swap-uniba/xMMEB-train"


@dataclass(frozen=True)
class Options:
    """How sources are read.

    Args:
        languages: which translations are wanted, if a source has them.
        columns: our name (`id`, `image`, `en`, a language) -> the column's, where they differ.
        images: the folder of the pictures; by default the source's own.
        pictures: where pictures that a dataset holds as bytes are written.
        limit: rows a source, drawn with `seed`; None: all.
        source_language: the language of a corpus that has one but does not tell it.
        refused: where readers put rows that they refuse one by one: (id, what is wrong, English).
    """

    languages: Sequence[str] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    images: Path | None = None
    pictures: Path = Path("pictures")
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
    return {
        spec: next((name for name in names if name not in taken[spec]), spec) for spec, names in tries.items()
    }


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
    if path.suffix not in readers:
        raise ValueError(
            f"{spec}: unknown kind of source; known: {', '.join(readers)}, FILE.en beside FILE.LANGUAGE, "
            "hf:NAME[:CONFIG][@SPLIT], xmmeb:LANGUAGE, cldr"
        )
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return readers[path.suffix](path, options)


def jsonl_rows(path: Path, options: Options) -> Iterator[ParallelRow]:
    """Rows of a JSONL file: ours, the authors' (`text_en`, `text_lang`), or with other column names."""
    root = options.images or path.parent
    for number, line in lines_of(path):
        try:
            record = json.loads(line) if options.columns or number == 1 or '"text_lang"' in line else None
            if isinstance(record, dict) and "text_en" in record and "text_lang" in record:
                yield from authors_rows([record], root, options, start=number)
            elif options.columns and not isinstance(record, dict):
                raise ValueError(f"line {number}: a JSON object is needed: {line[:80]!r}")
            elif options.columns:
                yield record_row(record, number, options, root)
            else:
                row = parse_row(line, number, options.languages)
                image = None if row.image is None else str(root / row.image)
                yield ParallelRow(row.id, image, row.english, row.translations)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error}): {line[:80]!r}") from error
        except ValueError as error:
            raise ValueError(f"{path}, {error}") from error


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
        if name not in record:
            raise ValueError(
                f"row {number}: no column {name!r} for {ours!r}; it has {', '.join(map(str, record))}; "
                f"pass --columns {ours}=NAME"
            )

    def cell(ours: str) -> Any:
        return record.get(options.columns.get(ours, ours))

    english = cell("en")
    if not isinstance(english, str) or not english.strip():
        raise ValueError(f"row {number}: the English text is {english!r}; every row needs one")
    row_id = number if cell("id") in (None, "") else cell("id")
    said = {code: cell(code) for code in options.languages}
    image = picture_of(cell("image"), root, options.pictures)
    return ParallelRow(
        str(row_id),
        image,
        english,
        {c: t for c, t in said.items() if isinstance(t, str) and t.strip()},
    )


def picture_of(value: Any, root: Path, pictures: Path) -> str | None:
    """The path of a cell's picture: a name under `root`, or bytes, which are written to `pictures`."""
    if value is None or value == "":
        return None
    if isinstance(value, Mapping):
        if value.get("bytes") is None:
            return str(root / value["path"])
        data = value["bytes"]
        suffix = Path(value.get("path") or "").suffix or (".jpg" if data[:2] == b"\xff\xd8" else ".png")
        path = pictures / f"{hashlib.sha256(data).hexdigest()[:20]}{suffix}"
        if not path.is_file():
            pictures.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")
            part.write_bytes(data)
            part.replace(path)
        return str(path)
    if not isinstance(value, str):
        raise ValueError(f"a picture is {type(value).__name__}; a path or an image column is needed")
    return str(root / value)


def coco_rows(path: Path, options: Options) -> Iterator[ParallelRow]:
    """COCO captions: `images` with file names, `annotations` with captions; the annotation's id."""
    try:
        data = json.loads("".join(line for _, line in lines_of(path)))
        names = {image["id"]: image["file_name"] for image in data["images"]}
        captions = data["annotations"]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: no JSON ({error})") from error
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: COCO captions have 'images' and 'annotations'; {error} is missing"
        ) from error
    root = options.images or path.parent
    for entry in captions:
        if entry.get("image_id") not in names:
            raise ValueError(f"{path}: annotation {entry.get('id')}: no image {entry.get('image_id')!r}")
        if not isinstance(entry.get("caption"), str) or not entry["caption"].strip():
            raise ValueError(f"{path}: annotation {entry.get('id')}: no caption")
        yield ParallelRow(
            str(entry["id"]), str(root / names[entry["image_id"]]), entry["caption"].strip(), {}
        )


def catalogue_rows(path: Path, options: Options) -> Iterator[ParallelRow]:
    """Entries of a gettext catalogue."""
    return human.catalogue_rows(path, options.languages, options.source_language)


def authors_rows(
    records: Iterable[Record], root: Path, options: Options, *, config: str = "", start: int = 1
) -> Iterator[ParallelRow]:
    """Records of the authors' corpus as rows; `config`: a configuration that is named by its language."""
    language = options.source_language or config or None
    for number, record in enumerate(records, start):
        row = authors_row(record, number, options.images or root, language, options.languages)
        if isinstance(row, ParallelRow):
            yield row
        else:
            options.refused.append(row)
