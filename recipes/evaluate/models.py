"""The models that are scored: by name, in styles, alone or over the index of another one."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import mteb
from mteb.models import ModelMeta, MTEBModels, SentenceTransformerEncoderWrapper
from mteb.types import PromptType

from mmmeb_tasks.instructions import Style
from mmmeb_tasks.models.encoder import MMMEBEncoder
from mmmeb_tasks.models.local_folders import folder_meta, is_local, load_folder
from mmmeb_tasks.models.two_models import TwoModels, refuse_lost_on
from mmmeb_tasks.retrieval import MMMEBRetrieval, refuse_lost_modality

LONGEST = 200  # bytes of a folder's name; file systems take 255


@dataclass
class Run:
    """One model in one style: what its rows are called, and how it is filed."""

    label: str
    style: Style | None
    model: MTEBModels

    @property
    def folder(self) -> str:
        """The name of its folder of predictions: the state of the weights is in it."""
        meta = self.model.mteb_model_meta
        name = f"{meta.model_name_as_path()}__{meta.revision}__{self.style or 'bare'}"
        if isinstance(self.model, TwoModels) and self.model.index_language:
            name += f"__{self.model.index_language}"
        if len(os.fsencode(name)) > LONGEST:  # two long names, and two revisions
            name = f"{name[:40]}__{sha256(name.encode()).hexdigest()}"
        return name


@dataclass
class Index:
    """The model that made the index: a run of it in each style, loaded once for all models."""

    name: str
    runs: Mapping[Style | None, Run]
    language: str | None = None

    def asked_by(self, run: Run) -> Run:
        """A model's queries over this index, in the model's style where the index has it.

        Raises:
            ValueError: two models that do not fit, as `TwoModels` says.
        """
        own = self.runs.get(run.style) or next(iter(self.runs.values()))
        label = f"{run.label} on {self.name}" + (f" in {self.language}" if self.language else "")
        return Run(label, run.style, TwoModels(run.model, own.model, index_language=self.language))


def load_index(
    name: str, meta: ModelMeta, styles: Sequence[Style], device: str | None, language: str | None = None
) -> Index:
    """Load the model of an index.

    Args:
        name: a folder, or a name of mteb.
        meta: what `meta_of` says of it.
        styles: how texts end; a model without instructions has none.
        device: where it runs; None: what is there.
        language: of the candidates; None: that of the queries.
    """
    return Index(name, {run.style: run for run in runs(name, meta, styles, device)}, language)


def meta_of(name: str) -> ModelMeta:
    """What mteb or a folder's files say of a model, before it is loaded."""
    return folder_meta(Path(name)) if is_local(name) else mteb.get_model_meta(name, fetch_from_hf=True)


def refuse_half(
    name: str,
    meta: ModelMeta,
    tasks: Sequence[MMMEBRetrieval],
    styles: Sequence[Style],
    device: str | None,
    side: PromptType | None = None,
) -> None:
    """Refuse a model that does not take all that a task holds, before any other model is scored.

    Args:
        name: a folder, or a name of mteb.
        meta: what `meta_of` says of it.
        tasks: the tasks.
        styles: how texts end.
        device: where it runs, if it must be loaded.
        side: the side that it embeds; None: both.

    Raises:
        ValueError: the first such task.
    """

    def refuse(said: ModelMeta) -> None:
        for task in tasks:
            if side is None:
                refuse_lost_modality(task.metadata, said)
            else:
                refuse_lost_on(task.metadata, said, side)

    try:
        refuse(meta)
    except ValueError:
        if is_local(name):
            raise
        # The Hub's files may say less of a model than it takes; loading it tells.
        refuse(next(runs(name, meta, styles, device)).model.mteb_model_meta)


def runs(
    name: str, meta: ModelMeta, styles: Sequence[Style], device: str | None, index: Index | None = None
) -> Iterator[Run]:
    """A model in each style; a model that takes no instructions, once.

    Args:
        name: a folder, or a name of mteb.
        meta: what `meta_of` says of it.
        styles: how texts end.
        device: where it runs; None: what is there.
        index: whose candidates it ranks; None: its own.

    Raises:
        ValueError: a model that does not fit the index.
    """
    for run in _own_runs(name, meta, styles, device):
        yield run if index is None else index.asked_by(run)


def _own_runs(name: str, meta: ModelMeta, styles: Sequence[Style], device: str | None) -> Iterator[Run]:
    if is_local(name):
        first = load_folder(meta.name, meta.revision, folder=name, device=device)
        revision = meta.revision
    else:
        first = meta.load_model(device=device)
        revision = first.mteb_model_meta.revision
        stock = type(first) is SentenceTransformerEncoderWrapper
        if stock and first.model.supports(("image", "text")):
            first = MMMEBEncoder(first.model, name=meta.name, batch_size=None)
    if not (isinstance(first, MMMEBEncoder) and first.style):
        if isinstance(first, MMMEBEncoder):
            first.mteb_model_meta = first.mteb_model_meta.model_copy(update={"revision": revision})
        yield Run(name, None, first)
        return
    for style in styles:
        encoder = MMMEBEncoder(first.model, name=meta.name, style=style, batch_size=None)
        encoder.mteb_model_meta = encoder.mteb_model_meta.model_copy(update={"revision": revision})
        yield Run(name, style, encoder)
