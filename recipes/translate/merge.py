"""From rows and what was translated to the rows that are kept, and why the others are not."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xvlm2vec_st.data.corpus import ParallelRow
from xvlm2vec_st.images.archives import image_exists
from xvlm2vec_st.images.paths import split_place

from .checks import contents, refusal, refusals, similarities
from .fields import join_fields, untabled_content
from .repair import repair
from .translation_memory import Key

ROWS = 1000  # that are checked together
ENCODER = json.JSONEncoder(ensure_ascii=False)


@dataclass(frozen=True)
class Refused:
    """A translation that is not kept, or (language "") a row that was not translated at all."""

    id: str
    language: str
    reason: str
    detail: str
    english: str
    translation: str | None = None


@dataclass
class Merged:
    """The kept rows and what was refused, both in the sources' order."""

    kept: list[ParallelRow] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)


@dataclass
class Translation:
    """A translation of a row as it came, the repaired text, and (reason, detail) if it is refused."""

    row: ParallelRow
    code: str
    translation: str | None
    text: str
    is_new: bool
    why: tuple[str, str] | None


def without_image(rows: Sequence[ParallelRow]) -> tuple[list[ParallelRow], list[Refused]]:
    """(rows whose image is there, the others by name); each file is looked up once."""
    there: dict[str, bool] = {}
    good, refused = [], []
    for row in rows:
        if row.image is not None and row.image not in there:
            there[row.image] = image_exists(row.image)
        if row.image is None or there[row.image]:
            good.append(row)
        else:
            refused.append(Refused(row.id, "", "image", f"{row.image} not found", row.english))
    return good, refused


def merge(
    rows: Sequence[ParallelRow],
    codes: Sequence[str],
    known: Mapping[Key, str | None],
    *,
    too_long: frozenset[Key] | set[Key] = frozenset(),
    skip: Sequence[str] = (),
    complete: bool = True,
) -> Merged:
    """Join fields, repair, check. A row of which no translation is kept is left out.

    `complete`: every field was to be translated; otherwise only what the sources have is looked at.

    Raises:
        ValueError: a field that was never translated.
    """
    merged = Merged()
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        translations = [[*translations_of(row, codes, known, too_long, complete)] for row in part]
        check([one for ones in translations for one in ones], known, too_long, skip)
        for row, ones in zip(part, translations, strict=True):
            kept = {}
            for one in ones:
                if one.why is None:
                    kept[one.code] = one.text
                else:
                    merged.refused.append(Refused(row.id, one.code, *one.why, row.english, one.translation))
            if kept:
                merged.kept.append(ParallelRow(row.id, row.image, row.english, kept))
    return merged


def translations_of(
    row: ParallelRow,
    codes: Sequence[str],
    known: Mapping[Key, str | None],
    too_long: frozenset[Key] | set[Key],
    complete: bool,
) -> Iterator[Translation]:
    """The translations of a row, one per language, not checked yet."""
    for code in codes:
        translation, why = row.translations.get(code), None
        is_new = translation is None and complete
        if is_new:
            translation, why = joined(row, row.english, code, known, too_long)
        elif translation is None:
            why = ("untranslated", "the source has none")
        text = repair(row.english, translation, code) if translation else ""
        yield Translation(row, code, translation, text, is_new, why)


def check(
    translations: Sequence[Translation],
    known: Mapping[Key, str | None],
    too_long: frozenset[Key] | set[Key],
    skip: Sequence[str],
) -> None:
    """Set why translations are refused, of those that are not refused yet."""
    unchecked = [one for one in translations if one.why is None]
    pairs = [(one.row.english, one.text, one.code) for one in unchecked]
    for one, why in zip(unchecked, refusals(pairs, skip=skip), strict=True):
        one.why = why
        # An instruction in a translator's own words would hide a copied or garbled content.
        if why is None and one.is_new and (content := untabled_content(one.row.english, one.code)):
            translated_content, _ = joined(one.row, content, one.code, known, too_long)
            one.why = refusal(content, translated_content, one.code, skip=skip)


def joined(
    row: ParallelRow,
    english: str,
    code: str,
    known: Mapping[Key, str | None],
    too_long: frozenset[Key] | set[Key],
) -> tuple[str | None, tuple[str, str] | None]:
    """(the translation of a row's text or of a part of it, None) or (None, why there is none)."""
    lacking: list[tuple[str, str]] = []

    def translated(text: str) -> str:
        if (code, text) in too_long:
            lacking.append(("long", f"{len(text):,} characters are more than the translator takes"))
            return "?"
        if (code, text) not in known:
            raise ValueError(f"row {row.id}: {text[:60]!r} was not translated into {code!r}; run again")
        if known[code, text] is None:
            lacking.append(("unfinished", "the translator's answer had no end"))
            return "?"
        return known[code, text]

    text = join_fields(english, code, translated)
    return (None, lacking[0]) if lacking else (text, None)


def refuse_unlike(merged: Merged, model: object, least: float) -> Merged:
    """Refuse what a cross-lingual embedder finds unlike: cosine of English and translation below `least`."""
    pairs = [contents(row.english, text, code) for row in merged.kept for code, text in row.translations.items()]
    scores = iter(similarities(model, pairs))
    out = Merged(refused=list(merged.refused))
    for row in merged.kept:
        kept = {}
        for code, text in row.translations.items():
            score = next(scores)
            if score >= least:
                kept[code] = text
            else:
                out.refused.append(Refused(row.id, code, "quality", f"similarity {score:.2f}", row.english, text))
        if kept:
            out.kept.append(ParallelRow(row.id, row.image, row.english, kept))
    return out


def corpus_lines(rows: Sequence[ParallelRow], folder: Path) -> Iterator[str]:
    """Rows as lines of a parallel corpus, their images relative to the corpus' folder."""
    for row in rows:
        image = None
        if row.image is not None:
            file, member = split_place(row.image)
            # Who trains names the archive with --images.
            image = member or Path(os.path.relpath(file, folder)).as_posix()
        record = {"id": row.id, "image": image, "en": row.english, **row.translations}
        yield ENCODER.encode(record) + "\n"


def refused_lines(refused: Sequence[Refused]) -> Iterator[str]:
    """What was refused, one JSON object a line."""
    for entry in refused:
        yield ENCODER.encode(vars(entry)) + "\n"
