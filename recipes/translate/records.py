"""One record of a source as a `ParallelRow`: columns, texts, and images."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xvlm2vec_st.data.corpus import ParallelRow, check_id, check_image, shorten
from xvlm2vec_st.utils.folders import whole_file
from xvlm2vec_st.utils.texts import fault_of, is_blank, printable

from .mmeb import inside

Record = Mapping[str, Any]
# The suffixes that files of images from a table may have.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


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


def place_of(name: str | None, root: Path, options: Options, where: str) -> str | None:
    """Where a row's image lies, or None.

    Raises:
        ValueError: outside of `root`, and --outside-images is not given.
    """
    return None if name is None else inside(name, root, where, outside=options.outside_images)


def parse_record(record: Record, number: int, options: Options, root: Path) -> ParallelRow:
    """A record as a row; without an id column, its number is the id.

    Raises:
        ValueError: a column that is not there, no English, with the row and what there is.

    >>> parse_record({"caption": "a dog"}, 7, Options(columns={"en": "caption"}), Path())
    ParallelRow(id='7', image=None, english='a dog', translations={})
    """
    for ours in ("en", *options.columns):
        name = options.columns.get(ours, ours)
        if not has_column(record, name):
            raise ValueError(
                f"row {number}: no column {name!r} for {ours!r}; it has {', '.join(map(printable, record))}; "
                f"pass --columns {ours}=NAME"
            )

    def cell(ours: str) -> Any:
        return read_column(record, options.columns.get(ours, ours))

    where = f"row {number}"
    english = parse_text(cell("en"), "English", where)
    if english is None:
        raise ValueError(f"{where}: the English text is {shorten(cell('en'))}; every row needs one")
    row_id = number if cell("id") in (None, "") else cell("id")
    translations = {code: parse_text(cell(code), repr(code), where) for code in options.languages}
    image = parse_image(cell("image"), root, options, where)
    return ParallelRow(
        check_id(row_id, where), image, english, {code: text for code, text in translations.items() if text}
    )


def parse_text(value: Any, name: str, where: str) -> str | None:
    """A cell's text; None where it is empty or blank.

    Raises:
        ValueError: it is not a text, or holds half a character or a NUL.
    """
    if value is None or (isinstance(value, str) and is_blank(value)):
        return None
    if not isinstance(value, str):
        raise ValueError(f"{where}: the {name} text is {shorten(value)}; a text is needed")
    if fault := fault_of(value):
        raise ValueError(f"{where}: the {name} text {fault}")
    return value


def has_column(record: Record, name: str) -> bool:
    """Whether a record has a column, or a field of one: `translation.en`.

    >>> has_column({"translation": {"en": "dog"}}, "translation.en"), has_column({"en": "dog"}, "it")
    (True, False)
    """
    head, _, rest = name.partition(".")
    inner = record.get(head) if rest else None
    return name in record or (isinstance(inner, Mapping) and has_column(inner, rest))


def read_column(record: Record, name: str) -> Any:
    """The value of a column, or of a field of one; None where there is none.

    >>> read_column({"translation": {"en": "dog"}}, "translation.en")
    'dog'
    """
    head, _, rest = name.partition(".")
    if name in record or not rest:
        return record.get(name)
    return read_column(record[head], rest) if isinstance(record.get(head), Mapping) else None


def parse_image(value: Any, root: Path, options: Options, where: str) -> str | None:
    """Where a cell's image lies: a name under `root`, or bytes, which are written to `options.image_output`.

    Raises:
        ValueError: neither a path nor an image column's value; a path outside of `root`.
    """
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return write_image(value["bytes"], value.get("path"), options.image_output, where)
        value = value.get("path")
    if value is None or value == "":
        return None
    return place_of(check_image(value, where), root, options, where)


def write_image(data: Any, name: Any, folder: Path, where: str) -> str:
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
