"""Extend a model's vocabulary by tokens for other scripts, and leave English as it is.

A tokenizer of English cuts words of other scripts into many pieces. New tokens go on from there: they are
merges of the pieces that the tokenizer cuts a word into, learned by the `tokenizers` library's own trainer, and
they come after all merges that the tokenizer has. So a text is cut as before, and then new merges join pieces.

`tokenizer.add_tokens` would not do: it matches before words are split, also inside of words, and a leading space
would become a token of its own.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from xvlm2vec_st.building.pieces import TokenCount, batches, tokens_per_word
from xvlm2vec_st.building.token_choice import Choice, NewToken, choose_tokens
from xvlm2vec_st.data.corpus import SOURCE, check_languages, read_files
from xvlm2vec_st.utils.modules import transformer_of

# The file in a model's folder that lists its new tokens.
LIST = "new_tokens.json"


@dataclass(frozen=True)
class Extension:
    """New tokens, and what the tokenizer made of the corpus before and makes of it now, by language."""

    tokens: list[NewToken]
    before: dict[str, TokenCount]
    after: dict[str, TokenCount]

    def write(self, folder: Path) -> None:
        """List the tokens in a model's folder."""
        counts = {
            lang: {
                when: {"tokens_per_word": count.tokens_per_word, "tokens_per_character": count.tokens_per_character}
                for when, count in (("before", self.before[lang]), ("after", self.after[lang]))
            }
            for lang in self.before
        }
        content = {"languages": counts, "tokens": [token._asdict() for token in self.tokens]}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LIST).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", "utf-8")


def new_token_ids(folder: str | Path) -> list[int]:
    """The ids of a model's new tokens, as `Extension.write` has listed them.

    Raises:
        ValueError: the list is missing or invalid.
    """
    file = Path(folder) / LIST
    try:
        return [int(token["id"]) for token in json.loads(file.read_text("utf-8"))["tokens"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{file} lists no new tokens ({error}); extend the vocabulary again") from error


class Request(NamedTuple):
    """Which tokens to add: from which files and languages, how many at most, and whether they may hold ASCII alone."""

    files: tuple[Path, ...]
    languages: tuple[str, ...]
    new_tokens: int
    join_ascii: bool

    def settings(self) -> dict[str, Any]:
        """As JSON values."""
        files = [str(path) for path in self.files]
        settings = {"extend_vocabulary": files, "languages": [*self.languages], "new_tokens": self.new_tokens}
        return settings | {"join_ascii": self.join_ascii}


def request_extension(
    extend_vocabulary: Sequence[str | Path],
    new_tokens: int | None,
    languages: Sequence[str],
    *,
    join_ascii: bool = False,
    keep_adapter: bool = False,
) -> Request | None:
    """Check the arguments of `build` that ask for new tokens; None without them.

    Raises:
        ValueError: one is there without the others; `keep_adapter` with them, or `join_ascii` without; the count is
            below 1; a file is missing; see `check_languages`.

    >>> request_extension([], None, []) is None
    True
    """
    given = {"extend_vocabulary": bool(extend_vocabulary), "new_tokens": new_tokens is not None}
    given["languages"] = bool(languages)
    if not any(given.values()):
        if join_ascii:
            raise ValueError("join_ascii does nothing without new_tokens; pass both, or leave it out")
        return None
    if missing := [name for name, is_given in given.items() if not is_given]:
        raise ValueError(
            f"{' and '.join(name for name in given if given[name])} without {' and '.join(missing)}; a larger "
            "vocabulary needs all three: extend_vocabulary=[files], new_tokens=N, languages=[codes]"
        )
    if keep_adapter:
        raise ValueError(
            "extend_vocabulary with keep_adapter: the embeddings stay in the base's files; merge the adapter "
            "(keep_adapter=False), or pass only one of them"
        )
    check_count(new_tokens)
    check_languages(languages)
    files = tuple(Path(path) for path in extend_vocabulary)
    if absent := [path for path in files if not path.is_file()]:
        raise ValueError(f"extend_vocabulary: {absent[0]}: no such corpus file")
    return Request(files, tuple(languages), int(new_tokens or 0), join_ascii)


def check_count(new_tokens: int | None) -> None:
    """Check the number of new tokens.

    Raises:
        ValueError: it is not a whole number of 1 or more.

    >>> check_count(1000)
    """
    if isinstance(new_tokens, bool) or not isinstance(new_tokens, int) or new_tokens < 1:
        raise ValueError(f"new_tokens is {new_tokens!r}; pass a whole number of 1 or more, as in new_tokens=1000")


def extend_model(
    model: SentenceTransformer,
    files: Sequence[str | Path],
    languages: Sequence[str],
    new_tokens: int,
    *,
    join_ascii: bool = False,
    keep: Sequence[str] = (),
) -> Extension:
    """Add tokens for the languages of a corpus to a model, in place.

    The embedding of a new token is the mean of those of the pieces that it replaces. No new token joins two pieces
    that meet in an English text of the corpus. So the corpus' English is cut as before, and has the same embeddings,
    bit by bit. By default every new token also holds a character outside ASCII, so all ASCII texts stay too.

    Args:
        model: with a fast tokenizer of BPE: byte-level, or SentencePiece's.
        files: parallel corpus, JSON Lines: `en`, and a column per language.
        languages: columns whose texts the tokens are for.
        new_tokens: how many, at most.
        join_ascii: let new tokens hold ASCII letters alone. Languages with Latin letters then take fewer tokens, and
            an English word that the corpus lacks may be cut differently than before.
        keep: other columns, whose texts are cut as before, like the corpus' English.

    Raises:
        ValueError: a bad argument; the corpus lacks a language; the tokenizer is of another kind; no candidate
            is left.

    Example::

        extension = extend_model(model, ["parallel.jsonl"], ["ru", "ja"], 2000)
        extension.before["ru"].tokens_per_word, extension.after["ru"].tokens_per_word
    """
    request_extension(files, new_tokens, languages)
    if both := [code for code in keep if code in languages]:
        raise ValueError(f"keep: {both[0]!r} is in languages too; a language gets new tokens or is kept")
    tokenizer = model.tokenizer
    check_tokenizer(tokenizer)
    texts = read_texts([Path(path) for path in files], [*languages, *keep])
    body = transformer_of(model).model
    free = first_free_id(tokenizer, body)
    choice = choose_tokens(tokenizer, texts, new_tokens, first=free, join_ascii=join_ascii, keep=keep)
    before = tokens_per_word(tokenizer, texts)
    extend_tokenizer(tokenizer, choice, chain.from_iterable(texts[code] for code in (SOURCE, *keep)))
    extend_embeddings(body, choice.tokens)
    return Extension(choice.tokens, before, tokens_per_word(tokenizer, texts))


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a tokenizer can be extended.

    Raises:
        ValueError: it is a slow one, or not a BPE.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"the tokenizer is a {type(tokenizer).__name__}, a slow tokenizer; only a fast one (tokenizer.json) can "
            "be extended: convert it first, or leave new_tokens out"
        )
    kind = type(tokenizer.backend_tokenizer.model).__name__  # type: ignore[attr-defined]  # of the fast ones
    if kind != "BPE":
        raise ValueError(
            f"the tokenizer is a {kind}; only a BPE can be extended; leave new_tokens out, or take another model"
        )


def read_texts(files: Sequence[Path], languages: Sequence[str]) -> dict[str, list[str]]:
    """The texts of a corpus by language, English among them.

    Raises:
        ValueError: a row is invalid (`read_parallel`); no row has one of the languages.
    """
    texts: dict[str, list[str]] = {language: [] for language in (SOURCE, *languages)}
    for _, row in read_files(files, languages):
        texts[SOURCE].append(row.english)
        for language, text in row.translations.items():
            texts[language].append(text)
    if absent := [language for language, own in texts.items() if not own]:
        raise ValueError(
            f"languages: no row of {', '.join(map(str, files))} has {absent[0]!r}; add a column {absent[0]!r}, or "
            "leave the language out"
        )
    return texts


def first_free_id(tokenizer: PreTrainedTokenizerBase, model: Any) -> int:
    """The first id that neither the tokenizer nor the model's configuration uses; ids without a row do not count."""
    rows = model.get_input_embeddings().num_embeddings

    def ids(value: Any, name: str = "") -> Iterator[int]:
        if isinstance(value, dict):
            for key, part in value.items():
                yield from ids(part, str(key))
        elif isinstance(value, list):
            for part in value:
                yield from ids(part, name)
        elif isinstance(value, int) and value < rows and name.endswith(("token_id", "token_ids", "token_index")):
            yield value

    return max(*tokenizer.get_vocab().values(), *ids(model.config.to_dict())) + 1


def extend_tokenizer(tokenizer: PreTrainedTokenizerBase, choice: Choice, kept: Iterable[str]) -> None:
    """Add tokens and merges to a fast BPE, after those that it has.

    Raises:
        ValueError: a text of `kept` would be cut otherwise than before; the tokenizer is unchanged then.
    """
    backend: Tokenizer = tokenizer.backend_tokenizer  # type: ignore[attr-defined]  # of the fast ones
    before = Tokenizer.from_str(backend.to_str())
    state = json.loads(backend.to_str())["model"]
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in state["merges"]]
    options = {
        key: value for key, value in state.items() if key not in ("type", "vocab", "merges") and value is not None
    }
    # With the added tokens, so that the ids have no holes.
    vocabulary = tokenizer.get_vocab() | {token.token: token.id for token in choice.tokens}
    backend.model = models.BPE(vocab=vocabulary, merges=[*merges, *choice.merges], **options)
    for batch in batches(kept):
        cuts = [[e.ids for e in each.encode_batch(batch, add_special_tokens=False)] for each in (before, backend)]
        if changed := [text for text, old, new in zip(batch, *cuts, strict=True) if old != new]:
            backend.model = before.model
            raise ValueError(
                f"with new tokens this tokenizer would cut the text {changed[0][:80]!r} otherwise; leave "
                "new_tokens out, or take another model"
            )


def extend_embeddings(model: Any, tokens: Sequence[NewToken]) -> None:
    """Give each new token a row, the mean of the rows of its pieces, in all of a model's tables of tokens.

    Rows beyond the old vocabulary, which many checkpoints have, are used first.

    Raises:
        ValueError: transformers does not resize one of the tables.
    """
    needed = max(token.id for token in tokens) + 1
    if needed > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(needed, mean_resizing=False)
    tables = token_tables(model)
    if short := [tuple(table.shape) for table in tables if len(table) < needed]:
        raise ValueError(
            f"a {type(model).__name__} has a table of tokens of shape {short[0]} that does not grow to {needed} rows; "
            "leave new_tokens out, or take another model"
        )
    with torch.no_grad():
        for table in tables:
            for token in tokens:
                table[token.id] = table[list(token.pieces)].float().mean(0).to(table.dtype)


def token_tables(model: Any) -> list[Tensor]:
    """The weights with a row per token: input embeddings, a head of its own, Gemma's embeddings of each layer."""
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    modules += [
        part
        for name, part in model.named_modules()
        if isinstance(part, nn.Embedding) and name.endswith("embed_tokens_per_layer")
    ]
    weights = [tensor for part in modules if part is not None for tensor in part.parameters(recurse=False)]
    return [*{id(weight): weight for weight in weights}.values()]
