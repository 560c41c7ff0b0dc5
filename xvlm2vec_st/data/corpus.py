"""Parse the lines of corpus files, and check rows and languages."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from operator import countOf, itemgetter
from pathlib import Path
from typing import Any, TypeVar

from xvlm2vec_st.utils.lines import byte_lines, decode_line
from xvlm2vec_st.utils.texts import UNSEEN, fault_of, is_blank

SOURCE = "en"
INDONESIAN = "'id' is the row's id; write Indonesian as 'ind'"
# Image tokens as the model families write them.
IMAGE_TOKEN = re.compile(r"<image>|<\|image(?:_\d+|_pad)?\|>|<\|vision_(?:start|end)\|>")
IMAGE_BREAK = re.compile(rf"(?:{IMAGE_TOKEN.pattern})\n?")
BLOCK = 100  # lines that are parsed together: more of them leave the processor's cache
# A text between two NULs that has no letter or digit: it may be blank.
NO_LETTER = re.compile(r"\0[^\w\0]*\0")
Item = TypeVar("Item")


# Not frozen, which takes four times as long: a corpus has a million of them.
@dataclass(slots=True)
class ParallelRow:
    """One English text, its translations `{language: text}`, and the path of its image or None."""

    id: str
    image: str | None
    english: str
    translations: dict[str, str] = field(default_factory=dict)


def parse_row(line: str, number: int, languages: Sequence[str]) -> ParallelRow:
    """Parse one corpus line; the row gets those of `languages` that the line has.

    Raises:
        ValueError: the line is not a JSON object, or has no id, no English or an empty text; the message
            names line and value.

    >>> parse_row('{"id": "7", "image": null, "en": "dog", "it": "cane"}', 1, ["it", "de"])
    ParallelRow(id='7', image=None, english='dog', translations={'it': 'cane'})
    """
    record = parse_object(line, number)
    where = f"line {number}, id {shorten(record.get('id'))}"
    row_id = check_id(record.get("id"), where)
    image = check_image(record.get("image"), where)
    if record.get(SOURCE) is None:
        raise ValueError(f"{where}: no English text ('{SOURCE}'); every row needs one")
    texts = {lang: record[lang] for lang in (SOURCE, *languages) if record.get(lang) is not None}
    for lang, text in texts.items():
        if not isinstance(text, str) or is_blank(text):
            raise ValueError(f"{where}: the {lang!r} text is {shorten(text)}; write a text, or leave the language out")
        if fault := fault_of(text):
            raise ValueError(f"{where}: the {lang!r} text {fault}")
    return ParallelRow(row_id, image, texts.pop(SOURCE), texts)


def parse_object(line: str, number: int) -> dict[str, Any]:
    """Parse the JSON object of one line.

    Raises:
        ValueError: the line is not JSON or not an object, or has a key twice; the message names the line.

    >>> parse_object('{"id": 7}', 1)
    {'id': 7}
    """
    try:
        record = parse_json(line)
    except ValueError as error:
        raise ValueError(f"line {number}: not JSON ({error}): {line[:80]!r}") from error
    if not isinstance(record, dict):
        raise ValueError(f"line {number}: a JSON object is needed, got {type(record).__name__}: {line[:80]!r}")
    return record


def parse_json(text: str) -> Any:
    """Parse a JSON value.

    Raises:
        ValueError: it is not JSON, is nested too deeply, has a number with too many digits, or an object with
            a key twice.
    """
    if text.startswith("\ufeff"):  # the decoder's own message would not say so
        raise json.JSONDecodeError("Unexpected UTF-8 BOM (decode using utf-8-sig)", text, 0)
    try:
        return DECODER.decode(text)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are unique."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:80]!r} stands in an object twice; remove one")
    return record


# json.loads makes a decoder for each call that has a hook, which takes longer than a line.
DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)
SCAN = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # (object, end) of the JSON at a position
ESCAPE = re.compile(r"\\.")


def check_id(value: Any, where: str) -> str:
    """Return a row's id as text.

    Raises:
        ValueError: it is neither text nor a number, is blank, or holds a lone surrogate or a NUL.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{where}: 'id' must be a text or a number")
    if isinstance(value, str):
        if is_blank(value):
            raise ValueError(f"{where}: 'id' is blank; every row needs its own")
        if fault := fault_of(value):
            raise ValueError(f"{where}: 'id' {fault}")
    return str(value)


def check_image(value: Any, where: str) -> str | None:
    """Return the path of a row's image, or None.

    Raises:
        ValueError: it is neither text nor null, is blank, or holds a lone surrogate or a NUL.
    """
    if not isinstance(value, str | None) or (value is not None and is_blank(value)):
        raise ValueError(f"{where}: 'image' must be a path or null, got {shorten(value)}")
    if value is not None and (fault := fault_of(value)):
        raise ValueError(f"{where}: 'image' {fault}")
    return value


def shorten(value: Any) -> str:
    """The repr of a value for a message, at most 80 characters of it.

    >>> shorten("a" * 200) == repr("a" * 80)[:-1] + "…'"
    True
    """
    if isinstance(value, str) and len(value) > 80:
        return repr(value[:80])[:-1] + "…'"
    text = repr(value)
    return text if isinstance(value, str) or len(text) <= 80 else text[:80] + "…"


def read_parallel(path: str | Path, languages: Sequence[str]) -> Iterator[ParallelRow]:
    """Yield the rows of a corpus file; blank lines are skipped.

    Raises:
        ValueError: see `parse_line`.
    """
    for block in blocks(iter_lines(path), BLOCK):
        good = parse_good_lines([line for _, line in block], languages)
        yield from good or (parse_line(path, number, line, languages) for number, line in block)


def read_files(paths: Sequence[Path], languages: Sequence[str]) -> Iterator[tuple[Path, ParallelRow]]:
    """Yield (file, row) of several files: see `read_parallel`."""
    for path in paths:
        for row in read_parallel(path, languages):
            yield path, row


def blocks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of `size`; an error of the iterator comes after the items before it.

    >>> list(blocks(range(5), 2))
    [[0, 1], [2, 3], [4]]
    """
    block: list[Item] = []
    try:
        for item in items:
            block.append(item)
            if len(block) == size:
                yield block
                block = []
    except (OSError, ValueError):
        yield block
        raise
    if block:
        yield block


def parse_good_lines(lines: Sequence[bytes], languages: Sequence[str]) -> list[ParallelRow] | None:
    """The rows of lines that are certainly good, as `parse_line` gives them; None if one may be bad.

    Each line has its line break. The texts are checked together, several times as fast as one by one.

    >>> parse_good_lines([b'{"id": 7, "en": "dog", "it": "cane"}'], ["it"])
    [ParallelRow(id='7', image=None, english='dog', translations={'it': 'cane'})]
    >>> parse_good_lines([b'{"id": 7, "en": "<image> dog"}'], ["it"])
    """
    codes = [code for code in languages if code != SOURCE]
    try:
        rows = [_good_row(record, codes) for record in _objects(b"".join(lines).decode())]
        names = chain.from_iterable((row.id, row.id if row.image is None else row.image) for row in rows)
        texts = "\0".join(chain.from_iterable((row.english, *row.translations.values()) for row in rows))
        whole = "\0".join(["", *names, texts, ""])
        whole.encode()  # raises an error for half a character
    except (ValueError, TypeError, RecursionError):  # `parse_line` says what is wrong
        return None
    nuls = whole.count("\0") - sum(3 + len(row.translations) for row in rows) - 1
    blank = NO_LETTER.search(whole) or any(char in whole for char in UNSEEN)
    return None if nuls or blank or IMAGE_TOKEN.search(texts) else rows


def _objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects of lines. A bad line is an error, or an object with values of wrong types."""
    lines = [line for line in text.split("\n") if line]
    scanned = list(map(SCAN, lines, repeat(0)))  # ends early at what is not JSON
    records, ends = list(map(itemgetter(0), scanned)), list(map(itemgetter(1), scanned))
    if len(scanned) < len(lines) or {*map(type, records)} != {dict}:
        raise ValueError(text)
    if sum(ends) < sum(map(len, lines)) and any(line[end:].strip() for line, end in zip(lines, ends, strict=True)):
        raise ValueError(text)
    # A key that stands twice leaves its quotes in the line. So do the keys of objects in objects.
    quotes = text.count('"') - (ESCAPE.findall(text).count('\\"') if "\\" in text else 0)
    texts = countOf(map(type, chain.from_iterable(map(dict.values, records))), str)
    if quotes != 2 * (sum(map(len, records)) + texts):
        for line in lines:
            DECODER.raw_decode(line)
    return records


def _good_row(record: dict[str, Any], codes: list[str]) -> ParallelRow:
    """The row of an object, whose values may have wrong types. It takes the object apart."""
    pop: Callable[[str, None], Any] = record.pop
    number, image, english = pop("id", None), pop("image", None), pop(SOURCE, None)
    if [*record] != codes or None in record.values():  # usually the translations are what is left
        record = {code: record[code] for code in codes if record.get(code) is not None}
    return ParallelRow(str(number) if type(number) is int else number, image, english, record)


def iter_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line) for the lines of a file that are not blank.

    Raises:
        ValueError: see `byte_lines`.
    """
    for number, line in byte_lines(path):
        if line.strip():
            yield number, line


def parse_line(path: str | Path, number: int, line: bytes, languages: Sequence[str]) -> ParallelRow:
    """Parse line `number` of a corpus file.

    Raises:
        ValueError: see `parse_row`, with the file's name; the line is not UTF-8; a text holds an image token.
    """
    text = decode_line(path, number, line).strip()
    try:
        row = parse_row(text, number, languages)
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from error
    for lang, text in {SOURCE: row.english, **row.translations}.items():
        if token := IMAGE_TOKEN.search(text):
            raise ValueError(
                f"{path}, line {number}, id {row.id!r}: the {lang!r} text holds the image token "
                f"{token.group()!r}; remove it, because the chat template writes it"
            )
    return row


def without_image_tokens(text: str) -> str:
    r"""Remove image tokens and the line breaks after them: the chat template writes them.

    >>> without_image_tokens("<|image_1|>\nRepresent the given image.\n")
    'Represent the given image.\n'
    """
    return IMAGE_BREAK.sub("", text).lstrip() if IMAGE_TOKEN.search(text) else text


def check_languages(languages: Sequence[str]) -> None:
    """Check a list of target languages.

    Raises:
        ValueError: it is empty, holds English, a language twice, `id`, or something that is not a code.

    >>> check_languages(["it", "pt-BR"])
    """
    if not languages:
        raise ValueError("languages is empty; name at least one, as in ['it', 'es']")
    if len(set(languages)) != len(languages):
        raise ValueError(f"a language is listed twice: {', '.join(languages)}")
    for code in languages:
        head = code.split("-")[0].split("_")[0]
        if code == SOURCE:
            raise ValueError("English is the source of every row; list the other languages only")
        if code == "id":
            raise ValueError(INDONESIAN)
        if not (head.isascii() and head.isalpha() and head.islower() and 2 <= len(head) <= 3):
            raise ValueError(f"unknown language {code!r}; use codes such as it, pt, pt-BR, zh-Hant")
