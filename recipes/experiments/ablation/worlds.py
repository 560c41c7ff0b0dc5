"""What a comparison is run on: a start, a corpus, settings of training, and test sets."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from .records import Hits

FIT_ROWS = 4000  # rows that the untrained maps are fitted on


class World(ABC):
    """A start, a corpus and test sets.

    Attributes:
        name: what the records and the document call it.
        start: folder or name of the model that is the teacher, and where every student starts.
        corpus: JSON Lines file of parallel rows.
        languages: the languages that are taught.
        has_images: whether rows have images.
        settings: training arguments and options of `DistillArguments` that all variants share.
        updates: weight updates by default.
        dev: whether the development set is scored, instead of the test sets.
    """

    name: str
    start: str
    corpus: Path
    languages: Sequence[str]
    has_images: bool
    settings: Mapping[str, Any]
    updates: int
    dev: bool

    @abstractmethod
    def score(self, models: Mapping[str, SentenceTransformer]) -> Hits:
        """Whether each query's right answer is first, per task and language, with the model of each language."""

    @abstractmethod
    def scored_languages(self) -> list[str]:
        """All languages of the test sets, English first."""

    @abstractmethod
    def headline(self) -> list[tuple[str, str]]:
        """The (task, language) whose mean ranks the variants."""

    @abstractmethod
    def inputs(self, rows: Sequence[Mapping[str, Any]], language: str) -> list[Any]:
        """The inputs of `encode` for corpus rows in a language."""

    def same_for_all(self, model: SentenceTransformer) -> dict[str, SentenceTransformer]:
        """One model for all languages."""
        return dict.fromkeys(self.scored_languages(), model)

    def fit_rows(self) -> list[dict[str, Any]]:
        """The corpus rows, spread evenly, that the untrained maps are fitted on."""
        rows = read_corpus(self.corpus)
        rows = [row for row in rows if all(row.get(code) is not None for code in ("en", *self.languages))]
        return rows[:: max(len(rows) // FIT_ROWS, 1)][:FIT_ROWS]

    def embed(self, model: SentenceTransformer, rows: Sequence[Mapping[str, Any]], language: str) -> np.ndarray:
        """Embeddings of rows in a language: (rows, dim), fp64."""
        return np.asarray(model.encode(self.inputs(rows, language), batch_size=64), np.float64)


def read_corpus(corpus: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in corpus.read_text("utf-8").splitlines() if line]


def write_subset(corpus: Path, image_share: float, out: Path) -> Path:
    """Write the corpus rows such that this share of them has an image; as many rows as possible.

    Raises:
        ValueError: the corpus lacks rows of one kind.
    """
    rows = read_corpus(corpus)
    images = [row for row in rows if row.get("image")]
    texts = [row for row in rows if not row.get("image")]
    if (image_share > 0 and not images) or (image_share < 1 and not texts):
        raise ValueError(f"{corpus} has {len(images)} rows with an image and {len(texts)} without: both are needed")
    total = min(
        len(images) / image_share if image_share else len(rows),
        len(texts) / (1 - image_share) if image_share < 1 else len(rows),
    )
    chosen = {row["id"] for row in images[: round(total * image_share)]}
    chosen |= {row["id"] for row in texts[: round(total * (1 - image_share))]}
    with out.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows if row["id"] in chosen)
    return out
