"""Lines of corpus files as rows; what a row and a choice of languages must be."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xvlm2vec_st.utils.lines import byte_lines, decoded
from xvlm2vec_st.utils.texts import fault_of, is_blank

SOURCE = "en"
INDONESIAN = "'id' is the row's id; write Indonesian as 'ind'"
# As the families write an image into their texts.
IMAGE_TOKEN = re.compile(r"<image>|<\|image(?:_\d+|_pad)?\|>|<\|vision_(?:start|end)\|>")
IMAGE_BREAK = re.compile(rf"(?:{IMAGE_TOKEN.pattern})\n?")


@dataclass(frozen=True)
class ParallelRow:
    """One English text, its translations `{language: text}`, its image's path or None."""

    id: str
    image: str | None
    english: str
    translations: dict[str, str] = field(default_factory=dict)


def parse_row(line: str, number: int, languages: Sequence[str]) -> ParallelRow:
    """One corpus line as a row with the asked `languages`, as far as it has them.

    Raises:
        ValueError: no JSON object, no id, no English, an empty text; names line and value.

    >>> parse_row('{"id": "7", "image": null, "en": "dog", "it": "cane"}', 1, ["it", "de"])
    ParallelRow(id='7', image=None, english='dog', translations={'it': 'cane'})
    """
    record = record_of(line, number)
    where = f"line {number}, id {shown(record.get('id'))}"
    row_id = checked_id(record.get("id"), where)
    image = checked_image(record.get("image"), where)
    if record.get(SOURCE) is None:
        raise ValueError(f"{where}: no English text ('{SOURCE}'); every row needs one")
    texts = {lang: record[lang] for lang in (SOURCE, *languages) if record.get(lang) is not None}
    for lang, text in texts.items():
        if not isinstance(text, str) or is_blank(text):
            raise ValueError(
                f"{where}: the {lang!r} text is {shown(text)}; give a text, or leave the language out"
            )
        if fault := fault_of(text):
            raise ValueError(f"{where}: the {lang!r} text {fault}")
    return ParallelRow(row_id, image, texts.pop(SOURCE), texts)


def record_of(line: str, number: int) -> dict[str, Any]:
    """One line's JSON object.

    Raises:
        ValueError: no JSON, another value, a key twice; names the line.

    >>> record_of('{"id": 7}', 1)
    {'id': 7}
    """
    try:
        record = parse_json(line)
    except ValueError as error:
        raise ValueError(f"line {number}: no JSON ({error}): {line[:80]!r}") from error
    if not isinstance(record, dict):
        raise ValueError(
            f"line {number}: a JSON object is needed, got {type(record).__name__}: {line[:80]!r}"
        )
    return record


def parse_json(text: str) -> Any:
    """A JSON value.

    Raises:
        ValueError: no JSON, brackets too deep, a number of too many digits, a key twice in an object.
    """
    try:
        return json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("its brackets are too deep") from None


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand in it once."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:80]!r} stands in an object twice; leave one out")
    return record


def checked_id(value: Any, where: str) -> str:
    """A row's id as a text.

    Raises:
        ValueError: neither a text nor a number, blank, or with half a character or a NUL.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{where}: 'id' must be a text or a number")
    if isinstance(value, str):
        if is_blank(value):
            raise ValueError(f"{where}: 'id' is blank; every row needs its own")
        if fault := fault_of(value):
            raise ValueError(f"{where}: 'id' {fault}")
    return str(value)


def checked_image(value: Any, where: str) -> str | None:
    """A row's image as its path, or None.

    Raises:
        ValueError: neither a text nor null, blank, or with half a character or a NUL.
    """
    if not isinstance(value, str | None) or (value is not None and is_blank(value)):
        raise ValueError(f"{where}: 'image' must be a path or null, got {shown(value)}")
    if value is not None and (fault := fault_of(value)):
        raise ValueError(f"{where}: 'image' {fault}")
    return value


def shown(value: Any) -> str:
    """A value in a message, cut where it is long.

    >>> shown("a" * 200) == repr("a" * 80)[:-1] + "…'"
    True
    """
    if isinstance(value, str) and len(value) > 80:
        return repr(value[:80])[:-1] + "…'"
    text = repr(value)
    return text if isinstance(value, str) or len(text) <= 80 else text[:80] + "…"


def read_parallel(path: str | Path, languages: Sequence[str]) -> Iterator[ParallelRow]:
    """Yield the rows of a corpus file one at a time; blank lines are passed over.

    Raises:
        ValueError: as `row_of`.
    """
    for number, line in lines_of(path):
        yield row_of(path, number, line, languages)


def lines_of(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """(number, line) of a file's lines that are not blank.

    Raises:
        ValueError: as `byte_lines`.
    """
    for number, line in byte_lines(path):
        if line.strip():
            yield number, line


def row_of(path: str | Path, number: int, line: bytes, languages: Sequence[str]) -> ParallelRow:
    """Line `number` of a corpus file as a row.

    Raises:
        ValueError: as `parse_row`, with the file's name before it; no UTF-8; a text with an image token.
    """
    text = decoded(path, number, line).strip()
    try:
        row = parse_row(text, number, languages)
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from error
    for lang, text in {SOURCE: row.english, **row.translations}.items():
        if token := IMAGE_TOKEN.search(text):
            raise ValueError(
                f"{path}, line {number}, id {row.id!r}: the {lang!r} text holds the image token "
                f"{token.group()!r}; leave it out, the chat template writes it (recipes.translate strips it)"
            )
    return row


def without_image_tokens(text: str) -> str:
    r"""A text without image tokens and the line breaks after them: the chat template places the image.

    >>> without_image_tokens("<|image_1|>\nRepresent the given image.\n")
    'Represent the given image.\n'
    """
    return IMAGE_BREAK.sub("", text).lstrip() if IMAGE_TOKEN.search(text) else text


def read_files(paths: Sequence[Path], languages: Sequence[str]) -> Iterator[tuple[Path, ParallelRow]]:
    """(file, row) of several files: see `read_parallel`."""
    for path in paths:
        for row in read_parallel(path, languages):
            yield path, row


def check_languages(languages: Sequence[str]) -> None:
    """Refuse an empty choice, English, doubles, `id`, and codes that are no language's.

    >>> check_languages(["it", "pt-BR"])
    """
    if not languages:
        raise ValueError("no languages asked for; name at least one, as in it,es,fr,de")
    if len(set(languages)) != len(languages):
        raise ValueError(f"a language is asked for twice: {', '.join(languages)}")
    for code in languages:
        head = code.split("-")[0].split("_")[0]
        if code == SOURCE:
            raise ValueError("English is the source of every row; ask for the other languages only")
        if code == "id":
            raise ValueError(INDONESIAN)
        if not (head.isascii() and head.isalpha() and head.islower() and 2 <= len(head) <= 3):
            raise ValueError(f"unknown language {code!r}; use codes such as it, pt, pt-BR, zh-Hant")
