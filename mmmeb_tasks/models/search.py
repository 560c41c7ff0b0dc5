"""Ranking each query's own candidates: every content encoded once, scores in blocks.

mteb scores one query at a time (0.3 ms each) and encodes what five languages share five times.
Here a model's vectors are kept by content, and one matrix product scores a block of queries.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value
from mteb._create_dataloaders import create_dataloader
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol, MTEBModels, SearchProtocol, SentenceTransformerEncoderWrapper
from mteb.models.model_meta import ScoringFunction
from mteb.types import EncodeKwargs, PromptType
from numpy.typing import NDArray

from mmmeb_tasks.data.contents import Selection
from mmmeb_tasks.metadata import MMMEBMetadata
from mmmeb_tasks.models.inputs import ModelInput, neighbours, read_items
from mmmeb_tasks.utils.texts import PlainTexts

# A block of scores is in memory twice: 12,000 documents, 25 MB. The model may normalise all documents for each block.
QUERIES_A_BLOCK = 256


def best(scores: NDArray[np.float32], candidates: NDArray[Any], top_k: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """The `top_k` candidates of one query, best first; of equal scores, the later in the corpus.

    Args:
        scores: of the whole corpus, (documents,).
        candidates: places of the query's candidates in the corpus, (candidates,).
        top_k: how many to keep.

    >>> best(np.array([0.1, 0.9, 0.9, 0.5], np.float32), np.array([0, 1, 2]), 2)[0]
    array([2, 1])
    """
    own = scores[candidates]
    if len(own) > top_k:
        # Everything above the k-th score, and all that ties with it, so that place decides nothing.
        kept = own >= np.partition(own, -top_k)[-top_k]
        candidates, own = candidates[kept], own[kept]
    order = np.lexsort((candidates, own))[::-1][:top_k]
    return candidates[order], own[order]


def place_finder(documents: list[str]) -> Callable[[Sequence[str]], NDArray[Any]]:
    """What gives the places of candidates in the corpus, from its ids.

    >>> find = place_finder(["a", "b", "c"])
    >>> find(["c", "a"]).tolist(), find(Selection(["a", "b", "c"], np.array([0, 2]))).tolist()
    ([2, 0], [0, 2])
    """
    places = {id: place for place, id in enumerate(documents)}
    same: Sequence[str] | None = None

    def find(candidates: Sequence[str]) -> NDArray[Any]:
        nonlocal same
        if isinstance(candidates, Selection):
            # The numbers are places only in the corpus that they were made for.
            if candidates.whole is not same and candidates.whole == documents:
                same = candidates.whole
            if candidates.whole is same:
                return candidates.places
        return np.fromiter(map(places.__getitem__, candidates), np.int64)

    return find


class CandidateSearch:
    """mteb's search protocol over a model that encodes, for MMMEB tasks.

    Args:
        model: `MMMEBEncoder`, or any encoder of mteb.
        vectors: what was encoded before, for encoders that do not keep it themselves.
        ahead: language -> its data, that will be asked for later by the same task.
    """

    def __init__(
        self,
        model: EncoderProtocol,
        vectors: dict[tuple, NDArray[np.float32]],
        ahead: Mapping[str, RetrievalSplitData],
    ) -> None:
        """Wrap the model."""
        self.model = model
        self.mteb_model_meta = model.mteb_model_meta
        self.ahead = ahead
        self._vectors = vectors

    def index(self, corpus: Dataset, **kwargs: Any) -> None:
        """Keep the corpus; it is encoded when it is searched."""
        self.corpus = corpus

    def search(
        self,
        queries: Dataset,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        top_k: int,
        encode_kwargs: EncodeKwargs,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        num_proc: int | None = None,
        **kwargs: Any,
    ) -> dict[str, dict[str, float]]:
        """`{query id: {document id: score}}`, the `top_k` best candidates of each query.

        Raises:
            ValueError: no candidates; scores that are not numbers; what the model raises.
        """
        if top_ranked is None:
            raise ValueError(f"{task_metadata.name} has no candidates (top_ranked); MMMEB ranks these only")
        embed = partial(self._embed, metadata=task_metadata, split=hf_split, lang=hf_subset, kwargs=encode_kwargs)
        query_vectors, vectors = embed(queries, PromptType.query), embed(self.corpus, PromptType.document)
        documents = self.corpus["id"][:]
        find = place_finder(documents)
        results: dict[str, dict[str, float]] = {}
        for id, scores in zip(queries["id"][:], self._scores(query_vectors, vectors), strict=True):
            ranked = best(scores, find(top_ranked[id]), top_k)
            results[id] = {documents[place]: float(score) for place, score in zip(*ranked, strict=True)}
        return results

    def _scores(self, queries: NDArray[np.float32], documents: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """Scores of the whole corpus for one query after another, as the model compares."""
        for start in range(0, len(queries), QUERIES_A_BLOCK):
            block = torch.as_tensor(self.model.similarity(queries[start : start + QUERIES_A_BLOCK], documents))
            scores = block.detach().float().cpu().numpy()
            if np.isnan(scores).any():
                raise ValueError(f"{int(np.isnan(scores).sum())} scores are not numbers (NaN); the model returned them")
            yield from scores

    def _embed(
        self,
        rows: Dataset,
        side: PromptType,
        *,
        metadata: TaskMetadata,
        split: str,
        lang: str,
        kwargs: EncodeKwargs,
    ) -> NDArray[np.float32]:
        own: Any = self.model
        if hasattr(own, "read") and hasattr(own, "embed"):  # `MMMEBEncoder`, whose import takes 3 s
            items = own.read(rows, metadata, lang, side)
            ahead: list[ModelInput] = []
            if "image" in rows.column_names:  # only rows with an image have anything to share
                for other, data in self.ahead.items():
                    later = data["queries"] if side == PromptType.query else data["corpus"]
                    ahead += own.read(later, metadata, other, side)
            return own.embed(items, task=f"{metadata.name} {lang} {side.value}", ahead=ahead, **kwargs)
        items = read_items(rows, cast(MMMEBMetadata, metadata).kind, lang, side, None)
        if self.mteb_model_meta.use_instructions is not False:
            # The prompt says what a class label is; nothing is known about the side.
            items = [ModelInput(text, i.image, i.source) for i, text in zip(items, _texts(rows), strict=True)]
        shared = cast(dict, metadata.prompt or {}).get(side.value), None if self._sides_alike() else side
        new = [item for item in neighbours(items) if (*item.key, *shared) not in self._vectors]
        if new:
            loader: Any = create_dataloader(
                _table(new), task_metadata=metadata, prompt_type=side, batch_size=kwargs.get("batch_size", 32)
            )
            if isinstance(self.model, SentenceTransformerEncoderWrapper):
                loader = PlainTexts(loader, self.model.model.modalities)
            vectors = self.model.encode(
                loader, task_metadata=metadata, hf_split=split, hf_subset=lang, prompt_type=side, **kwargs
            )
            vectors = torch.as_tensor(vectors).detach().float().cpu().numpy()
            self._vectors |= {(*item.key, *shared): vector for item, vector in zip(new, vectors, strict=True)}
        return np.stack([self._vectors[*item.key, *shared] for item in items])

    def _sides_alike(self) -> bool:
        """Whether a query and a document of the same content have the same vector for certain."""
        return self.mteb_model_meta.use_instructions is False and not _is_routed(self.model)


def _texts(rows: Dataset) -> list[str | None]:
    return rows["text"][:] if "text" in rows.column_names else [None] * len(rows)


def _table(items: Sequence[ModelInput]) -> Dataset:
    """Items as rows of mteb."""
    columns: dict[str, list] = {"id": [str(number) for number in range(len(items))]}
    features: dict[str, Any] = {"id": Value("string")}
    if items[0].text is not None:
        columns["text"], features["text"] = [item.text for item in items], Value("string")
    if items[0].image is not None:
        columns["image"] = [
            {"bytes": item.source, "path": None} if isinstance(item.source, bytes) else str(item.source)
            for item in items
        ]
        features["image"] = Image()
    return Dataset.from_dict(columns, features=Features(features))


def _is_routed(model: EncoderProtocol) -> bool:
    """A sentence-transformers model with other modules for queries than for documents."""
    modules = getattr(model, "model", None)
    return isinstance(modules, torch.nn.Module) and any(type(m).__name__ == "Router" for m in modules.modules())


# Model -> our encoder in its place, if any, and vectors: kept as long as it lives, for all tasks and languages.
_KEPT: WeakKeyDictionary[MTEBModels, tuple[EncoderProtocol | None, dict[tuple, NDArray[np.float32]]]]
_KEPT = WeakKeyDictionary()


def searcher(model: MTEBModels, ahead: Mapping[str, RetrievalSplitData]) -> MTEBModels | CandidateSearch:
    """How MMMEB asks a model: by `CandidateSearch`, or as mteb does where a model searches itself."""
    searches = isinstance(model, SearchProtocol) or not isinstance(model, EncoderProtocol)
    if searches or model.mteb_model_meta.similarity_fn_name is ScoringFunction.MAX_SIM:
        return model
    encoder = cast(EncoderProtocol, model)
    if model not in _KEPT:
        _KEPT[model] = wrap_again(encoder), {}
    own, vectors = _KEPT[model]
    return CandidateSearch(own or encoder, vectors, ahead)


def wrap_again(model: EncoderProtocol) -> EncoderProtocol | None:
    """mteb's wrapper around a sentence-transformers model -> our encoder, where that gives it more.

    mteb's gives such a model no task prompt. A model that takes an image with a text gets MMMEB's
    exact texts; one that takes them apart, and has no prompts of its own, the bare content.
    """
    if type(model) is not SentenceTransformerEncoderWrapper:
        return None
    joint = model.model.supports(("image", "text"))
    if not joint and model.mteb_model_meta.use_instructions:
        return None
    from mmmeb_tasks.models.encoder import MMMEBEncoder  # imports sentence-transformers, which takes 3 s

    return MMMEBEncoder(model.model, batch_size=None)
