"""Choose new tokens for a tokenizer of BPE: merges of the pieces that it cuts words of other languages into."""

import json
from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

from tokenizers import Tokenizer, models, trainers
from transformers import PreTrainedTokenizerBase

from xvlm2vec_st.building.pieces import Pieces, Unit
from xvlm2vec_st.data.corpus import SOURCE

LONGEST = 16  # characters of a token: phrases that a corpus repeats are no words
LEAST = 2  # occurrences of a token
FIRST_LETTER = 0x10000  # the trainer sees each unit as a letter, from here on: there are 2**20


class NewToken(NamedTuple):
    """A token, its row in the embeddings, and the ids of the pieces that it replaces."""

    token: str
    id: int
    pieces: tuple[int, ...]


class Choice(NamedTuple):
    """New tokens, and the merges that make them; a single character needs no merge."""

    tokens: list[NewToken]
    merges: list[tuple[str, str]]


def choose_tokens(
    tokenizer: PreTrainedTokenizerBase,
    texts: dict[str, list[str]],
    count: int,
    *,
    first: int,
    join_ascii: bool = False,
    keep: Collection[str] = (),
) -> Choice:
    """Choose the tokens that save the most pieces: first characters that fall back to bytes, then merges.

    Args:
        tokenizer: a fast BPE.
        texts: by language; those of `en` and of `keep` stay as they are.
        count: tokens, at most.
        first: id of the first new token.
        join_ascii: whether tokens may hold ASCII letters alone, where no text that stays has their pieces in a row.
        keep: languages that stay as they are, like English.

    Raises:
        ValueError: no candidate is left.
    """
    pieces = Pieces(tokenizer)
    words: Counter[tuple[Unit, ...]] = Counter()
    kept: Counter[tuple[Unit, ...]] = Counter()
    for language, own in texts.items():
        (kept if language in (SOURCE, *keep) else words).update(pieces.count_words(own))
    names = choose_characters(pieces, words, kept, count)
    tokens = [NewToken(name, number, unit) for number, (unit, name) in enumerate(names.items(), first)]
    names |= {unit: pieces.token[unit[0]] for word in words for unit in word if len(unit) == 1}
    segments = cut_where_kept_texts_meet(pieces, words, kept, names, join_ascii=join_ascii)
    wanted = asked = count - len(tokens)
    choice = Choice(tokens, [])
    while wanted:
        merges = train_merges(segments, asked)
        choice = add_merges(pieces, names, merges, tokens, first=first, count=count)
        # Some were dropped; the trainer has more.
        if len(choice.tokens) == count or len(merges) < asked:
            break
        asked *= 2
    if not choice.tokens:
        whole, joined = ("", "") if join_ascii else ("holds a character outside ASCII, ", "join_ascii=True, ")
        raise ValueError(
            f"new_tokens is {count}, and no candidate is left in {', '.join(texts.keys() - {SOURCE, *keep})}: a new "
            f"token occurs {LEAST} times or more, {whole}and joins no pieces that meet in a text of "
            f"{', '.join((SOURCE, *keep))}; pass {joined}more text or other languages, or leave new_tokens out"
        )
    return choice


def choose_characters(
    pieces: Pieces, words: Counter[tuple[Unit, ...]], kept: Counter[tuple[Unit, ...]], count: int
) -> dict[Unit, str]:
    """Characters that fall back to bytes, as `{bytes: character}`; those that save the most tokens come first."""
    taken = {unit for word in kept for unit in word}
    saved: Counter[Unit] = Counter()
    for word, times in words.items():
        for unit in word:
            if len(unit) > 1 and unit not in taken:
                saved[unit] += times * (len(unit) - 1)
    often = [unit for unit, tokens in saved.most_common(count) if tokens >= LEAST * (len(unit) - 1)]
    return {unit: pieces.content(unit).decode("utf-8") for unit in often}


def cut_where_kept_texts_meet(
    pieces: Pieces,
    words: Counter[tuple[Unit, ...]],
    kept: Counter[tuple[Unit, ...]],
    names: dict[Unit, str],
    *,
    join_ascii: bool,
) -> Counter[tuple[Unit, ...]]:
    """Parts of words that merges may join: cut where two units meet in a kept text, or may not be joined.

    No merge then begins in a kept text, so no later one goes on there.
    """
    met = {pair for word in kept for pair in zip(word, word[1:], strict=False)}
    content = {unit: pieces.content(unit) for unit in names}
    segments: Counter[tuple[Unit, ...]] = Counter()
    for word, times in words.items():
        start = 0
        for end in range(1, len(word) + 1):
            pair = word[end - 1 : end + 1]
            if (
                end == len(word)
                or not (pair[0] in names and pair[1] in names)
                or pair in met
                or not may_join(content[pair[0]], content[pair[1]], join_ascii=join_ascii)
            ):
                if end - start > 1:
                    segments[word[start:end]] += times
                start = end
    return segments


def may_join(left: bytes, right: bytes, *, join_ascii: bool) -> bool:
    """Whether a merge may join two pieces: not two of ASCII, unless `join_ascii` is set and both are letters.

    >>> may_join("ż".encode(), b"a", join_ascii=False), may_join(b"wo", b"da", join_ascii=False)
    (True, False)
    >>> may_join(b" wo", b"da", join_ascii=True), may_join(b"2", b"2", join_ascii=True)
    (True, False)
    """
    both = left + right
    return not both.isascii() or (join_ascii and both.replace(b" ", b"").isalpha())


def train_merges(segments: Counter[tuple[Unit, ...]], count: int) -> list[tuple[tuple[Unit, ...], tuple[Unit, ...]]]:
    """The merges of units that save the most tokens, by `tokenizers`' trainer; each unit is a letter to it."""
    units = [*dict.fromkeys(unit for segment in segments for unit in segment)]
    letter = {unit: chr(FIRST_LETTER + number) for number, unit in enumerate(units)}
    trainer = trainers.BpeTrainer(
        vocab_size=len(units) + count, min_frequency=LEAST, special_tokens=[], show_progress=False
    )
    trained = Tokenizer(models.BPE())
    spelled = (("".join(letter[unit] for unit in segment), times) for segment, times in segments.items())
    trained.train_from_iterator((word for word, times in spelled for _ in range(times)), trainer)
    merges = json.loads(trained.to_str())["model"]["merges"]

    def units_of(text: str) -> tuple[Unit, ...]:
        return tuple(units[ord(each) - FIRST_LETTER] for each in text)

    return [(units_of(left), units_of(right)) for left, right in merges]


def add_merges(
    pieces: Pieces,
    names: dict[Unit, str],
    merges: list[tuple[tuple[Unit, ...], tuple[Unit, ...]]],
    characters: list[NewToken],
    *,
    first: int,
    count: int,
) -> Choice:
    """The choice of up to `count` tokens: characters, and what merges make.

    Dropped are tokens that are too long, and those that the vocabulary has, because they may stand in English;
    and the merges that go on from a dropped one.
    """
    prefix = pieces.tokenizer.backend_tokenizer.model.continuing_subword_prefix or ""
    tokens, kept = list(characters), []
    known = {token.token for token in tokens}
    name_of: dict[tuple[Unit, ...], str] = {(unit,): name for unit, name in names.items()}
    for left, right in merges:
        if left not in name_of or right not in name_of:
            continue
        name = name_of[left] + name_of[right].removeprefix(prefix)
        whole = left + right
        content = b"".join(map(pieces.content, whole)).decode("utf-8", "ignore")
        if name in pieces.vocabulary or len(content) > LONGEST:
            continue
        if name not in known:
            if len(tokens) == count:
                break
            known.add(name)
            tokens.append(NewToken(name, first + len(tokens), tuple(number for unit in whole for number in unit)))
        name_of[whole] = name
        kept.append((name_of[left], name_of[right]))
    return Choice(tokens, kept)
