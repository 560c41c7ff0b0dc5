"""The last-layer hidden states that the loss compares, and a projection between two widths."""

from typing import Any, cast

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from torch import Tensor, nn

from xvlm2vec_st.encoding.routes import PER_ROW
from xvlm2vec_st.utils.modules import transformer_of

Features = dict[str, Any]
# Feature keys that no model accepts.
BOOKKEEPING = ("row", "side", "language", "inputs", "ids")


def head_of(model: SentenceTransformer) -> list[nn.Module]:
    """The modules between the token states and the normalisation: Pooling, then optional Dense layers.

    Raises:
        ValueError: the modules are not Transformer, Pooling, optional Dense layers, optional Normalize.
    """
    modules = list(model.children())
    head = modules[1:-1] if len(modules) > 2 and isinstance(modules[-1], Normalize) else modules[1:]
    fits = head and isinstance(modules[0], Transformer) and isinstance(head[0], Pooling)
    if not fits or not all(isinstance(module, Dense) for module in head[1:]):
        names = " + ".join(type(module).__name__ for module in modules)
        raise ValueError(
            f"the model is {names}; pass one of Transformer + Pooling, with optional Dense layers and Normalize"
        )
    return head


def pooling_of(model: SentenceTransformer) -> Pooling:
    """The model's pooling module; raises as `head_of`."""
    return cast(Pooling, head_of(model)[0])


def width_of(model: SentenceTransformer) -> int:
    """The number of dimensions of the compared states."""
    return cast(int, model.get_embedding_dimension())


def token_states(model: nn.Module, features: Features) -> dict[str, Tensor]:
    """Run the model on preprocessed features; the result holds `token_embeddings`.

    The features are not changed. `model` may be wrapped (DDP), so it is called as a whole.
    """
    return model({key: value for key, value in features.items() if key not in BOOKKEEPING})


def sentence_state(pooling: Pooling, states: dict[str, Tensor]) -> Tensor:
    """The pooled last-layer state of each row, not normalised, fp32: (rows, dim).

    Last-token pooling returns the state of the last real token, on either padding side (paper, section 3).
    """
    inputs = {key: states[key] for key in ("token_embeddings", "attention_mask")}
    return pooling(inputs)["sentence_embedding"].float()


def compared_states(
    head: list[nn.Module], states: dict[str, Tensor], features: Features, end_token_ids: tuple[int, ...] = ()
) -> dict[str, Tensor]:
    """`sentence` states after the head; the mean `image_part` states with `end_token_ids`; pooled `middle` states.

    `states` holds `middle_embeddings` if the model ran inside `middle_layer.middle_states`.
    """
    pooling = cast(Pooling, head[0])
    sentence = sentence_state(pooling, states)
    for dense in head[1:]:
        sentence = dense({"sentence_embedding": sentence})["sentence_embedding"].float()
    compared = {"sentence": sentence}
    if "middle_embeddings" in states:
        compared["middle"] = sentence_state(pooling, states | {"token_embeddings": states["middle_embeddings"]})
    if end_token_ids:
        mask = image_part_mask(features["input_ids"], states["attention_mask"], end_token_ids)
        compared["image_part"] = masked_mean(states["token_embeddings"], mask)
    return compared


def concatenate(groups: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the states of several groups."""
    return {key: torch.cat([group[key] for group in groups]) for key in groups[0]}


def gather_rows(values: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes, (rows of all, dim), and where this process' rows begin. Without gradients.

    Processes may have different numbers of rows. Every process must call this in the same step.

    >>> gather_rows(torch.zeros(2, 3))[1]
    0
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values, 0
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    count = torch.tensor([len(values)], device=values.device)
    counts = [torch.zeros_like(count) for _ in range(world)]
    torch.distributed.all_gather(counts, count)
    sizes = [int(size) for size in counts]
    padded = values.new_zeros(max(sizes), *values.shape[1:])
    padded[: len(values)] = values.detach()
    gathered = [torch.zeros_like(padded) for _ in range(world)]
    torch.distributed.all_gather(gathered, padded)
    rows = torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])
    return rows, sum(sizes[:rank])


def image_part_mask(input_ids: Tensor, attention_mask: Tensor, end_token_ids: tuple[int, ...]) -> Tensor:
    """Which positions belong to the image part: (rows, tokens), bool.

    The part goes from the first real position to the last one whose id is in `end_token_ids` (the image token
    and `<s>`), inclusive. Phi-3.5-vision writes `<s>` before and after the image, LLaVA only before it.

    >>> ids = torch.tensor([[1, 9, 9, 5, 6], [0, 0, 1, 5, 6]])
    >>> image_part_mask(ids, ids != 0, (1, 9)).int().tolist()
    [[1, 1, 1, 0, 0], [0, 0, 1, 0, 0]]
    """
    real = attention_mask.bool()
    ends = torch.isin(input_ids, torch.tensor(end_token_ids, device=input_ids.device)) & real
    ends_from_here = ends.flip(-1).cumsum(-1).flip(-1)
    return (ends_from_here > 0) & real


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of (rows, tokens, dim) states over the positions of a (rows, tokens) mask, fp32.

    >>> masked_mean(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]]))
    tensor([[2.]])
    """
    weight = mask.to(torch.float32)
    return torch.einsum("rtd,rt->rd", states.float(), weight) / weight.sum(-1, keepdim=True).clamp(min=1)


def image_end_token_ids(model: SentenceTransformer) -> tuple[int, ...]:
    """Token ids that end the image part: the processor's image token and, if there is one, `<s>`.

    Raises:
        ValueError: the model's processor has no image token.
    """
    processor = transformer_of(model).processor
    image = getattr(processor, "image_token_id", None)
    if image is None:
        raise ValueError(
            f"{type(processor).__name__} has no image token, which image_part=True needs; pass image_part=False"
        )
    return tuple(dict.fromkeys(i for i in (image, model.tokenizer.bos_token_id) if i is not None))


def select_rows(features: Features, rows: Tensor) -> Features | None:
    """Features of the selected rows, (rows,) bool, without columns that are padding for all of them.

    None if the image tensors cannot be split by row.
    """
    if "image_group" not in features and any("pixel" in key for key in features):
        return None
    selected = {key: features[key][rows] for key in (*PER_ROW, "row", "language") if key in features}
    used = selected["attention_mask"].any(0)
    trimmed = {key: value[:, used] if value.ndim == 2 else value for key, value in selected.items()}
    return features | trimmed


def add_projection(student: SentenceTransformer, width: int) -> None:
    """Insert a Dense layer with `width` outputs after the student's pooling, in place.

    It maps a student of another width or pooling into the teacher's space. It is a module of the student, so
    it is trained, saved and loaded with it. It starts as an orthogonal map, which keeps distances.

    Example::

        add_projection(student, teacher.get_embedding_dimension())
    """
    dense = Dense(width_of(student), width, bias=False, activation_function=nn.Identity())
    with torch.no_grad():
        nn.init.orthogonal_(dense.linear.weight)
    dense.to(student.device)
    last = len(student) - 1
    student.insert(last if isinstance(student[last], Normalize) else last + 1, dense)
