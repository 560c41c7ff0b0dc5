"""How a tokenizer cuts texts: the pieces of each word, and how many there are per word and language."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

# The ids of one piece, or of the bytes that a character falls back to.
Unit = tuple[int, ...]
BATCH = 1000
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
BYTE_LEVEL = {letter: byte for byte, letter in bytes_to_unicode().items()}


@dataclass(frozen=True)
class TokenCount:
    """What a tokenizer makes of some texts.

    Attributes:
        tokens: pieces, without the tokens around a text.
        words: runs between white space. Chinese and Japanese have few: compare `tokens_per_character` there.
        characters: all but white space.
        byte_tokens: tokens that hold a part of a character, or a byte that SentencePiece fell back to.
        unknown_tokens: tokens that say that the tokenizer has none.
    """

    tokens: int = 0
    words: int = 0
    characters: int = 0
    byte_tokens: int = 0
    unknown_tokens: int = 0

    @property
    def tokens_per_word(self) -> float:
        """Tokens per run between white space."""
        return self.tokens / max(self.words, 1)

    @property
    def tokens_per_character(self) -> float:
        """Tokens per character that is not white space."""
        return self.tokens / max(self.characters, 1)

    @property
    def byte_share(self) -> float:
        """Share of `byte_tokens`."""
        return self.byte_tokens / max(self.tokens, 1)

    @property
    def unknown_share(self) -> float:
        """Share of unknown tokens."""
        return self.unknown_tokens / max(self.tokens, 1)


def tokens_per_word(tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, Iterable[str]]) -> dict[str, TokenCount]:
    """Count the tokens of texts by language.

    Args:
        tokenizer: of byte-level BPE, of SentencePiece with or without bytes, or of WordPiece.
        texts: `{language: texts}`.

    Example::

        counts = tokens_per_word(model.tokenizer, {"ru": ["красное яблоко"], "ja": ["赤いりんご"]})
        counts["ru"].tokens_per_word, counts["ja"].tokens_per_character, counts["ja"].byte_share
    """
    return {language: count_tokens(tokenizer, own) for language, own in texts.items()}


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> TokenCount:
    """Count the tokens of texts: see `tokens_per_word`."""
    pieces = Pieces(tokenizer)
    words = characters = 0
    ids: Counter[int] = Counter()
    for batch in batches(texts):
        words += sum(len(text.split()) for text in batch)
        characters += sum(len("".join(text.split())) for text in batch)
        for own in tokenizer(batch, add_special_tokens=False)["input_ids"]:
            ids.update(own)
    unknown = {tokenizer.unk_token_id} - {None} if not pieces.byte_level else set()
    return TokenCount(
        tokens=ids.total(),
        words=words,
        characters=characters,
        byte_tokens=sum(count for number, count in ids.items() if pieces.is_part((number,))),
        unknown_tokens=sum(count for number, count in ids.items() if number in unknown),
    )


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of up to `BATCH` texts.

    >>> [len(batch) for batch in batches(["a"] * 2300)]
    [1000, 1000, 300]
    """
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


class Pieces:
    """What a tokenizer's ids stand for, and the units that it cuts words into.

    Attributes:
        vocabulary: `{token: id}`, with the tokens that were added.
        byte_level: whether tokens are written in GPT-2's letters for bytes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer: Any = tokenizer
        self.vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.token = {number: token for token, number in self.vocabulary.items()}
        self.byte_level = tokenizer.is_fast and "ByteLevel(" in repr(
            (self.tokenizer.backend_tokenizer.pre_tokenizer, self.tokenizer.backend_tokenizer.normalizer)
        )
        self._added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}

    def content(self, unit: Unit) -> bytes:
        """The bytes of text that a unit stands for; a space for "▁"."""
        return b"".join(self._content(self.token[number]) for number in unit)

    def _content(self, token: str) -> bytes:
        if self.byte_level and all(letter in BYTE_LEVEL for letter in token):
            return bytes(BYTE_LEVEL[letter] for letter in token)
        if byte := BYTE_TOKEN.fullmatch(token):
            return bytes([int(byte[1], 16)])
        return token.replace("▁", " ").encode()

    def is_part(self, unit: Unit) -> bool:
        """Whether a unit is a byte, or begins or ends within a character."""
        content = self.content(unit)
        try:
            content.decode("utf-8")
        except UnicodeDecodeError:
            return True
        return len(unit) == 1 and bool(BYTE_TOKEN.fullmatch(self.token[unit[0]]))

    def count_words(self, texts: Iterable[str]) -> Counter[tuple[Unit, ...]]:
        """How often each word occurs, as its units. A word is what the tokenizer merges within."""
        words: Counter[tuple[Unit, ...]] = Counter()
        for batch in batches(texts):
            for encoding in self.tokenizer.backend_tokenizer.encode_batch(batch, add_special_tokens=False):
                ids: dict[int, list[int]] = {}
                for number, word in zip(encoding.ids, encoding.word_ids, strict=True):
                    ids.setdefault(word, []).append(number)
                words.update(word for own in ids.values() for word in self._split(self._units(own)))
        return words

    def _units(self, ids: list[int]) -> list[Unit]:
        """Units of a word's ids: the bytes that a character fell back to are one unit."""
        units: list[Unit] = []
        left = 0  # bytes that the last unit still needs
        for number in ids:
            is_byte = not self.byte_level and BYTE_TOKEN.fullmatch(self.token[number])
            if is_byte and left:
                units[-1] += (number,)
                left -= 1
                continue
            units.append((number,))
            first = self.content((number,))[0] if is_byte else 0
            left = (first >= 0xC0) + (first >= 0xE0) + (first >= 0xF0)
        return units

    def _split(self, units: list[Unit]) -> Iterator[tuple[Unit, ...]]:
        """Split at added tokens, and where a tokenizer without words would merge across them."""
        word: list[Unit] = []
        for unit in units:
            is_added = unit[0] in self._added
            if word and (is_added or self._ends_word(word[-1], unit)):
                yield tuple(word)
                word = []
            if not is_added:
                word.append(unit)
        if word:
            yield tuple(word)

    def _ends_word(self, left: Unit, right: Unit) -> bool:
        """Whether a word ends between two units, where the tokenizer has no words of its own."""
        if self.byte_level:
            return False
        before, after = (self.content(unit).decode("utf-8", "replace") for unit in (left, right))
        return after.startswith(" ") or (bool(before.strip()) and kind(before[-1]) != kind(after[0]))


def kind(character: str) -> str:
    """L for a letter or mark, N for a digit, P for all else.

    >>> [kind(character) for character in "я年ी7。"]
    ['L', 'L', 'L', 'N', 'P']
    """
    category = unicodedata.category(character)[0]
    return {"L": "L", "M": "L", "N": "N"}.get(category, "P")
