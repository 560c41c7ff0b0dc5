"""Parallel text that people wrote: Unicode CLDR names, gettext catalogues, TMX and Moses files."""

import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import polib

from mmmeb_tasks.mini.world import load_world
from xvlm2vec_st.data.corpus import ParallelRow
from xvlm2vec_st.utils.lines import byte_lines
from xvlm2vec_st.utils.texts import fault_of, is_blank, printable

from .languages import common
from .readers import lines_of

XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"


def cldr_rows(languages: Sequence[str]) -> Iterator[ParallelRow]:
    """The mini world's concepts: a name in English and in each language.

    >>> next(cldr_rows(["it", "pt"]))
    ParallelRow(id='1f415', image=None, english='dog', translations={'it': 'cane', 'pt': 'cachorro'})
    """
    for concept in load_world(["en", *languages]).concepts:
        names = dict(concept.names)
        yield ParallelRow(f"{ord(concept.emoji):x}", None, names.pop("en"), names)


def catalogue_rows(path: Path, languages: Sequence[str], source_language: str | None = None) -> Iterator[ParallelRow]:
    """A gettext catalogue, `.po` or `.mo`: what is translated, not fuzzy and not obsolete.

    The language is the catalogue's own (its `Language` field, its file's or folder's name:
    `it.po`, `locale/it/LC_MESSAGES/app.mo`), or the asked one where there is only one.

    Raises:
        ValueError: the file is not a catalogue; the language is unknown.
    """
    try:
        catalogue = (polib.pofile if path.suffix == ".po" else polib.mofile)(str(path))
    # polib's reader of .mo files follows offsets that may lead anywhere.
    except (OSError, UnicodeError, struct.error, LookupError, ValueError, TypeError, MemoryError) as error:
        raise ValueError(f"{path}: no gettext catalogue: {printable(error)}") from error
    code = source_language or catalogue_language(path, catalogue.metadata, languages)
    number = 0
    for entry in catalogue:
        if entry.obsolete or "fuzzy" in getattr(entry, "flags", ()):
            continue
        forms = [entry.msgstr_plural[n] for n in sorted(entry.msgstr_plural)] if entry.msgid_plural else []
        # Form 0 is for one; a language with a single form says with it what English says of many.
        english = entry.msgid_plural if len(forms) == 1 else entry.msgid
        translation = forms[0] if forms else entry.msgstr
        if not is_blank(english) and not is_blank(translation):
            number += 1
            check_texts([english, translation], f"{path}, entry {number}")
            yield ParallelRow(str(number), None, english, {code: translation} if code in languages else {})


def catalogue_language(path: Path, metadata: dict[str, str], languages: Sequence[str]) -> str:
    """The language of a catalogue.

    >>> catalogue_language(Path("locale/pt_BR/LC_MESSAGES/app.mo"), {}, ["it", "pt-BR"])
    'pt-BR'
    """
    clues = [metadata.get("Language", ""), path.stem, *(part.name for part in list(path.parents)[:2])]
    for name in clues:
        code = name.replace("_", "-")
        for spelling in (code, code.split("-")[0]):
            if spelling in languages:
                return spelling
    if len(languages) == 1 and not clues[0]:
        return languages[0]
    raise ValueError(
        f"{path}: its language ({clues[0] or 'unknown'}) is none of {', '.join(languages)}; pass --source-language"
    )


def tmx_rows(path: Path, languages: Sequence[str]) -> Iterator[ParallelRow]:
    """Translation units of a TMX file that have English and an asked language; markup is dropped.

    Raises:
        ValueError: the file is not XML.
    """
    number = 0
    try:
        for _, element in ElementTree.iterparse(Unpacked(path)):
            if element.tag.split("}")[-1] != "tu":
                continue
            number += 1
            texts = unit_texts(element, languages)
            element.clear()
            check_texts(texts.values(), f"{path}, unit {number}")
            if english := texts.pop("en", None):
                yield ParallelRow(str(number), None, english, texts)
    except (ElementTree.ParseError, LookupError, RecursionError) as error:
        raise ValueError(f"{path}: no TMX file: {printable(error)}") from error


class Unpacked:
    """A file, plain or gzip, for a reader of bytes."""

    def __init__(self, path: Path) -> None:
        self.pieces = (line for _, line in byte_lines(path, any_encoding=True))

    def read(self, size: int) -> bytes:
        """The next line; nothing at the end."""
        return next(self.pieces, b"")


def check_texts(texts: Iterable[str], where: str) -> None:
    """Refuse half characters and NULs.

    Raises:
        ValueError: there is one, with its place.
    """
    for text in texts:
        if fault := fault_of(text):
            raise ValueError(f"{where}: a text {fault}")


def unit_texts(unit: ElementTree.Element, languages: Sequence[str]) -> dict[str, str]:
    """`{language: text}` of a translation unit: the language itself before one of its regions.

    >>> unit = ElementTree.fromstring('<tu><tuv xml:lang="EN-us"><seg>a <ph>x</ph>dog</seg></tuv>'
    ...                               '<tuv xml:lang="it"><seg>un cane</seg></tuv></tu>')
    >>> unit_texts(unit, ["it"])
    {'en': 'a dog', 'it': 'un cane'}
    """
    variants: dict[str, str] = {}
    for variant in unit.iter():
        if variant.tag.split("}")[-1] == "tuv":
            code = (variant.get(XML_LANG) or variant.get("lang") or "").replace("_", "-").casefold()
            segment = next((s for s in variant if s.tag.split("}")[-1] == "seg"), None)
            text = "" if segment is None else segment_text(segment).strip()
            if code and text:
                variants.setdefault(code, text)
    texts = {}
    for language in ("en", *languages):
        wanted = common(language).casefold()
        for code, text in variants.items():
            if code == wanted or (code.split("-")[0] == wanted and wanted not in variants):
                texts.setdefault(language, text)
    return texts


def segment_text(segment: ElementTree.Element) -> str:
    """The text of a segment; the content of native codes (bpt, ept, it, ph, ut) is left out."""
    text = segment.text or ""
    for child in segment:
        if child.tag.split("}")[-1] in ("hi", "sub"):
            text += segment_text(child)
        text += child.tail or ""
    return text


def is_moses(path: Path) -> bool:
    """Whether a path is the English side of a Moses corpus: `news.en` beside `news.it`."""
    return path.suffix == ".en"


def moses_rows(path: Path, languages: Sequence[str]) -> Iterator[ParallelRow]:
    """A Moses corpus: files of aligned lines, `FILE.en` and `FILE.LANGUAGE`; blank lines are not text.

    Raises:
        ValueError: no such file; no file of an asked language; files of different lengths.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    files = {code: path.with_suffix(f".{code}") for code in languages}
    files = {code: file for code, file in files.items() if file.is_file()}
    if not files:
        raise ValueError(f"{path}: no file beside it for {', '.join(languages)}")
    sides = {code: dict(lines_of(file)) for code, file in {"en": path, **files}.items()}
    lengths = {code: count_lines(file) for code, file in {"en": path, **files}.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{code} {count:,}" for code, count in lengths.items())
        raise ValueError(f"{path}: the sides have different numbers of lines ({listed}); they must be aligned")
    english = sides.pop("en")
    for number, text in english.items():
        translations = {code: side[number].strip() for code, side in sides.items() if number in side}
        translations = {code: line for code, line in translations.items() if not is_blank(line)}
        check_texts([text, *translations.values()], f"{path}, line {number}")
        if is_blank(text):
            continue
        yield ParallelRow(str(number), None, text.strip(), translations)


def count_lines(path: Path) -> int:
    """How many lines a file has, the last one with or without its end."""
    with path.open("rb") as lines:
        return sum(1 for _ in lines)
