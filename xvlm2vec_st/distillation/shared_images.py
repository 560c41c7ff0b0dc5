"""Image features that student and teacher compute once, where their vision towers are frozen and the same."""

import copy
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from xvlm2vec_st.distillation.fingerprint import canonical_config
from xvlm2vec_st.distillation.teachers import Teacher
from xvlm2vec_st.encoding.routes import is_sharded
from xvlm2vec_st.families.table import FAMILIES, VISION
from xvlm2vec_st.utils.modules import transformer_of

Weights = dict[str, Tensor]
# Devices whose random numbers we can watch.
DEVICES = ("cpu", "cuda")
# What peft puts into the names of what it adapts or replaces.
ADAPTED = ("base_layer", "original_module")


class SharedImages:
    """Lets the teacher take the student's image features, if it would compute the same.

    That is so if every parameter of the vision tower and the projector is frozen in the student and equals the
    teacher's, and the student draws no random number for them (dropout). Weights are compared when they have
    changed, not in every step.
    """

    def __init__(self) -> None:
        self._seen: tuple = ()
        self._reason: str | None = None

    @contextmanager
    def between(self, student: nn.Module, teacher: Teacher) -> Iterator[None]:
        """Inside, image features of the same tensors are computed once.

        Args:
            student: the student, or its wrapper (DDP).
            teacher: the teacher, or the cache before it.
        """
        with ExitStack() as stack:
            if self.why_apart(student, teacher) is None:
                kept: dict[Hashable, tuple] = {}
                for model in {id(model): model for model in (unwrapped(student), teacher.model)}.values():
                    stack.enter_context(features_kept(image_owner(model), kept))
            yield

    def why_apart(self, student: nn.Module, teacher: Teacher) -> str | None:
        """Why the teacher computes image features of its own; None if it takes the student's.

        Args:
            student: the student, or its wrapper (DDP).
            teacher: the teacher, or the cache before it.
        """
        teacher = getattr(teacher, "live", teacher)
        student = unwrapped(student)
        if not isinstance(student, SentenceTransformer):
            return f"the student is wrapped in a {type(student).__name__}"
        if teacher.needs_inputs:
            return "the teacher preprocesses the images itself"
        owners = image_owner(student), image_owner(teacher.model)
        if None in owners:
            return "student or teacher is not of a tested family"
        if is_sharded(owners[0]) or is_sharded(owners[1]):
            return "the weights are sharded"
        weights = [vision_weights(owner) for owner in owners]
        seen = tuple(state_of(tensor) for each in weights for tensor in each.values())
        if seen != self._seen:
            self._seen, self._reason = seen, why_different(*owners, *weights)
        return self._reason


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, without DDP."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def image_owner(model: Any) -> Any:
    """The module of a sentence-transformers model whose `get_image_features` computes; None: no tested family."""
    inner = transformer_of(model).model
    # Phi-3.5-vision's model hands the call on to its decoder.
    owners = [module for module in inner.modules() if hasattr(module, "get_image_features")]
    return owners[-1] if owners and inner.config.model_type in FAMILIES else None


def vision_weights(owner: nn.Module) -> Weights:
    """The parameters and buffers that image features depend on, by name."""
    named = [*owner.named_parameters(), *owner.named_buffers()]
    return {name: tensor for name, tensor in named if VISION.search(name)}


def state_of(tensor: Tensor) -> tuple:
    """What changes if the tensor, its memory or its content changes; without looking at the content."""
    # PyTorch counts no versions of tensors that were made in inference mode, which cannot be trained either.
    version = None if tensor.is_inference() else tensor._version
    return id(tensor), tensor.data_ptr(), version, tensor.requires_grad


def why_different(student: Any, teacher: Any, weights: Weights, others: Weights) -> str | None:
    """Why two vision towers may give different features; None if they give the same.

    Args:
        student: module that computes the student's image features.
        teacher: the same of the teacher.
        weights: the student's vision weights.
        others: the teacher's.
    """
    both = [*weights.values(), *others.values()]
    if not weights or any(tensor.device.type not in DEVICES or tensor.is_inference() for tensor in both):
        return "there are no vision weights, or none whose changes can be seen"
    if learning := next((name for name, tensor in weights.items() if tensor.requires_grad), None):
        return f"{learning} learns"
    if adapted := next((name for name in weights if any(part in name for part in ADAPTED)), None):
        return f"{adapted} has an adapter"
    if student is teacher:
        return None
    if type(student) is not type(teacher) or settings_of(student.config) != settings_of(teacher.config):
        return "the configurations differ"
    if weights.keys() != others.keys():
        return f"only one of the two has {min(weights.keys() ^ others.keys())}"
    different = next((name for name, tensor in weights.items() if not are_equal(tensor, others[name])), None)
    return different and f"{different} differs"


def settings_of(config: Any) -> tuple:
    """What a configuration says about computing, with the attention implementations."""
    parts = [config, *(getattr(config, name, None) for name in sorted(config.sub_configs))]
    return canonical_config(config.to_dict()), [getattr(part, "_attn_implementation", None) for part in parts]


def are_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have one dtype, device, shape and content.

    >>> are_equal(torch.ones(2), torch.ones(2)), are_equal(torch.ones(2), torch.ones(2).double())
    (True, False)
    """
    alike = (one.dtype, one.device, one.shape) == (other.dtype, other.device, other.shape)
    return alike and torch.equal(one, other)


@contextmanager
def features_kept(owner: Any, kept: dict[Hashable, tuple]) -> Iterator[None]:
    """Let `owner.get_image_features` keep its results in `kept`, by its arguments.

    Its parameters are frozen, so it needs no gradient. transformers' forwards call it on the instance.
    """
    compute: Callable[..., Any] = owner.get_image_features

    @wraps(compute)
    @torch.no_grad()
    def look_up(*args: Any, **kwargs: Any) -> Any:
        key = (*map(identity, args), *((name, identity(kwargs[name])) for name in sorted(kwargs)))
        if key not in kept:
            device = next(owner.parameters()).device
            before = random_states(device)
            features = compute(*args, **kwargs)
            if any(not torch.equal(*pair) for pair in zip(before, random_states(device), strict=True)):
                return features
            kept[key] = (args, kwargs, features)  # the arguments too, so that no other tensor gets their ids
        return copy.copy(kept[key][-1])  # `repeat_per_stretch` writes into the result

    replaced = vars(owner).get("get_image_features")
    owner.get_image_features = look_up
    try:
        yield
    finally:
        del owner.get_image_features
        if replaced is not None:
            owner.get_image_features = replaced


def identity(value: Any) -> Hashable:
    """A tensor's identity, any other value's text."""
    return ("tensor", id(value)) if isinstance(value, Tensor) else repr(value)


def random_states(device: torch.device) -> list[Tensor]:
    """The states of the generators that a computation on the device may draw from."""
    states = [torch.get_rng_state()]
    return states if device.type == "cpu" else [*states, torch.cuda.get_rng_state(device)]
