"""The mini world: an LVLM embedder, rows with and without images, five kinds of task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from mmmeb_tasks.mini import TEACHER
from mmmeb_tasks.mini.query_hits import query_hits
from mmmeb_tasks.mini.tasks import MINI_TASKS, MINI_TASKS_11
from mmmeb_tasks.mini.world import LANGUAGES
from mmmeb_tasks.mini.write import write_benchmark, write_corpus
from mmmeb_tasks.models.encoder import MMMEBEncoder

from .records import Hits
from .worlds import World

SCENES, QUERIES, DEV_QUERIES = 6000, 300, 200


class MiniWorld(World):
    """The bundled mini embedder, corpus and benchmark, written to `work` unless they are there.

    Args:
        work: folder of corpus and benchmark.
        languages: the languages that are taught.
        scenes: training scenes, two corpus rows each.
        queries: per task and language.
        dev: score the development scenes.
    """

    start = str(TEACHER)
    has_images = True
    updates = 90
    settings = {  # those of the demo
        "per_device_train_batch_size": 40,
        "learning_rate": 3e-3,
        "muon_learning_rate": 0.01,
        "warmup": 0.05,
    }

    def __init__(
        self,
        work: Path,
        languages: Sequence[str] = LANGUAGES[1:],
        *,
        scenes: int = SCENES,
        queries: int = QUERIES,
        dev: bool = False,
    ) -> None:
        self.dev, self.languages = dev, tuple(languages)
        every = ("en", *self.languages)
        self.tasks = MINI_TASKS if set(every) <= set(LANGUAGES) else MINI_TASKS_11
        self.name = "mini" if self.tasks is MINI_TASKS else "mini11"
        if self.name == "mini11":  # the same batches in halves, which take half the memory
            self.settings = self.settings | {"per_device_train_batch_size": 20, "gradient_accumulation_steps": 2}
        queries = min(queries, DEV_QUERIES) if dev else queries
        self.data = work / f"{'dev' if dev else 'test'}-{queries}-{'-'.join(every)}"
        corpus = work / f"corpus-{scenes}-{'-'.join(every)}"
        if not corpus.is_dir():
            write_corpus(corpus, every, scenes=scenes)
        if not self.data.is_dir():
            write_benchmark(self.data, every, queries=queries, dev=dev)
        self.corpus = corpus / "parallel.jsonl"

    def scored_languages(self) -> list[str]:
        """As `World.scored_languages`."""
        return ["en", *self.languages]

    def headline(self) -> list[tuple[str, str]]:
        """Every task in every taught language."""
        return [(task.metadata.kind, code) for code in self.languages for task in self.tasks]

    def inputs(self, rows: Sequence[Mapping[str, Any]], language: str) -> list[Any]:
        """As `World.inputs`."""
        folder = self.corpus.parent
        return [
            {"image": str(folder / row["image"]), "text": row[language]} if row["image"] else row[language]
            for row in rows
        ]

    def score(self, models: Mapping[str, SentenceTransformer]) -> Hits:
        """As `World.score`."""
        hits: Hits = {}
        for language, model in models.items():
            encoder = MMMEBEncoder(model)
            for task in self.tasks:
                one = task(data_root=self.data).filter_languages(None, hf_subsets=[language])
                of_queries = query_hits(encoder, one, language)
                hits[task.metadata.kind, language] = np.array([of_queries[query] for query in sorted(of_queries)])
        return hits
