"""Where the targets come from: a frozen English model, or the student with its adapter off."""

from typing import Protocol

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from xvlm2vec_st.distillation.states import compared, head_of, image_marks, selected, token_states, width_of
from xvlm2vec_st.distillation.teacher_cache import preprocessing
from xvlm2vec_st.encoding.batches import images_in
from xvlm2vec_st.encoding.inputs import text_inputs


class Teacher(Protocol):
    """What a loss asks of a teacher."""

    model: SentenceTransformer
    forwards: int
    needs_given: bool

    def targets(self, features: dict, source: Tensor | None = None) -> dict[str, Tensor]:
        """What the student's states are compared with, a row each of the batch's English texts."""


class FrozenTeacher:
    """A model that only looks: in eval mode, without gradients, and no module of any loss.

    It is deliberately not an `nn.Module`: the trainer hands every trainable parameter of the loss
    to the optimizer, and moves and wraps its children.

    Args:
        model: any model of Transformer, Pooling and what may follow: an LVLM or a text model.
        student: the model whose features it is shown; None: one that reads as it does itself. Where
            they read in different ways, the teacher is shown the inputs themselves.
        image_part: whether targets hold the image part's mean state too.

    Attributes:
        forwards: how often the model was run.
    """

    is_student = False

    def __init__(
        self,
        model: SentenceTransformer,
        student: SentenceTransformer | None = None,
        *,
        image_part: bool = False,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.needs_given = student is not None and preprocessing(student) != preprocessing(model)
        self._prepare(image_part)

    def _prepare(self, image_part: bool) -> None:
        self.head = head_of(self.model)
        self.width = width_of(self.model)
        self.parts = ("sentence", "image_part") if image_part else ("sentence",)
        self.marks = image_marks(self.model) if image_part else ()
        self.forwards = 0

    def targets(self, features: dict, source: Tensor | None = None) -> dict[str, Tensor]:
        """fp32 `sentence` and, where asked for, `image_part` states: (rows, dim) each, in the rows' order.

        Args:
            features: of the batch, `given` (the English inputs) among them where they are needed.
            source: (texts,) which of the texts are English; None: all.

        Raises:
            ValueError: a row with an image, for a teacher that reads texts only.
        """
        if self.needs_given:
            return self._seen(self._own_features(features))
        asked = features if source is None else selected(features, source)
        if asked is not None:
            return self._seen(asked)
        return {name: value[source] for name, value in self._seen(features).items()}

    def _seen(self, features: dict) -> dict[str, Tensor]:
        return compared(self.head, self.states(features), features, self.marks)

    def _own_features(self, features: dict) -> dict:
        device = features["row"].device
        for row, item in enumerate(features["given"]):
            if images_in(item) and "image" not in str(self.model[0].modalities):
                raise ValueError(
                    f"row {row} of the batch has an image, and the teacher reads {self.model[0].modalities} "
                    "only; leave images out of the corpus, or take a teacher that sees them"
                )
        own = self.model.preprocess(text_inputs(self.model, features["given"]))
        return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in own.items()}

    @torch.no_grad()
    def states(self, features: dict) -> dict[str, Tensor]:
        """Token states of English features, on the features' device."""
        device = features["input_ids"].device
        if self.model.device != device:
            self.model.to(device)
        self.forwards += 1
        return token_states(self.model, features)


class AdapterTeacher(FrozenTeacher):
    """The student itself with its adapter off: the model that it started from, in no memory of its own.

    Raises:
        ValueError: the student has no adapter, or learns more than its adapter.
    """

    is_student = True

    def __init__(self, student: SentenceTransformer, *, image_part: bool = False) -> None:
        learning = [name for name, p in student.named_parameters() if p.requires_grad]
        if not learning or any("lora_" not in name for name in learning):
            raise ValueError(
                "the student is its own teacher only where it learns an adapter and nothing else; add one "
                f"(student.add_adapter(lora_config(…))) or pass a teacher; learning now: {learning[:3]}"
            )
        self.model = student
        self.needs_given = False
        self._prepare(image_part)

    @torch.no_grad()
    def states(self, features: dict) -> dict[str, Tensor]:
        """Token states of English features, without the adapter and its dropout."""
        inner, training = self.model[0].model, self.model.training
        self.forwards += 1
        inner.disable_adapters()
        self.model.eval()
        try:
            return token_states(self.model, features)
        finally:
            self.model.train(training)
            inner.enable_adapters()
