"""The loss of xVLM2Vec: the student's English and translated states against the teacher's English states."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from xvlm2vec_st.distillation.loss_terms import (
    check_options,
    contrastive_error,
    cosine_error,
    distillation_parts,
    error_terms,
    is_normalized,
    similarity_divergence,
)
from xvlm2vec_st.distillation.middle_layer import check_middle_layer, middle_states
from xvlm2vec_st.distillation.shared_images import SharedImages
from xvlm2vec_st.distillation.states import (
    Features,
    add_projection,
    compared_states,
    concatenate,
    gather_rows,
    head_of,
    image_end_token_ids,
    width_of,
)
from xvlm2vec_st.distillation.teacher_cache import CachedTeacher
from xvlm2vec_st.distillation.teachers import AdapterTeacher, FrozenTeacher, Teacher, check_pair

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
        contrastive_weight: weight of an added InfoNCE term over translation pairs, against the rows of all
            processes' batches (`loss_terms.contrastive_error`); 0: no such term.
        temperature: temperature of the similarities in these two terms.
        middle_layer: number of a layer, from 1. Its pooled states are compared too, by cosine.
        middle_weight: weight of this term.
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
        contrastive_weight: float = 0.0,
        temperature: float = 0.05,
        middle_layer: int | None = None,
        middle_weight: float = 1.0,
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
        if middle_layer is not None:
            check_middle_layer(middle_layer, model, *([teacher] if teacher else []))
        self.middle_layer = middle_layer
        self.teacher: Teacher = (
            AdapterTeacher(model, image_part=image_part, middle_layer=middle_layer)
            if teacher is None
            else FrozenTeacher(teacher, model, image_part=image_part, middle_layer=middle_layer)
        )
        if image_part and (projects or self.teacher.needs_inputs):
            raise ValueError(
                "image_part=True needs a teacher with the student's preprocessing and width; pass image_part=False"
            )
        self.options = ErrorOptions(distance_metric=distance_metric, matryoshka_dims=tuple(matryoshka_dims))
        self.english_weight, self.temperature = english_weight, temperature
        self.added_weights = {
            "similarity_weight": similarity_weight,
            "contrastive_weight": contrastive_weight,
            "middle_weight": middle_weight if middle_layer is not None else 0.0,
        }
        check_options(
            width=width_of(model),
            english_weight=english_weight,
            weights=self.added_weights,
            temperature=temperature,
            **self.options,
        )
        if cache is not None:
            self.teacher = CachedTeacher(self.teacher, cache)
        self._images = SharedImages()
        # Of the last batch: the trainer looks at them if the loss is not a number, and for its log.
        self.targets: States | None = None
        self.watched: list[tuple[Tensor, Tensor, Tensor]] = []
        self._checked_lengths = False

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the weighted parts of one batch."""
        groups: dict[str, list[States]] = {"en": [], "translated": [], "target": []}
        idle: Tensor | float = 0.0
        for features in sentence_features:
            states, aim = self._compute_both(features)
            groups["target"] += [] if aim is None else [aim]
            if "side" in features:
                groups[features["side"]].append(states)
                continue
            real = features["row"] >= 0  # -1: a text without a row, so that every process runs all layers
            is_english = (features["language"] == 0) & real
            is_translated = (features["language"] != 0) & real
            if not real.all():
                idle = states["sentence"][~real].sum() * 0.0
            groups["en"].append({key: value[is_english] for key, value in states.items()})
            if is_translated.any():
                groups["translated"].append({key: value[is_translated] for key, value in states.items()})
        # Autocast would multiply the fp32 states in bf16: cosines of 0.997 and 1 would be equal.
        with torch.autocast(groups["en"][0]["sentence"].device.type, enabled=False):
            parts = self.compute_loss_from_states(*groups.values())
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
        sides = {"english": source, "translated": other} if translated else {"english": source}
        for name, compute in self._added_terms(aim).items():
            for side, states in sides.items():
                weight = weights[side] * self.added_weights[f"{name}_weight"]
                parts[f"{side}_{name}"] = compute(states) * weight
        self._watch(source, other, aim["sentence"])
        return parts

    def _added_terms(self, target: States) -> dict[str, Callable[[States], Tensor]]:
        """The added terms with a weight above 0, as functions of the student's states."""
        temperature, dims = self.temperature, self.options["matryoshka_dims"]
        terms: dict[str, Callable[[States], Tensor]] = {}
        if self.added_weights["similarity_weight"]:
            terms["similarity"] = lambda states: similarity_divergence(
                states["sentence"], target["sentence"], states["row"], temperature=temperature, matryoshka_dims=dims
            )
        if self.added_weights["contrastive_weight"]:
            candidates, first = gather_rows(target["sentence"])
            terms["contrastive"] = lambda states: contrastive_error(
                states["sentence"], candidates, states["row"] + first, temperature=temperature, matryoshka_dims=dims
            )
        if self.added_weights["middle_weight"]:
            terms["middle"] = lambda states: cosine_error(states["middle"], target["middle"][states["row"]]).mean()
        return terms

    def _compute_states(self, features: Features) -> States:
        tokens = middle_states(self.model, features, self.middle_layer, pooled_only=not self.image_part)
        states = compared_states(self.head, tokens, features, self.end_token_ids)
        return states | {key: features[key] for key in ("row", "language") if key in features}

    def _compute_both(self, features: Features) -> tuple[States, States | None]:
        """The student's states of all texts, and the teacher's of the English ones; None if there are none."""
        with self._images.between(self.model, self.teacher):
            states = self._compute_states(features)
            if features.get("side") == "translated":
                return states, None
            source = None if "side" in features else (features["language"] == 0) & (features["row"] >= 0)
            return states, self._compute_targets(features, source)

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
            "middle_layer": self.middle_layer,
            **self.added_weights,
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
