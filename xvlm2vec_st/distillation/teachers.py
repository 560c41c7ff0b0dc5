"""Teachers: a frozen English model, or the student with its adapter disabled."""

from typing import Protocol

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from xvlm2vec_st.distillation.fingerprint import preprocessing_signature
from xvlm2vec_st.distillation.middle_layer import middle_states
from xvlm2vec_st.distillation.states import (
    Features,
    compared_states,
    head_of,
    image_end_token_ids,
    pooling_of,
    select_rows,
    width_of,
)
from xvlm2vec_st.encoding.batches import images_in
from xvlm2vec_st.encoding.inputs import text_inputs
from xvlm2vec_st.utils.modules import transformer_of


class Teacher(Protocol):
    """What the loss needs of a teacher.

    Attributes:
        model: the teacher model.
        parts: names of the targets: "sentence", and optionally "middle" and "image_part".
        width: dimensions of each target.
        is_student: whether the model is the student itself.
        needs_inputs: whether batches must hold the English inputs, not only their features.
    """

    model: SentenceTransformer
    parts: tuple[str, ...]
    width: int
    is_student: bool
    needs_inputs: bool

    def targets(self, features: Features, source: Tensor | None = None) -> dict[str, Tensor]:
        """The states that the student's are compared with, one row per English text of the batch."""


class FrozenTeacher:
    """A model in eval mode, without gradients, outside of the loss' modules.

    It is not an `nn.Module` on purpose: the trainer passes every trainable parameter of the loss to the
    optimizer, and moves and wraps its children.

    Args:
        model: Transformer, Pooling and optional further modules: an LVLM or a text model.
        student: the model that the features belong to. If the two preprocess differently, the teacher
            preprocesses the inputs itself. None: the features are the teacher's own.
        image_part: whether targets include the mean state of the image part.
        middle_layer: whether targets include the pooled state after this layer: see `middle_states`.
    """

    is_student = False

    def __init__(
        self,
        model: SentenceTransformer,
        student: SentenceTransformer | None = None,
        *,
        image_part: bool = False,
        middle_layer: int | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.needs_inputs = student is not None and (preprocessing_signature(student) != preprocessing_signature(model))
        self._prepare(image_part, middle_layer)

    def _prepare(self, image_part: bool, middle_layer: int | None) -> None:
        self.head, self.middle_layer = head_of(self.model), middle_layer
        self.width = width_of(self.model)
        added = {"middle": middle_layer is not None, "image_part": image_part}
        self.parts: tuple[str, ...] = ("sentence", *(name for name, wanted in added.items() if wanted))
        self.end_token_ids = image_end_token_ids(self.model) if image_part else ()

    def targets(self, features: Features, source: Tensor | None = None) -> dict[str, Tensor]:
        """fp32 `sentence` and, with `image_part`, `image_part` states: (rows, dim) each, in row order.

        Args:
            features: of the batch; with `needs_inputs`, they hold the English `inputs`.
            source: (texts,) bool, which texts are English; None: all.

        Raises:
            ValueError: a row has an image, and the teacher embeds texts only.
        """
        if self.needs_inputs:
            return self._compute(self._preprocess(features))
        selected = features if source is None else select_rows(features, source)
        if selected is not None:
            return self._compute(selected)
        return {name: value[source] for name, value in self._compute(features).items()}

    def _compute(self, features: Features) -> dict[str, Tensor]:
        return compared_states(self.head, self.states(features), features, self.end_token_ids)

    def _preprocess(self, features: Features) -> Features:
        device = features["row"].device
        modalities = transformer_of(self.model).modalities
        for row, item in enumerate(features["inputs"]):
            if images_in(item) and "image" not in str(modalities):
                raise ValueError(
                    f"row {row} of the batch has an image, and the teacher embeds {modalities} only; remove "
                    "images from the corpus, or use a teacher that embeds them"
                )
        result = self.model.preprocess(text_inputs(self.model, features["inputs"]))
        return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in result.items()}

    @torch.no_grad()
    def states(self, features: Features) -> dict[str, Tensor]:
        """Token states of English features, on the features' device."""
        device = features["input_ids"].device
        if self.model.device != device:
            self.model.to(device)
        return middle_states(self.model, features, self.middle_layer, pooled_only=not self.end_token_ids)


class AdapterTeacher(FrozenTeacher):
    """The student with its adapter disabled: the model that it started from, without extra memory.

    Raises:
        ValueError: the student has no adapter, or other parameters learn too.
    """

    is_student = True

    def __init__(
        self, student: SentenceTransformer, *, image_part: bool = False, middle_layer: int | None = None
    ) -> None:
        trainable = [name for name, p in student.named_parameters() if p.requires_grad]
        if not trainable or any("lora_" not in name for name in trainable):
            raise ValueError(
                "without a teacher, the student must train an adapter and nothing else; add one "
                f"(student.add_adapter(lora_config(…))), or pass a teacher; trainable now: {trainable[:3]}"
            )
        self.model = student
        self.needs_inputs = False
        self._prepare(image_part, middle_layer)

    @torch.no_grad()
    def states(self, features: Features) -> dict[str, Tensor]:
        """Token states of English features, without the adapter and its dropout."""
        training, inner = self.model.training, transformer_of(self.model).model
        inner.disable_adapters()
        self.model.eval()
        try:
            return middle_states(self.model, features, self.middle_layer, pooled_only=not self.end_token_ids)
        finally:
            self.model.train(training)
            inner.enable_adapters()


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
