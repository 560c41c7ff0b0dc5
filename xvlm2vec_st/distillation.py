"""The loss of xVLM2Vec: student's English and translations against the frozen teacher's English."""

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from xvlm2vec_st.states import (
    image_marks,
    image_part_mask,
    masked_mean,
    pooling_of,
    selected,
    sentence_state,
    token_states,
)
from xvlm2vec_st.teacher import AdapterTeacher, FrozenTeacher, Teacher


def distillation_parts(english: Tensor, translated: Tensor, target: Tensor, row: Tensor) -> dict[str, Tensor]:
    """The two mean squared errors of the paper's loss (section 3, equation of L), unweighted, fp32.

    `english`, `target`: (rows, dim); `translated`: (texts, dim), text i a translation of row
    `row[i]`. A (row, language) is one pair, so a row's English error counts as often as it has
    translations (at least once): with the same languages in every row, both are plain means.

    >>> x = torch.zeros(2, 3)
    >>> parts = distillation_parts(x, x[:1] + 2, x + 1, torch.tensor([1]))
    >>> parts["english"].item(), parts["translated"].item()
    (1.0, 1.0)
    """
    english, translated, target = english.float(), translated.float(), target.float()
    pairs = torch.bincount(row, minlength=len(english)).clamp(min=1).to(english)
    error = (english - target).square().mean(-1)
    parts = {"english": (error * pairs).sum() / pairs.sum()}
    if len(translated):
        parts["translated"] = (translated - target[row]).square().mean()
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
        teacher: the frozen English model, of the same width and pooling. None: the student with its
            adapter off, which is the model that it started from and takes no memory.
        image_part: whether to add the image variant's terms.

    Raises:
        ValueError: student and teacher are one object, or differ in width or pooling; no teacher, and
            a student that learns more than an adapter.

    Example::

        loss = MultilingualDistillationLoss(student, teacher)
        trainer = DistillationTrainer(student, args, train_dataset=corpus, loss=loss, languages=["it"])
    """

    def __init__(
        self, model: SentenceTransformer, teacher: SentenceTransformer | None = None, *, image_part: bool = False
    ) -> None:
        super().__init__()
        if teacher is not None:
            check_pair(model, teacher)
        self.model = model
        self.pooling = pooling_of(model)
        self.image_part = image_part
        self.marks = image_marks(model) if image_part else ()
        self.teacher: Teacher = AdapterTeacher(model) if teacher is None else FrozenTeacher(teacher)

    def forward(
        self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Weighted parts of one batch, each a 0-d fp32 tensor."""
        english, translated, target = [], [], []
        for features in sentence_features:
            states = token_states(self.model, features)
            if "language" in features:
                source = features["language"] == 0
                compared = self._compared(states, features)
                english.append({key: value[source] for key, value in compared.items()})
                if not source.all():
                    translated.append({key: value[~source] for key, value in compared.items()})
                target.append(self._english_of_teacher(features, source))
            elif features["side"] == "en":
                english.append(self._compared(states, features))
                target.append(self._compared(self.teacher.states(features), features))
            else:
                translated.append(self._compared(states, features))
        return self.compute_loss_from_states(english, translated, target)

    @property
    def shares_prefix(self) -> bool:
        """Whether student and teacher compute what a batch's rows share only once: see `LVLM`."""
        return all(getattr(m[0], "shares_prefix", False) for m in (self.model, self.teacher.model))

    def compute_loss_from_states(
        self, english: list[dict], translated: list[dict], target: list[dict]
    ) -> dict[str, Tensor]:
        """The weighted parts from compared states: lists of `{"row", "sentence", "image_part"}`."""
        source, aim = joined(english), joined(target)
        order = torch.argsort(source["row"])
        parts: dict[str, Tensor] = {}
        names = {"sentence": "", "image_part": "_image_part"} if self.image_part else {"sentence": ""}
        for name, suffix in names.items():
            other = joined(translated) if translated else {"row": order[:0], name: source[name][:0]}
            terms = distillation_parts(source[name][order], other[name], aim[name][order], other["row"])
            parts |= {f"{term}{suffix}": value for term, value in terms.items()}
        return {name: value / (2 * len(names)) for name, value in parts.items()}

    def _english_of_teacher(self, features: dict, source: Tensor) -> dict[str, Tensor]:
        asked = selected(features, source)
        if asked is not None:
            return self._compared(self.teacher.states(asked), asked)
        compared = self._compared(self.teacher.states(features), features)
        return {key: value[source] for key, value in compared.items()}

    def _compared(self, states: dict[str, Tensor], features: dict) -> dict[str, Tensor]:
        out = {"row": features["row"], "sentence": sentence_state(self.pooling, states)}
        if self.image_part:
            mask = image_part_mask(features["input_ids"], states["attention_mask"], self.marks)
            out["image_part"] = masked_mean(states["token_embeddings"], mask)
        return out

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says of the loss."""
        return {"image_part": self.image_part}

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


def check_pair(student: SentenceTransformer, teacher: SentenceTransformer) -> None:
    """Refuse a student and a teacher whose states cannot be compared.

    Raises:
        ValueError: one object twice; another width; another pooling.
    """
    if student is teacher:
        raise ValueError("student and teacher are one object: load the teacher a second time")
    ours, theirs = pooling_of(student), pooling_of(teacher)
    if ours.embedding_dimension != theirs.embedding_dimension:
        raise ValueError(
            f"the student is {ours.embedding_dimension} wide and the teacher {theirs.embedding_dimension}; "
            "the error is taken dimension by dimension, so both must be equally wide"
        )
    if ours.pooling_mode != theirs.pooling_mode:
        raise ValueError(
            f"the student pools by {ours.pooling_mode!r} and the teacher by {theirs.pooling_mode!r}; "
            "start the student as a copy of the teacher, or give both one pooling"
        )
