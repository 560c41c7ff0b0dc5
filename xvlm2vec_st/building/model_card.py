"""The model card of a built folder."""

from importlib.metadata import version
from pathlib import Path

from sentence_transformers import SentenceTransformer

from xvlm2vec_st.utils.modules import transformer_of

CARD = """---
library_name: sentence-transformers
pipeline_tag: feature-extraction
tags: [sentence-transformers, sentence-similarity, feature-extraction, multimodal]
{front}---
# {title}

Built from {sources}. It embeds texts, images, or both as vectors of {dim} dimensions{pooled}
{rest}
```python
{needs}from sentence_transformers import SentenceTransformer

from xvlm2vec_st.utils.modules import transformer_of

model = SentenceTransformer("{title}")
model.encode(["a text", {{"image": "image.jpg", "text": "a text about it"}}])
```

{versions}.
"""


def build_model_card(
    model: SentenceTransformer,
    title: str,
    base: str,
    adapter: str | None,
    *,
    kept: bool,
    embedder: bool = False,
) -> str:
    """The README.md of a folder. Local folders appear by their last name only.

    Args:
        model: the built model.
        title: name of the folder.
        base: folder or Hub id of the base.
        adapter: folder or Hub id of the adapter.
        kept: the adapter is stored beside the weights.
        embedder: the base was a sentence-transformers model.
    """
    names = [f"`{Path(name).resolve().name if Path(name).exists() else name}`" for name in (base, adapter) if name]
    sources = names[0] + (f" with the adapter {names[1]}, {'kept' if kept else 'merged'}" if adapter else "")
    notes = "\nThe chat template in this folder is part of the model: images, each on a line, then the text."
    if kept:
        notes += "\nThe weights are those of the base, which must stay where adapter_config.json says."
    phi3v = transformer_of(model).config.model_type == "phi3_v"
    return CARD.format(
        front="" if Path(base).exists() else f"base_model: {base}\n",
        title=title,
        sources=sources,
        dim=model.get_embedding_dimension(),
        pooled="." if embedder else ": the state of the last token,\nnormalised.",
        rest=notes + "\n",
        needs="import xvlm2vec_st  # Phi-3.5-vision, which transformers lacks\n" if phi3v else "",
        versions=", ".join(f"{lib} {version(lib)}" for lib in ("sentence-transformers", "transformers")),
    )
