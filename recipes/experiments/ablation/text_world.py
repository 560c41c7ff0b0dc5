"""Captions by people: a text embedder, Moses files or parallel.jsonl, retrieval of the English sentence."""

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from xvlm2vec_st.utils.folders import whole_file

from .records import Hits
from .worlds import World

PLACE = "{}"
# How a published file name spells a language code.
CODES = {"jp": "ja"}
Texts = dict[str, list[str]]


class TextWorld(World):
    """A text embedder, parallel sentences, and test sets.

    A set of sentences is a JSON Lines file, or a Moses file name with `{}` for the language,
    `multi30k/train.{}.gz`: line n of each file is one sentence. All languages of a test set that exist are scored.

    Args:
        work: folder for the corpus in JSON Lines.
        start: the English text embedder.
        languages: the languages that are taught.
        train: the training set.
        tests: test sets by name; the first one decides.
        dev: whether `tests` are development sets.

    Raises:
        ValueError: a set has no English, lacks a taught language, or its files differ in length.
    """

    name = "captions"
    has_images = False
    updates = 60
    settings = {
        "per_device_train_batch_size": 64,
        "tokens_per_batch": 4800,
        "learning_rate": 3e-3,
        "muon_learning_rate": 0.012,
        "bf16": True,
        "warmup": 0.1,
    }

    def __init__(
        self,
        work: Path,
        start: str,
        languages: Sequence[str],
        train: str,
        tests: Mapping[str, str],
        *,
        dev: bool = False,
    ) -> None:
        self.dev = dev
        self.start, self.languages = start, tuple(languages)
        self.corpus = write_rows(read_texts(train, ("en", *languages)), work / "captions.jsonl")
        self.tests = {name: read_texts(path) for name, path in tests.items()}

    def scored_languages(self) -> list[str]:
        """As `World.scored_languages`."""
        return list(dict.fromkeys(["en", *self.languages, *(code for texts in self.tests.values() for code in texts)]))

    def headline(self) -> list[tuple[str, str]]:
        """The taught languages of the first test set."""
        return [(next(iter(self.tests)), code) for code in self.languages]

    def inputs(self, rows: Sequence[Mapping[str, Any]], language: str) -> list[Any]:
        """As `World.inputs`."""
        return [row[language] for row in rows]

    def score(self, models: Mapping[str, SentenceTransformer]) -> Hits:
        """R@1 of the English sentence among all of the set, as `World.score`."""
        hits: Hits = {}
        for name, texts in self.tests.items():
            english = models["en"].encode(texts["en"], convert_to_tensor=True)
            for code in texts:
                queries = models[code].encode(texts[code], convert_to_tensor=True)
                hits[name, code] = right_answers(queries, english, texts["en"])
        return hits


def right_answers(queries: torch.Tensor, candidates: torch.Tensor, texts: Sequence[str]) -> np.ndarray:
    """Whether the nearest candidate of query n is candidate n, or has its text: (queries,) bool.

    >>> right_answers(torch.eye(2), torch.eye(2).flip(0), ["a", "b"]).tolist()
    [False, False]
    """
    nearest = (torch.nn.functional.normalize(queries, dim=-1) @ candidates.T).argmax(-1).tolist()
    return np.array([texts[place] == text for place, text in zip(nearest, texts, strict=True)])


def read_texts(path: str, languages: Sequence[str] | None = None) -> Texts:
    """The sentences of a set by language, English first: see `TextWorld`.

    Raises:
        ValueError: see `TextWorld`.
    """
    texts = read_json_lines(Path(path)) if PLACE not in path else read_moses(path)
    missing = [code for code in languages or ("en",) if code not in texts]
    if missing:
        raise ValueError(f"{path}: no sentences in {', '.join(missing)}; it has {', '.join(texts) or 'none'}")
    lengths = {code: len(lines) for code, lines in texts.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path}: files of different length: {lengths}; line n of each must be one sentence")
    return {code: texts[code] for code in ("en", *(code for code in texts if code != "en"))}


def read_moses(path: str) -> Texts:
    """The lines of `path` with each language that exists in place of `{}`."""
    head, tail = Path(path).name.split(PLACE)
    pattern = re.compile(re.escape(head) + r"(\w{2,3}(?:-\w+)?)" + re.escape(tail))
    texts = {}
    for file in sorted(Path(path).parent.iterdir()):
        if match := pattern.fullmatch(file.name):
            text = gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8")
            with text:
                lines = text.read().removesuffix("\n").split("\n")
            texts[CODES.get(match[1], match[1])] = [line.strip() for line in lines]
    return texts


def read_json_lines(path: Path) -> Texts:
    """The columns of a parallel corpus."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
    codes = [code for code in rows[0] if code not in ("id", "image")] if rows else []
    return {code: [row[code] for row in rows] for code in codes}


def write_rows(texts: Texts, out: Path) -> Path:
    """Write sentences as a corpus for `distill`; rows with an empty sentence are left out."""
    with whole_file(out) as part, part.open("w", encoding="utf-8") as file:
        for number, row in enumerate(zip(*texts.values(), strict=True)):
            if all(row):
                file.write(json.dumps({"id": str(number), **dict(zip(texts, row, strict=True))}, ensure_ascii=False))
                file.write("\n")
    return out
