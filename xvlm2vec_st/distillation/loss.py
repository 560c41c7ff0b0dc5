"""The loss of xVLM2Vec: the student's English and translated states against the teacher's English states."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from xvlm2vec_st.distillation.loss_terms import (
    check_options,
    distillation_parts,
    error_terms,
    is_normalized,
    similarity_divergence,
)
from xvlm2vec_st.distillation.states import (
    Features,
    add_projection,
    compared_states,
    head_of,
    image_end_token_ids,
    pooling_of,
    token_states,
    width_of,
)
from xvlm2vec_st.distillation.teacher_cache import CachedTeacher
from xvlm2vec_st.distillation.teachers import AdapterTeacher, FrozenTeacher, Teacher

States = dict[str, Tensor]


class ErrorOptions(TypedDict):
    """The options of `error_terms`."""

    distance_metric: str
    matryoshka_dims: tuple[int, ...]


class MultilingualDistillationLoss(nn.Module):
    """Self-knowledge distillation into other languages.

    The main variant is `1/2 [MSE(S(en), T(en)) + MSE(S(lang), T(en))]`. With `image_part=True`, the loss is a
    quarter of these two terms and of the same two terms over the mean state of the image part. States are the
    pooled last-layer states (last token), not normalised. Errors are computed in fp32.

    The teacher is not a module of the loss, so the optimizer never sees it.

    Args:
        model: the student: Transformer + Pooling (+ Dense) (+ Normalize).
        teacher: the frozen English model, any sentence-transformers model of the same width and pooling.
            None: the student with its adapter disabled. That is the model it started from, without extra
            memory.
        image_part: add the terms of the image part.
        distance_metric: "mse" (the paper's) or "cosine" (1 - cosine, which ignores lengths).
        english_weight: weight of the English term; the translations get the rest.
        similarity_weight: weight of an added term that compares the similarities between the rows of a batch
            (`loss_terms.similarity_divergence`); 0: no such term.
        temperature: temperature of these similarities.
        matryoshka_dims: compute every error over the first d dimensions too, for each d, equally weighted.
        cache: folder that keeps the teacher's targets: see `CachedTeacher`.
        projection: allow another width or pooling: a Dense layer is added to the student and trained.

    Raises:
        ValueError: student and teacher are the same object, or differ in width or pooling; there is no teacher
            and the student trains more than an adapter; an option is out of range.

    References:
        xVLM2Vec: Adapting LVLM-based embedding models to multilinguality using Self-Knowledge Distillation,
        section 3: https://arxiv.org/abs/2503.09313

    Inputs:
        The feature groups of `ParallelCollator`: one group `texts_*`, or up to four groups by side and image.

        ============== ======================== ==============================================================
        key            shape                    meaning
        ============== ======================== ==============================================================
        input_ids, …   (texts, tokens), …       what `model.preprocess` returns
        row            (texts,)                 row of the batch that a text belongs to; -1: no row
        language       (texts,)                 0: English, else 1 + the place in the collator's `languages`
        side           "en" or "translated"     only with several groups
        inputs         list of English inputs   only if the teacher needs them
        ============== ======================== ==============================================================

    Returns:
        The weighted parts by name, 0-d fp32 tensors. Their sum is the loss.

    Example::

        loss = MultilingualDistillationLoss(student, teacher)
        trainer = DistillationTrainer(student, args, train_dataset=corpus, loss=loss, languages=["it"])
    """

    def __init__(
        self,
        model: SentenceTransformer,
        teacher: SentenceTransformer | None = None,
        *,
        image_part: bool = False,
        distance_metric: str = "mse",
        english_weight: float = 0.5,
        similarity_weight: float = 0.0,
        temperature: float = 0.05,
        matryoshka_dims: Sequence[int] = (),
        cache: str | Path | None = None,
        projection: bool = False,
    ) -> None:
        super().__init__()
        projects = teacher is not None and check_pair(model, teacher, projection=projection)
        if teacher is not None and projects:
            add_projection(model, width_of(teacher))
        self.model = model
        self.head = [*head_of(model)]  # a list: these are modules of the student, not of the loss
        self.image_part = image_part
        self.end_token_ids = image_end_token_ids(model) if image_part else ()
        self.teacher: Teacher = (
            AdapterTeacher(model, image_part=image_part)
            if teacher is None
            else FrozenTeacher(teacher, model, image_part=image_part)
        )
        if image_part and (projects or self.teacher.needs_inputs):
            raise ValueError(
                "image_part=True needs a teacher with the student's preprocessing and width; pass image_part=False"
            )
        self.options = ErrorOptions(distance_metric=distance_metric, matryoshka_dims=tuple(matryoshka_dims))
        self.english_weight, self.temperature = english_weight, temperature
        self.similarity_weight = similarity_weight
        check_options(
            width=width_of(model),
            english_weight=english_weight,
            similarity_weight=similarity_weight,
            temperature=temperature,
            **self.options,
        )
        if cache is not None:
            self.teacher = CachedTeacher(self.teacher, cache)
        # Of the last batch: the trainer looks at them if the loss is not a number, and for its log.
        self.targets: States | None = None
        self.watched: list[tuple[Tensor, Tensor, Tensor]] = []
        self._checked_lengths = False

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the weighted parts of one batch."""
        english, translated, target = [], [], []
        idle: Tensor | float = 0.0
        for features in sentence_features:
            states = self._compute_states(features)
            if features.get("side") == "en":
                english.append(states)
                target.append(self._compute_targets(features, None))
            elif "side" in features:
                translated.append(states)
            else:
                real = features["row"] >= 0  # -1: a text without a row, so that every process runs all layers
                is_english = (features["language"] == 0) & real
                is_translated = (features["language"] != 0) & real
                if not real.all():
                    idle = states["sentence"][~real].sum() * 0.0
                english.append({key: value[is_english] for key, value in states.items()})
                if is_translated.any():
                    translated.append({key: value[is_translated] for key, value in states.items()})
                target.append(self._compute_targets(features, is_english))
        parts = self.compute_loss_from_states(english, translated, target)
        return parts | {"english": parts["english"] + idle}

    @property
    def shares_prefix(self) -> bool:
        """Whether student and teacher compute what the texts of a row share only once: see `LVLM`."""
        return all(getattr(m[0], "shares_prefix", False) for m in (self.model, self.teacher.model))

    @property
    def needs_inputs(self) -> bool:
        """Whether the collator must pass the English inputs on."""
        return self.teacher.needs_inputs

    def compute_loss_from_states(
        self, english: list[States], translated: list[States], target: list[States]
    ) -> dict[str, Tensor]:
        """The weighted parts from compared states: lists of `{"row", "sentence", "image_part"}`."""
        source, aim = concatenate(english), concatenate(target)
        order = torch.argsort(source["row"])
        self._warn_if_normalized(aim["sentence"])
        self.targets = {name: value.detach() for name, value in aim.items() if name != "row"}
        # In row order, so that a translation's row number is an index.
        source, aim = ({key: value[order] for key, value in states.items()} for states in (source, aim))
        other = concatenate(translated) if translated else {key: value[:0] for key, value in source.items()}
        weights = {"english": self.english_weight, "translated": 1 - self.english_weight}
        names = {"sentence": "", "image_part": "_image_part"} if self.image_part else {"sentence": ""}
        parts: dict[str, Tensor] = {}
        for name, suffix in names.items():
            terms = distillation_parts(source[name], other[name], aim[name], other["row"], **self.options)
            for term, value in terms.items():
                parts[f"{term}{suffix}"] = value * (weights[term] / len(names))
        if self.similarity_weight:
            sides = {"english": source, "translated": other} if translated else {"english": source}
            for term, states in sides.items():
                divergence = similarity_divergence(
                    states["sentence"].float(),
                    aim["sentence"],
                    states["row"],
                    temperature=self.temperature,
                    matryoshka_dims=self.options["matryoshka_dims"],
                )
                parts[f"{term}_similarity"] = divergence * (weights[term] * self.similarity_weight)
        self._watch(source, other, aim["sentence"])
        return parts

    def _compute_states(self, features: Features) -> States:
        states = compared_states(self.head, token_states(self.model, features), features, self.end_token_ids)
        return states | {key: features[key] for key in ("row", "language") if key in features}

    def _compute_targets(self, features: Features, source: Tensor | None) -> States:
        row = features["row"] if source is None else features["row"][source]
        return {"row": row} | self.teacher.targets(features, source)

    @torch.no_grad()
    def _watch(self, source: States, other: States, target: Tensor) -> None:
        """Store (row, language, error) of each text for the trainer's log."""
        if "language" in source:
            self.watched = [
                (
                    states["row"],
                    states["language"],
                    error_terms(states["sentence"], aim, **self.options).mean(-1),
                )
                for states, aim in ((source, target), (other, target[other["row"]]))
            ]

    def _warn_if_normalized(self, target: Tensor) -> None:
        if self._checked_lengths or self.options["distance_metric"] != "mse":
            return
        self._checked_lengths = True
        if is_normalized(target):
            warnings.warn(
                "the teacher's states are normalised: the squared error per dimension is of order "
                f"1/{target.shape[-1]}, and gradients nearly vanish; pass distance_metric='cosine'",
                stacklevel=2,
            )

    def get_config_dict(self) -> dict[str, Any]:
        """The options that the model card lists."""
        return {
            "image_part": self.image_part,
            **self.options,
            "english_weight": self.english_weight,
            "similarity_weight": self.similarity_weight,
        }

    @property
    def citation(self) -> str:
        """BibTeX of the method."""
        return (
            "@article{xvlm2vec2025,\n"
            "    title = {xVLM2Vec: Adapting LVLM-based embedding models to multilinguality using"
            " Self-Knowledge Distillation},\n"
            "    journal = {arXiv preprint arXiv:2503.09313},\n    year = {2025}\n}\n"
        )


def concatenate(groups: list[States]) -> States:
    """Concatenate the states of several groups."""
    return {key: torch.cat([group[key] for group in groups]) for key in groups[0]}


def check_pair(student: SentenceTransformer, teacher: SentenceTransformer, *, projection: bool = False) -> bool:
    """Check that the states of two models can be compared; True if the student needs a projection.

    Raises:
        ValueError: both are the same object; width or pooling differ, and `projection` is False.
    """
    if student is teacher:
        raise ValueError("student and teacher are the same object; load the teacher a second time")
    widths = [width_of(model) for model in (student, teacher)]
    modes = [pooling_of(model).pooling_mode for model in (student, teacher)]
    if projection:
        return widths[0] != widths[1] or modes[0] != modes[1]
    if widths[0] != widths[1]:
        raise ValueError(
            f"the student has {widths[0]} dimensions and the teacher {widths[1]}; the error is computed per "
            "dimension, so pass models of equal width, or projection=True"
        )
    if modes[0] != modes[1]:
        raise ValueError(
            f"the student pools by {modes[0]!r} and the teacher by {modes[1]!r}; start the student as a copy "
            "of the teacher, use the same pooling, or pass projection=True"
        )
    return False
