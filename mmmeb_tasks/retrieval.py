"""MMMEB as mteb retrieval tasks: rows of the published files -> ranking of own candidates."""

from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, Features, Image, Value
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta, MTEBModels
from mteb.types import PromptType, ScoresDict

from mmmeb_tasks.data.candidates import CandidateLists
from mmmeb_tasks.data.layout import BenchmarkRow, DataError, Kind, data_file, layout_of, read_rows
from mmmeb_tasks.instructions import task_prompt
from mmmeb_tasks.metadata import MMMEBMetadata
from mmmeb_tasks.models.inputs import content_id, file_id
from mmmeb_tasks.models.search import searcher


def split_data(rows: Iterable[BenchmarkRow], kind: Kind) -> RetrievalSplitData:
    """Rows of one task and language as mteb's corpus, queries, relevant documents and candidates.

    The corpus is the union of all candidates. Candidates stand in the order of their ids, which
    are hashes of what they hold: where the file put the gold cannot decide, a copy of the gold is
    the gold, and among equal scores the greater id is first, in `search.best` as in mteb.

    Raises:
        DataError: no row at all.
    """
    layout = layout_of(kind)
    queries: list[dict[str, str]] = []
    gold: dict[str, dict[str, int]] = {}
    lists = CandidateLists(content_id)
    for row in rows:
        query = f"{row.line}:{row.id}"  # ids alone may repeat, and the line can be looked up
        gold[query] = {lists.add(row.candidates): 1}
        queries.append(
            {"id": query}
            | ({"image": str(row.image)} if layout.image else {})
            | ({"text": row.text} if row.text is not None else {})
        )
    if not queries:
        raise DataError(f"no {kind} row with a query; there is nothing to score")
    side = "image" if layout.images else "text"
    candidates = {query["id"]: own for query, own in zip(queries, lists.finish(), strict=True)}
    return RetrievalSplitData(
        corpus=_dataset([{"id": id, side: str(content)} for id, content in sorted(lists.contents.items())]),
        queries=_dataset(queries),
        relevant_docs=gold,
        top_ranked=cast(dict[str, list[str]], candidates),  # mteb's own type; it reads any sequence
    )


def _dataset(rows: list[dict[str, str]]) -> Dataset:
    """Rows as a table whose `image` column holds paths, decoded on reading."""
    features = {name: Image() if name == "image" else Value("string") for name in rows[0]}
    return Dataset.from_list(rows, features=Features(features))


class MMMEBRetrieval(AbsTaskRetrieval):
    """An MMMEB task: each query ranks its own candidates. A subclass is metadata and attributes.

    Attributes:
        metadata: what mteb asks for, and the kind; languages of the files are its subsets.
        source: the dataset's name in the file names ("xm").
        maximum: the number in the file names, at most so many candidates a query.
        data_root: gives the folder of the published layout, asked when the data is loaded.

    Args:
        seed: mteb's.
        data_root: a folder to take instead of the subclass's.
    """

    metadata: MMMEBMetadata
    source: str
    maximum: int
    data_root: Callable[[], Path]
    k_values = (1, 5, 10)

    def __init__(self, seed: int = 42, *, data_root: Path | None = None, **kwargs: object) -> None:
        """Make the task; no file is opened yet."""
        super().__init__(seed=seed, **kwargs)
        self._origin: dict[str, dict[str, str]] = {}
        if data_root is not None:
            self.data_root = lambda: Path(data_root)

    @cached_property
    def data_folder(self) -> Path:
        """The folder of the published layout; asked for once, because the Hub may be asked."""
        return self.data_root()

    def data_hash(self, language: str) -> str | None:
        """The SHA-256 of the rows of a language as they are on disk now; None without a file.

        Raises:
            DataError: no data at all.
        """
        path = data_file(self.data_folder, self.source, language, self.maximum, self.metadata.kind)
        return file_id(path) if path.is_file() else None

    def load_data(self, num_proc: int | None = None, **kwargs: object) -> None:
        """Read the files of the chosen languages; one process, whatever `num_proc` says.

        Raises:
            DataError: a split that the task does not have; as `read_rows`.
        """
        if self.data_loaded:
            return
        refuse_splits(self.metadata, self.eval_splits)
        root, kind = self.data_folder, self.metadata.kind

        def load(language: str) -> RetrievalSplitData:
            return split_data(read_rows(root, self.source, language, self.maximum, kind), kind)

        self.dataset = {language: {split: load(language) for split in self.eval_splits} for language in self.hf_subsets}
        self._origin = {
            language: {"data_sha256": self.data_hash(language) or "", "data_folder": root.name}
            for language in self.hf_subsets
        }
        self.data_loaded = True

    def _evaluate_subset(
        self,
        model: MTEBModels,
        data_split: RetrievalSplitData,
        *,
        hf_subset: str,
        **kwargs: Any,  # noqa: ANN401 - mteb's own, handed on
    ) -> ScoresDict:
        """One language, with that language's instruction as the prompt of the task.

        What the rows were stands beside the scores: mteb files these under model and task only.
        """
        refuse_lost_modality(self.metadata, model.mteb_model_meta)
        search = searcher(model, self._ahead(hf_subset, kwargs["hf_split"]))
        # A prompt of mteb has no language, so the metadata is another one while a language runs.
        metadata = self.metadata
        bare = model.mteb_model_meta.use_instructions is False
        prompt = None if bare else task_prompt(metadata.kind, hf_subset)
        self.metadata = metadata.model_copy(update={"prompt": prompt})
        try:
            scores = super()._evaluate_subset(search, data_split, hf_subset=hf_subset, **kwargs)
        finally:
            self.metadata = metadata
        return {**scores, **self._origin.get(hf_subset, {})}

    def _ahead(self, language: str, split: str) -> dict[str, RetrievalSplitData]:
        """The other languages' data, where all of them will be asked for: in a run from the start.

        mteb asks for one language at a time and does not say for which later; a run that goes on
        after an interruption starts with another language than the first.
        """
        if language != self.hf_subsets[0]:
            return {}
        return {lang: self.dataset[lang][split] for lang in self.hf_subsets if lang != language}


def refuse_splits(metadata: TaskMetadata, asked: Iterable[str]) -> None:
    """Refuse a split that a task does not have: its rows would be filed as another's.

    Raises:
        DataError: the first such split.
    """
    for split in asked:
        if split not in metadata.eval_splits:
            raise DataError(
                f"{metadata.name} has no split {split!r}, only {', '.join(metadata.eval_splits)}; leave "
                "--eval-splits (eval_splits) out"
            )


def lost_modalities(metadata: TaskMetadata, meta: ModelMeta) -> list[str]:
    """What queries and candidates of a task hold and a model does not take."""
    sides = (PromptType.query, PromptType.document)
    needed = {modality for side in sides for modality in metadata.get_modalities(side)}
    return sorted(needed - {*meta.modalities})


def refuse_lost_modality(metadata: TaskMetadata, meta: ModelMeta) -> None:
    """Raise where a model would be scored on half of its input.

    mteb only warns when a model takes a part of a query: an image+text query then goes to a
    text-only model as text, with a plausible score.

    Raises:
        ValueError: the model does not take all that queries and candidates hold.
    """
    if lost := lost_modalities(metadata, meta):
        raise ValueError(
            f"{metadata.name} has {' and '.join(sorted(metadata.modalities))}, but {meta.name} takes "
            f"{' and '.join(sorted(meta.modalities))}: the {' and '.join(lost)} would be dropped. "
            "A model that takes it must say so in mteb_model_meta.modalities, as MMMEBEncoder does"
        )
