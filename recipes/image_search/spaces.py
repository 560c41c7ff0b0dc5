"""Which models may query an index: its own, and those distilled from it."""

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer

from xvlm2vec_st.building.model_card import read_teachers
from xvlm2vec_st.distillation.fingerprint import fingerprint

from .store import Space


def check_space(space: Space, model: SentenceTransformer, name: str) -> None:
    """Refuse a model whose embeddings are not comparable with those of an index.

    A model that was distilled from the index's model, directly or through others, is accepted: its card says so.

    Args:
        space: of the index.
        model: that embeds the queries.
        name: folder or Hub id of the model.

    Raises:
        ValueError: the model embeds into another space.
    """
    # Other first modules, such as static embeddings, have no fingerprint, and no index is made with them.
    if isinstance(model[0], Transformer) and fingerprint(model, adapters=True) == space.fingerprint:
        return
    if any(teacher.fingerprint == space.fingerprint for teacher in read_teachers(name)):
        return
    raise ValueError(
        f"the index was made with {space.model}, and {name} embeds into another space: it is not that model, and its "
        f"card does not say that it was distilled from it; search with {space.model} or a student of it, or index "
        f"the images again with {name}"
    )
