"""Queries by one model, candidates by another: whether an existing index of embeddings stays valid."""

from collections.abc import Iterator, Mapping
from typing import Any, Unpack, cast

import numpy as np
from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol, ModelMeta, MTEBModels
from mteb.models.abs_encoder import AbsEncoder
from mteb.types import Array, BatchedInput, EncodeKwargs, PromptType
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from mmmeb_tasks.instructions import task_prompt
from mmmeb_tasks.metadata import MMMEBMetadata
from mmmeb_tasks.models.search import CandidateSearch, searcher


class TwoModels(AbsEncoder):
    """Two models as one of mteb: queries by the first, candidates by the second, the index.

    Each model is asked as if it were alone, and its vectors are kept with it: the two cannot mix.
    Results are filed under both names and revisions. Scores are what the index model's
    `similarity` gives.

    Args:
        queries: embeds queries; an encoder of mteb, such as `MMMEBEncoder`.
        candidates: embeds candidates.
        index_language: the language in which candidates get their instruction; None: the queries'.
            `take_candidates` gives a task the candidates' texts of that language.

    Raises:
        ValueError: the embeddings have different widths; one model takes instructions and the other
            does not; a model that ranks by itself or has many vectors per text.

    Example:
        pair = TwoModels(MMMEBEncoder(student), MMMEBEncoder(teacher))
        mteb.evaluate(pair, mteb.get_task("MiniT2IRanking"), cache=None)
    """

    mteb_model_meta: ModelMeta

    def __init__(self, queries: MTEBModels, candidates: MTEBModels, *, index_language: str | None = None) -> None:
        """Take both models, and compare what they say of themselves."""
        self.queries, self.candidates = queries, candidates
        self.index_language = index_language
        # Language -> data that the same task will ask for later; the next search takes them.
        self.ahead: Mapping[str, RetrievalSplitData] = {}
        one, two = (_own_search(model, {}).mteb_model_meta for model in (queries, candidates))
        _refuse_mismatch(one, two)
        self.mteb_model_meta = _both(one, two, index_language)

    def similarity(self, embeddings1: Array, embeddings2: Array) -> Array:
        """As the index model compares."""
        return cast(EncoderProtocol, self.candidates).similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Array, embeddings2: Array) -> Array:
        """As the index model compares."""
        return cast(EncoderProtocol, self.candidates).similarity_pairwise(embeddings1, embeddings2)

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Unpack[EncodeKwargs],
    ) -> Array:
        """Embeddings of rows of one side, by the model of that side.

        Raises:
            ValueError: rows that are neither queries nor candidates; what the model raises.
        """
        if prompt_type is None:
            raise ValueError(
                f"{task_metadata.name} does not tell queries from candidates, and {self.mteb_model_meta.name} "
                "has a model for each; score it with one model"
            )
        model = self.queries if prompt_type == PromptType.query else self.candidates
        return cast(EncoderProtocol, model).encode(
            inputs,
            task_metadata=task_metadata,
            hf_split=hf_split,
            hf_subset=hf_subset,
            prompt_type=prompt_type,
            **kwargs,
        )

    def index(self, corpus: Dataset, **kwargs: Any) -> None:
        """Keep the corpus; it is encoded when it is searched."""
        self.corpus = corpus

    def search(
        self, queries: Dataset, *, task_metadata: TaskMetadata, hf_subset: str, **kwargs: Any
    ) -> dict[str, dict[str, float]]:
        """`{query id: {candidate id: score}}`, the best candidates of each query.

        Raises:
            ValueError: a model does not take what its side holds; the vectors have different widths;
                what the models raise.
        """
        self.refuse_lost_side(task_metadata)
        later = {language: data for language, data in self.ahead.items() if language != hf_subset}
        self.ahead = {}
        # An index in one language is encoded once; other languages' texts are not in it.
        behind = {} if self.index_language else later
        search = _EachSide(self, _own_search(self.queries, later), _own_search(self.candidates, behind))
        search.index(self.corpus)
        return search.search(queries, task_metadata=task_metadata, hf_subset=hf_subset, **kwargs)

    def refuse_lost_side(self, metadata: TaskMetadata) -> None:
        """Refuse a task where a model would embed a part of its side only.

        Raises:
            ValueError: the first side that holds what its model does not take.
        """
        for model, side in ((self.queries, PromptType.query), (self.candidates, PromptType.document)):
            refuse_lost_on(metadata, _own_search(model, {}).mteb_model_meta, side)


class _EachSide(CandidateSearch):
    """Ranks candidates, with each side embedded by the search of its own model."""

    def __init__(self, pair: TwoModels, queries: CandidateSearch, candidates: CandidateSearch) -> None:
        super().__init__(pair, {}, {})
        self.sides = {PromptType.query: queries, PromptType.document: candidates}
        self.index_language = pair.index_language

    def _embed(
        self, rows: Dataset, side: PromptType, *, metadata: TaskMetadata, lang: str, **asked: Any
    ) -> NDArray[np.float32]:
        if side == PromptType.document and self.index_language:
            lang = self.index_language
            if metadata.prompt is not None:
                prompt = task_prompt(cast(MMMEBMetadata, metadata).kind, lang)
                metadata = metadata.model_copy(update={"prompt": prompt})
        return self.sides[side]._embed(rows, side, metadata=metadata, lang=lang, **asked)

    def _scores(self, queries: NDArray[np.float32], documents: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        one, two = (self.sides[side].mteb_model_meta for side in (PromptType.query, PromptType.document))
        _refuse_widths(one, queries.shape[1], two, documents.shape[1])
        return super()._scores(queries, documents)


def take_candidates(task: AbsTaskRetrieval, language: str) -> str:
    """Load a task, and give the queries of every language the candidates of one.

    A query's row in that language is the one with the same id. So an index that was made in
    English is asked in other languages. Returned, and beside the scores as `index_sha256`, is the
    hash of that language's rows.

    Raises:
        ValueError: the task does not have the language; a query without a row in it; what loading raises.

    Example:
        task = mteb.get_task("MiniI2TRanking")
        take_candidates(task, "en")
    """
    own: Any = task
    if language not in own.metadata.eval_langs:
        raise ValueError(
            f"{own.metadata.name} has no index language {language!r}; it has {', '.join(own.metadata.eval_langs)}"
        )
    other = type(own)(data_root=own.data_folder).filter_languages(None, hf_subsets=[language])
    other.load_data()
    own.load_data()
    digest = str(other.data_hash(language))
    for lang in own.hf_subsets:
        own._origin[lang]["index_sha256"] = digest
        if lang != language:
            for split, data in own.dataset[lang].items():
                where = f"{own.metadata.name} in {lang}"
                own.dataset[lang][split] = _joined(data, other.dataset[language][split], where, language)
    return digest


def _joined(data: RetrievalSplitData, index: RetrievalSplitData, where: str, language: str) -> RetrievalSplitData:
    """The queries of one split with the candidates and right answers of another, by the rows' ids."""
    rows: dict[str, list[str]] = {}
    for query in index["relevant_docs"]:
        rows.setdefault(query.split(":", 1)[1], []).append(query)
    gold, candidates = {}, {}
    for query in data["relevant_docs"]:
        row = query.split(":", 1)[1]
        same = rows.get(row, [])
        if len(same) > 1 and query in same:  # an id that repeats: then the line tells
            same = [query]
        if len(same) != 1:
            raise ValueError(
                f"{where}: row {row!r} has {len(same) or 'no'} rows of that id in {language}, so its candidates there "
                f"are not known; score this task without the index language {language!r}"
            )
        gold[query] = index["relevant_docs"][same[0]]
        candidates[query] = cast(Mapping, index["top_ranked"])[same[0]]
    return RetrievalSplitData(
        corpus=index["corpus"], queries=data["queries"], relevant_docs=gold, top_ranked=candidates
    )


def embed_queries(
    model: MTEBModels, rows: Dataset, metadata: MMMEBMetadata, lang: str, batch_size: int = 32
) -> NDArray[np.float32]:
    """Embeddings of a task's queries as MMMEB asks for them, (rows, dimensions); what is kept is not encoded again.

    Example:
        embed_queries(encoder, task.dataset["it"]["test"]["queries"], task.metadata, "it")
    """
    search = _own_search(model.queries if isinstance(model, TwoModels) else model, {})
    bare = search.mteb_model_meta.use_instructions is False
    metadata = metadata.model_copy(update={"prompt": None if bare else task_prompt(metadata.kind, lang)})
    return search._embed(
        rows, PromptType.query, metadata=metadata, split="test", lang=lang, kwargs={"batch_size": batch_size}
    )


def refuse_lost_on(metadata: TaskMetadata, meta: ModelMeta, side: PromptType) -> None:
    """Refuse a model that does not take all that one side of a task holds.

    Raises:
        ValueError: names the task, the side, the model and what it takes.
    """
    needed = {*metadata.get_modalities(side)}
    if lost := sorted(needed - {*meta.modalities}):
        what = "queries" if side == PromptType.query else "candidates"
        raise ValueError(
            f"the {what} of {metadata.name} have {' and '.join(sorted(needed))}, but {meta.name} takes "
            f"{' and '.join(sorted(meta.modalities))}: the {' and '.join(lost)} would be dropped; choose a model that "
            "takes it, or other tasks"
        )


def _own_search(model: MTEBModels, ahead: Mapping[str, RetrievalSplitData]) -> CandidateSearch:
    """How MMMEB asks a model that embeds.

    Raises:
        ValueError: the model ranks by itself, or has many vectors per text.
    """
    search = searcher(model, ahead)
    if isinstance(search, CandidateSearch):
        return search
    raise ValueError(
        f"{model.mteb_model_meta.name} ranks by itself or has many vectors per text, so it can neither make an "
        "index nor query one; choose a model with one vector per text"
    )


def _refuse_mismatch(queries: ModelMeta, candidates: ModelMeta) -> None:
    """Refuse two models whose vectors or texts cannot be compared.

    Raises:
        ValueError: names both.
    """
    _refuse_widths(queries, queries.embed_dim, candidates, candidates.embed_dim)
    bare = [meta.use_instructions is False for meta in (queries, candidates)]
    if bare[0] != bare[1]:
        named = [
            f"{meta.name} takes {'no ' if b else ''}instructions"
            for meta, b in ((queries, bare[0]), (candidates, bare[1]))
        ]
        raise ValueError(
            f"{' and '.join(named)}: their texts differ, so the one cannot search the other's index; choose two "
            "models of the same kind, or wrap a text-only model as MMMEBEncoder(model, instructions=False)"
        )


def _refuse_widths(queries: ModelMeta, one: object, candidates: ModelMeta, two: object) -> None:
    if isinstance(one, int) and isinstance(two, int) and one != two:
        raise ValueError(
            f"{queries.name} has embeddings of {one} dimensions and {candidates.name}, the index, of {two}: they "
            "cannot be compared; choose an index model of the same width, such as the teacher of the model"
        )


def _both(one: ModelMeta, two: ModelMeta, index_language: str | None) -> ModelMeta:
    """What results of a pair are filed under: both names, revisions and settings."""
    settings = {**(one.experiment_kwargs or {})}
    settings |= {f"index_{key}": value for key, value in (two.experiment_kwargs or {}).items()}
    if index_language:
        settings["index_language"] = index_language
    return ModelMeta.create_empty(
        overwrites={
            "name": f"{one.name} on {two.name}",
            "revision": f"{one.revision}-on-{two.revision}",
            "modalities": sorted({*one.modalities, *two.modalities}),
            "embed_dim": two.embed_dim,
            "similarity_fn_name": two.similarity_fn_name,
            "framework": two.framework,
            "use_instructions": two.use_instructions,
            "experiment_kwargs": settings or None,
        }
    )
