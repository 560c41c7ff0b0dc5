"""Hidden states that the method compares: the sentence's, and the image part's."""

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from torch import Tensor, nn

from xvlm2vec_st.lvlm import PER_ROW

# Features of ours that no model takes.
BOOKKEEPING = ("row", "side", "language", "given", "ids")


def head_of(model: SentenceTransformer) -> list[nn.Module]:
    """The modules between the token states and the normalisation: Pooling, and Dense layers if any.

    Raises:
        ValueError: unless the model is Transformer, Pooling and, at will, Dense and Normalize.
    """
    modules = list(model.children())
    head = modules[1:-1] if len(modules) > 2 and isinstance(modules[-1], Normalize) else modules[1:]
    fits = head and isinstance(modules[0], Transformer) and isinstance(head[0], Pooling)
    if not fits or not all(isinstance(module, Dense) for module in head[1:]):
        shape = " + ".join(type(module).__name__ for module in modules)
        raise ValueError(f"a model of Transformer, Pooling and perhaps Normalize is needed, got {shape}")
    return head


def pooling_of(model: SentenceTransformer) -> Pooling:
    """The model's pooling module; raises as `head_of`."""
    return head_of(model)[0]


def width_of(model: SentenceTransformer) -> int:
    """Dimensions of the states that are compared."""
    return model.get_embedding_dimension()


def token_states(model: nn.Module, features: dict) -> dict[str, Tensor]:
    """Run the model on preprocessed features: what it returns, `token_embeddings` among it.

    The features are left as they were. `model` may be wrapped (DDP): it is called as a whole.
    """
    return model({key: value for key, value in features.items() if key not in BOOKKEEPING})


def sentence_state(pooling: Pooling, states: dict[str, Tensor]) -> Tensor:
    """The pooled last-layer state of each row, not normalised, fp32: (rows, dim).

    Last-token pooling gives the state of the last real token, on either padding side (paper, section 3).
    """
    taken = {key: states[key] for key in ("token_embeddings", "attention_mask")}
    return pooling(taken)["sentence_embedding"].float()


def compared(
    head: list[nn.Module], states: dict[str, Tensor], features: dict, marks: tuple[int, ...] = ()
) -> dict[str, Tensor]:
    """`sentence` states after the head and, where `marks` end an image part, its `image_part` states."""
    sentence = sentence_state(head[0], states)
    for dense in head[1:]:
        sentence = dense({"sentence_embedding": sentence})["sentence_embedding"].float()
    if not marks:
        return {"sentence": sentence}
    mask = image_part_mask(features["input_ids"], states["attention_mask"], marks)
    return {"sentence": sentence, "image_part": masked_mean(states["token_embeddings"], mask)}


def image_part_mask(input_ids: Tensor, attention_mask: Tensor, marks: tuple[int, ...]) -> Tensor:
    """Which positions belong to the image part: (rows, tokens), bool.

    From the first real position to the last whose id is one of `marks` (the image token, `<s>`),
    inclusive: Phi-3.5-vision puts `<s>` before and after the image, LLaVA before it only.

    >>> ids = torch.tensor([[1, 9, 9, 5, 6], [0, 0, 1, 5, 6]])
    >>> image_part_mask(ids, ids != 0, (1, 9)).int().tolist()
    [[1, 1, 1, 0, 0], [0, 0, 1, 0, 0]]
    """
    real = attention_mask.bool()
    marked = torch.isin(input_ids, torch.tensor(marks, device=input_ids.device)) & real
    marks_from_here = marked.flip(-1).cumsum(-1).flip(-1)
    return (marks_from_here > 0) & real


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of (rows, tokens, dim) states over the positions of a (rows, tokens) mask, fp32.

    >>> masked_mean(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]]))
    tensor([[2.]])
    """
    weight = mask.to(torch.float32)
    return torch.einsum("rtd,rt->rd", states.float(), weight) / weight.sum(-1, keepdim=True).clamp(min=1)


def image_marks(model: SentenceTransformer) -> tuple[int, ...]:
    """Ids that end the image part: the processor's image token and, where there is one, `<s>`.

    Raises:
        ValueError: for a model whose processor has no image token.
    """
    image = getattr(model[0].processor, "image_token_id", None)
    if image is None:
        name = type(model[0].processor).__name__
        raise ValueError(f"{name} has no image token, which the image variant needs; use the main variant")
    return tuple(dict.fromkeys(i for i in (image, model[0].tokenizer.bos_token_id) if i is not None))


def selected(features: dict, chosen: Tensor) -> dict | None:
    """Features of the chosen rows, (rows,) bool, without columns that only the others fill.

    None where the image tensors' parts cannot be told apart by row.
    """
    if "image_group" not in features and any("pixel" in key for key in features):
        return None
    kept = {key: features[key][chosen] for key in (*PER_ROW, "row", "language") if key in features}
    used = kept["attention_mask"].any(0)
    return features | {key: value[:, used] if value.ndim == 2 else value for key, value in kept.items()}
