"""The loss of xVLM2Vec: student's English and translations against the frozen teacher's English."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from xvlm2vec_st.distillation.loss_terms import check_options, errors, similarity_divergence, unit_length
from xvlm2vec_st.distillation.projection import add_projection
from xvlm2vec_st.distillation.states import compared, head_of, image_marks, pooling_of, token_states, width_of
from xvlm2vec_st.distillation.teacher_cache import CachedTeacher
from xvlm2vec_st.distillation.teachers import AdapterTeacher, FrozenTeacher, Teacher


def distillation_parts(
    english: Tensor,
    translated: Tensor,
    target: Tensor,
    row: Tensor,
    *,
    form: str = "mse",
    dims: Sequence[int] = (),
) -> dict[str, Tensor]:
    """The two mean errors of the paper's loss (section 3, equation of L), unweighted, fp32.

    `english`, `target`: (rows, dim); `translated`: (texts, dim), text i a translation of row
    `row[i]`. A (row, language) is one pair, so a row's English error counts as often as it has
    translations (at least once): with the same languages in every row, both are plain means.
    For `form` and `dims` see `losses.errors`; the paper's is "mse" over all dimensions.

    >>> x = torch.zeros(2, 3)
    >>> parts = distillation_parts(x, x[:1] + 2, x + 1, torch.tensor([1]))
    >>> parts["english"].item(), parts["translated"].item()
    (1.0, 1.0)
    """
    english, translated, target = english.float(), translated.float(), target.float()
    pairs = torch.bincount(row, minlength=len(english)).clamp(min=1).to(english)
    error = errors(english, target, form=form, dims=dims).mean(-1)
    parts = {"english": (error * pairs).sum() / pairs.sum()}
    if len(translated):
        parts["translated"] = errors(translated, target[row], form=form, dims=dims).mean()
    return parts


class MultilingualDistillationLoss(nn.Module):
    """Self-knowledge distillation into other languages (paper, section 3).

    Main variant: `1/2 [MSE(S(en), T(en)) + MSE(S(lang), T(en))]`; with `image_part=True` the image
    variant: a quarter of those two and of the same two over the image part's mean state. States are
    last-layer, pooled as the models pool (last token), not normalised; errors in fp32.

    Takes the feature groups of `ParallelCollator`, of either form; returns the weighted parts by
    name, whose sum is the loss. The teacher is not a module of the loss, so the optimizer never sees it.

    Args:
        model: the student, Transformer + Pooling (+ Normalize).
        teacher: the frozen English model, any sentence-transformers model of the same width and
            pooling. None: the student with its adapter off, which is the model that it started from
            and takes no memory.
        image_part: whether to add the image variant's terms.
        form: "mse", the paper's, or "cosine", 1 - cosine, which does not see lengths.
        english_weight: of the student's English; the translations have the rest.
        similarity: weight of an added term, how the batch's rows lie to one another
            (`losses.similarity_divergence`); 0: none.
        temperature: of that term's distributions.
        dims: Matryoshka: every error over the first d dimensions for each d, equally weighted.
        cache: a folder in which the teacher's targets are kept and found again: see `CachedTeacher`.
        projection: allow another width or pooling: a learnt Dense layer is added to the student.

    Raises:
        ValueError: student and teacher are one object, or differ in width or pooling; no teacher, and
            a student that learns more than an adapter; an option out of range.

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
        form: str = "mse",
        english_weight: float = 0.5,
        similarity: float = 0.0,
        temperature: float = 0.05,
        dims: Sequence[int] = (),
        cache: str | Path | None = None,
        projection: bool = False,
    ) -> None:
        super().__init__()
        differ = teacher is not None and check_pair(model, teacher, projection=projection)
        if differ:
            add_projection(model, width_of(teacher))
        self.model = model
        self.head = [*head_of(model)]  # a list: the modules are the student's, not the loss's
        self.image_part = image_part
        self.marks = image_marks(model) if image_part else ()
        self.teacher: Teacher = (
            AdapterTeacher(model, image_part=image_part)
            if teacher is None
            else FrozenTeacher(teacher, model, image_part=image_part)
        )
        if image_part and (differ or self.teacher.needs_given):
            raise ValueError(
                "the image variant needs a teacher that reads as the student does; use the main one"
            )
        self.options = {"form": form, "dims": tuple(dims)}
        self.english_weight, self.similarity, self.temperature = english_weight, similarity, temperature
        check_options(
            width=width_of(model),
            english_weight=english_weight,
            similarity=similarity,
            temperature=temperature,
            **self.options,
        )
        if cache is not None:
            self.teacher = CachedTeacher(self.teacher, cache)
        # Of the last batch, for the trainer to look at where a loss is not a number.
        self.targets: dict[str, Tensor] | None = None
        self.watched: list[tuple[Tensor, Tensor, Tensor]] = []
        self._told = False

    def forward(
        self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Weighted parts of one batch, each a 0-d fp32 tensor."""
        english, translated, target = [], [], []
        idle = 0.0
        for features in sentence_features:
            states = token_states(self.model, features)
            found = self._compared(states, features)
            if features.get("side") == "en":
                english.append(found)
                target.append(self._targets(features, None))
            elif "side" in features:
                translated.append(found)
            else:
                real = features["row"] >= 0  # below 0: a stand-in, so that every process runs every layer
                source, other = (features["language"] == 0) & real, (features["language"] != 0) & real
                if not real.all():
                    idle = found["sentence"][~real].sum() * 0.0
                english.append({key: value[source] for key, value in found.items()})
                if other.any():
                    translated.append({key: value[other] for key, value in found.items()})
                target.append(self._targets(features, source))
        parts = self.compute_loss_from_states(english, translated, target)
        return parts | {"english": parts["english"] + idle}

    @property
    def shares_prefix(self) -> bool:
        """Whether student and teacher compute what a batch's rows share only once: see `LVLM`."""
        return all(getattr(m[0], "shares_prefix", False) for m in (self.model, self.teacher.model))

    @property
    def needs_given(self) -> bool:
        """Whether the collator has to pass the English inputs themselves on."""
        return self.teacher.needs_given

    def compute_loss_from_states(
        self, english: list[dict], translated: list[dict], target: list[dict]
    ) -> dict[str, Tensor]:
        """The weighted parts from compared states: lists of `{"row", "sentence", "image_part"}`."""
        source, aim = joined(english), joined(target)
        order = torch.argsort(source["row"])
        self._warn(aim["sentence"])
        self.targets = {name: value.detach() for name, value in aim.items() if name != "row"}
        parts: dict[str, Tensor] = {}
        names = {"sentence": "", "image_part": "_image_part"} if self.image_part else {"sentence": ""}
        weights = {"english": self.english_weight, "translated": 1 - self.english_weight}
        # Rows in order, so that a text's row number is its row's place.
        source, aim = ({key: value[order] for key, value in states.items()} for states in (source, aim))
        none = {key: value[:0] for key, value in source.items()}
        other = joined(translated) if translated else none
        for name, suffix in names.items():
            terms = distillation_parts(source[name], other[name], aim[name], other["row"], **self.options)
            parts |= {
                f"{term}{suffix}": value * (weights[term] / len(names)) for term, value in terms.items()
            }
        if self.similarity:
            both = {"english": source, "translated": other} if translated else {"english": source}
            for term, states in both.items():
                divergence = similarity_divergence(
                    states["sentence"].float(),
                    aim["sentence"],
                    states["row"],
                    temperature=self.temperature,
                    dims=self.options["dims"],
                )
                parts[f"{term}_similarity"] = divergence * (weights[term] * self.similarity)
        self._watch(source, other, aim["sentence"])
        return parts

    def _targets(self, features: dict, source: Tensor | None) -> dict[str, Tensor]:
        row = features["row"] if source is None else features["row"][source]
        return {"row": row} | self.teacher.targets(features, source)

    def _compared(self, states: dict[str, Tensor], features: dict) -> dict[str, Tensor]:
        found = {"row": features["row"]} | compared(self.head, states, features, self.marks)
        return found | ({"language": features["language"]} if "language" in features else {})

    @torch.no_grad()
    def _watch(self, source: dict, other: dict, target: Tensor) -> None:
        """Note each text's (row, language, error) for the trainer's log, in the form that is trained."""
        if "language" in source:
            self.watched = [
                (states["row"], states["language"], errors(states["sentence"], aim, **self.options).mean(-1))
                for states, aim in ((source, target), (other, target[other["row"]]))
            ]

    def _warn(self, target: Tensor) -> None:
        if self._told or self.options["form"] != "mse":
            return
        self._told = True
        if unit_length(target):
            warnings.warn(
                "the teacher's states are normalised: a squared error a dimension is then of order "
                f"1/{target.shape[-1]}, and gradients nearly vanish; take the form that sees no lengths: "
                'form="cosine" (--form cosine)',
                stacklevel=2,
            )

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says of the loss."""
        told = {"image_part": self.image_part, **self.options, "english_weight": self.english_weight}
        return told | {"similarity": self.similarity}

    @property
    def citation(self) -> str:
        """BibTeX of the method."""
        return (
            "@article{xvlm2vec2025,\n"
            "    title = {xVLM2Vec: Adapting LVLM-based embedding models to multilinguality using"
            " Self-Knowledge Distillation},\n"
            "    journal = {arXiv preprint arXiv:2503.09313},\n    year = {2025}\n}\n"
        )


def joined(groups: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the states of several groups."""
    return {key: torch.cat([group[key] for group in groups]) for key in groups[0]}


def check_pair(
    student: SentenceTransformer, teacher: SentenceTransformer, *, projection: bool = False
) -> bool:
    """Refuse a student and a teacher whose states cannot be compared; True where a projection is due.

    Raises:
        ValueError: one object twice; another width or pooling, and no projection.
    """
    if student is teacher:
        raise ValueError("student and teacher are one object: load the teacher a second time")
    ours, theirs = width_of(student), width_of(teacher)
    modes = [pooling_of(model).pooling_mode for model in (student, teacher)]
    if projection:
        return ours != theirs or modes[0] != modes[1]
    if ours != theirs:
        raise ValueError(
            f"the student is {ours} wide and the teacher {theirs}; the error is taken dimension by "
            "dimension, so both must be equally wide, or the student learns a projection (projection=True)"
        )
    if modes[0] != modes[1]:
        raise ValueError(
            f"the student pools by {modes[0]!r} and the teacher by {modes[1]!r}; start the student as a copy "
            "of the teacher, give both one pooling, or learn a projection (projection=True)"
        )
    return False
