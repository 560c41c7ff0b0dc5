"""The work between sources and translator: which texts, in which batches, by whom, and what came of it.

The plan of all batches follows from the corpus alone. A process takes every N-th of them and passes
over those that the memory has, so a batch always holds the same texts, whatever was killed and however
many take part: the same input gives a model the same answers, and the merged file the same bytes.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from xvlm2vec_st.data.corpus import ParallelRow

from .fields import fields_of
from .placeholders import mask, numbers, pieces, unmask
from .translation_memory import Key, Memory
from .translators import Translator


@dataclass(frozen=True)
class Batch:
    """Texts that are translated together, and how many tokens each is."""

    code: str
    texts: tuple[str, ...]
    lengths: tuple[int, ...]


@dataclass
class TranslationStats:
    """What a run did: texts requested, unique ones, in pieces after a loss; tokens, padding, seconds."""

    requested: int = 0
    unique: int = 0
    before: int = 0
    translated: int = 0
    in_pieces: int = 0
    tokens: int = 0
    waste: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        """One line for people.

        >>> str(TranslationStats(requested=9, unique=3, translated=3, tokens=40, seconds=2)).split("; ")[1]
        '40 tokens in 2 s, 20 tokens/s, padding 0.0 %'
        """
        rate = self.tokens / self.seconds if self.seconds else 0
        return (
            f"{self.requested:,} texts, {self.unique:,} of them different: {self.before:,} known, "
            f"{self.translated:,} translated ({self.in_pieces:,} in pieces); {self.tokens:,} tokens in "
            f"{self.seconds:.0f} s, {rate:,.0f} tokens/s, padding {self.waste:.1%}".replace("%", " %")
        )


def wanted_fields(rows: Sequence[ParallelRow], codes: Sequence[str]) -> dict[str, dict[str, int]]:
    """`{language: {field: how often}}` of all that rows lack, each field once, in the rows' order.

    >>> wanted_fields([ParallelRow("1", None, "dog"), ParallelRow("2", None, "dog")], ["it"])
    {'it': {'dog': 2}}
    """
    wanted: dict[str, dict[str, int]] = {code: {} for code in codes}
    for row in rows:
        for code in codes:
            if code not in row.translations:
                for field in fields_of(row.english, code):
                    wanted[code][field] = wanted[code].get(field, 0) + 1
    return wanted


def hash_texts(texts: Sequence[str]) -> str:
    """What tells one list of texts from another.

    >>> hash_texts(["a", "b"]) != hash_texts(["ab"])
    True
    """
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def plan(
    wanted: Mapping[str, Sequence[str]], translator: Translator, batch_tokens: int
) -> tuple[list[Batch], set[Key]]:
    """(all batches of all languages, what is too long for the translator)."""
    batches, too_long = [], set()
    for code, texts in wanted.items():
        masked = [mask(text)[0] for text in texts]
        lengths = translator.lengths(masked, code)
        fits = [i for i, length in enumerate(lengths) if length <= translator.max_tokens]
        too_long |= {(code, texts[i]) for i in set(range(len(texts))) - set(fits)}
        for batch in plan_batches([lengths[i] for i in fits], batch_tokens):
            chosen = [fits[i] for i in batch]
            batches.append(Batch(code, tuple(texts[i] for i in chosen), tuple(lengths[i] for i in chosen)))
    return batches, too_long


def work_through(
    batches: Sequence[Batch],
    translator: Translator,
    memory: Memory,
    *,
    shard: tuple[int, int] = (0, 1),
    batch_tokens: int,
    show_progress: bool = True,
) -> TranslationStats:
    """Translate every N-th batch that the memory lacks, each into the memory before the next.

    Raises:
        ValueError: the translator's answers are not one a text; the disk is full.
    """
    stats = TranslationStats(unique=sum(len(batch.texts) for batch in batches))
    mine = [
        batch
        for batch in batches[shard[0] :: shard[1]]
        if any((batch.code, text) not in memory.known for text in batch.texts)
    ]
    stats.before = sum((b.code, text) in memory.known for b in batches for text in b.texts)
    started, padded = time.monotonic(), 0
    total = sum(sum(batch.lengths) for batch in mine)
    with tqdm(total=total, unit=" tokens", desc="translating", disable=not show_progress) as bar:
        for batch in mine:
            translations, in_pieces = translate_batch(translator, batch.texts, batch.code, batch_tokens)
            memory.add(batch.code, batch.texts, translations)
            stats.translated += len(batch.texts)
            stats.in_pieces += in_pieces
            stats.tokens += sum(batch.lengths)
            padded += len(batch.lengths) * max(batch.lengths)
            stats.seconds = time.monotonic() - started
            stats.waste = 1 - stats.tokens / padded if padded else 0.0
            bar.set_postfix_str(f"{batch.code}, padding {stats.waste:.1%}")
            bar.update(sum(batch.lengths))
    return stats


def translate_batch(
    translator: Translator, texts: Sequence[str], code: str, batch_tokens: int
) -> tuple[list[str | None], int]:
    """(translations, how many were translated in pieces because a mark or a number was lost)."""
    masked = [mask(text) for text in texts]
    answers = ask(translator, [text for text, _ in masked], code)
    translations: list[str | None] = []
    lost: list[int] = []
    for i, (text, (_, kept), answer) in enumerate(zip(texts, masked, answers, strict=True)):
        whole = unmask(answer, kept) if answer else answer
        if answer and (whole is None or numbers(text) - numbers(whole)):
            lost.append(i)
        translations.append(whole)
    if lost:
        parts = {i: pieces(texts[i]) for i in lost}
        wanted = list(dict.fromkeys(p for ps in parts.values() for p, translate in ps if translate))
        known = dict(zip(wanted, in_batches(translator, wanted, code, batch_tokens), strict=True))
        for i, ps in parts.items():
            joined = [known[piece] if translate else piece for piece, translate in ps]
            translations[i] = None if None in joined else "" if "" in joined else "".join(joined)
    return translations, len(lost)


def in_batches(translator: Translator, texts: Sequence[str], code: str, batch_tokens: int) -> list[str | None]:
    """Translate any number of texts in separate batches."""
    translations: dict[int, str | None] = {}
    for batch in plan_batches(translator.lengths(texts, code), batch_tokens):
        answers = ask(translator, [texts[i] for i in batch], code)
        translations |= dict(zip(batch, answers, strict=True))
    return [translations[i] for i in range(len(texts))]


def ask(translator: Translator, texts: Sequence[str], code: str) -> list[str | None]:
    """The translator's answers, one a text.

    Raises:
        ValueError: there are more or fewer, or one is not a text.
    """
    answers = list(translator.translate(texts, code) or ())
    if len(answers) != len(texts):
        raise ValueError(
            f"{translator.name} gave {len(answers)} answers for {len(texts)} texts into {code!r}, the first "
            f"{texts[0][:60]!r}; what was translated before is kept"
        )
    if wrong := [answer for answer in answers if not isinstance(answer, str | None)]:
        raise ValueError(f"{translator.name} gave {wrong[0]!r}, which is not a text, into {code!r}")
    return answers


def waste_of(batches: Sequence[Batch]) -> float:
    """The share of padding in batches, 0 to 1."""
    lengths = [length for batch in batches for length in batch.lengths]
    starts = [0]
    for batch in batches:
        starts.append(starts[-1] + len(batch.lengths))
    return padding_waste(lengths, [range(a, b) for a, b in zip(starts, starts[1:], strict=False)])


def plan_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Part texts of `lengths` tokens into batches of at most `max_tokens`, padding included.

    Longest first: memory runs out at once or never. Texts of one length keep their order, so the
    plan depends on the lengths alone. A text longer than `max_tokens` gets a batch to itself.

    >>> plan_batches([3, 9, 3, 4], 9)
    [[1], [3, 0], [2]]
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # The first of a batch is its longest: all others are padded to it.
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def padding_waste(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """The share of a model's input that is padding, 0 to 1.

    >>> padding_waste([4, 2], [[0, 1]]), padding_waste([4, 2], [[0], [1]])
    (0.25, 0.0)
    """
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    real = sum(lengths[i] for batch in batches for i in batch)
    return 1 - real / padded if padded else 0.0
