"""Hidden states that the method compares: the sentence's, and the image part's."""

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from torch import Tensor, nn

from xvlm2vec_st.lvlm import PER_ROW

# Features of ours that no model takes.
BOOKKEEPING = ("row", "side", "language")


def pooling_of(model: SentenceTransformer) -> Pooling:
    """The model's pooling module.

    Raises:
        ValueError: unless the model is Transformer, Pooling and, at will, Normalize.
    """
    modules = list(model.children())
    shape = [type(module).__name__ for module in modules]
    fits = len(modules) in (2, 3) and isinstance(modules[0], Transformer) and isinstance(modules[1], Pooling)
    if not fits or not all(isinstance(module, Normalize) for module in modules[2:]):
        raise ValueError(
            f"a model of Transformer, Pooling and perhaps Normalize is needed, got {' + '.join(shape)}"
        )
    return modules[1]


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

    None where the picture tensors' parts cannot be told apart by row.
    """
    if "picture_group" not in features and any("pixel" in key for key in features):
        return None
    kept = {key: features[key][chosen] for key in (*PER_ROW, *BOOKKEEPING) if key in features}
    used = kept["attention_mask"].any(0)
    return features | {key: value[:, used] if value.ndim == 2 else value for key, value in kept.items()}
