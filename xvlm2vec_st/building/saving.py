"""Save an embedder so that it gives the same embeddings on every machine."""

from pathlib import Path

from sentence_transformers import SentenceTransformer

from xvlm2vec_st.families.loading import pin_backend
from xvlm2vec_st.utils.finite import check_weights_finite


def save_embedder(model: SentenceTransformer, folder: str | Path) -> None:
    """`model.save`, with the image backend pinned to the one that the model has been using.

    transformers picks torchvision's resizing where torchvision is installed and PIL's elsewhere;
    pixels then differ by up to 0.03. The choice is data of the module's config, which stock
    sentence-transformers obeys.
    """
    check_weights_finite(model, f"{folder} is not saved", "lower the learning rate, or mend the checkpoint")
    model.save(str(folder))
    pin_backend(Path(folder), model[0])
