"""Load the model that makes an index, or one that queries it."""

from pathlib import Path

from sentence_transformers.sentence_transformer.modules import Transformer

from xvlm2vec_st import SentenceTransformer
from xvlm2vec_st.distillation.fingerprint import fingerprint
from xvlm2vec_st.families.dtypes import DTYPES
from xvlm2vec_st.utils.hub_names import check_folder
from xvlm2vec_st.utils.modules import transformer_of

from .prompts import image_prompt
from .spaces import check_space
from .store import Space


def load_index_model(
    name: str,
    *,
    prompt: str | None = None,
    revision: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
) -> tuple[SentenceTransformer, Space]:
    """A model that embeds images, and the space that they are in.

    The fingerprint is that of the weights as they are stored: in another dtype, the space is the same.

    Raises:
        ValueError: the folder does not exist, or holds no model; the model does not take images, or is not one of
            transformers.
    """
    check_folder(name)
    model = SentenceTransformer(name, revision=revision, device="cpu" if dtype else device)
    if not model.supports("image"):
        raise ValueError(f"{name} does not take images; it takes {', '.join(map(str, model.modalities))}")
    if not isinstance(model[0], Transformer):
        raise ValueError(
            f"{name} begins with the module {type(model[0]).__name__}; pass a model that begins with "
            "sentence-transformers' module Transformer"
        )
    space = Space(
        model=str(Path(name).resolve()) if Path(name).is_dir() else name,
        revision=getattr(transformer_of(model).config, "_commit_hash", None),
        fingerprint=fingerprint(model, adapters=True),
        prompt=image_prompt(model) if prompt is None else prompt,
        dim=model.get_embedding_dimension(),
    )
    if dtype:
        model = SentenceTransformer(name, revision=revision, device=device, model_kwargs={"dtype": DTYPES[dtype]})
    return model, space


def load_query_model(space: Space, name: str | None = None, device: str | None = None) -> SentenceTransformer:
    """A model that queries an index; without a name, the one that made it.

    Raises:
        ValueError: the folder does not exist; the model embeds into another space.
    """
    if name is None and space.model.startswith("/") and not Path(space.model).is_dir():
        raise ValueError(f"the index was made with {space.model}, which is gone; pass --model with its new place")
    check_folder(name)
    revision = space.revision if name in (None, space.model) else None
    model = SentenceTransformer(name or space.model, revision=revision, device=device)
    check_space(space, model, name or space.model)
    return model
