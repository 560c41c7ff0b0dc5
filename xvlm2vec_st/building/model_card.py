"""The model card of a built folder, and the teachers that a card names."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import yaml
from huggingface_hub import metadata_load
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import load_file_path

from xvlm2vec_st.utils.modules import transformer_of

KEY = "teachers"
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


@dataclass(frozen=True)
class CardTeacher:
    """A model in whose space another one embeds: name, and fingerprint in hex."""

    name: str
    fingerprint: str


def read_teachers(name: str) -> list[CardTeacher]:
    """The teachers that the card of a model, a folder or Hub id, names; the nearest first.

    Raises:
        ValueError: the card's metadata cannot be read.
    """
    card = load_file_path(name, "README.md")
    if card is None:
        return []
    try:
        return [CardTeacher(**teacher) for teacher in (metadata_load(card) or {}).get(KEY, [])]
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{card}: its metadata cannot be read ({' '.join(str(error).split())[:200]}); `{KEY}` is a list of name "
            "and fingerprint: repair it, or delete it"
        ) from error


def front_matter(teachers: Sequence[CardTeacher]) -> str:
    """The lines of a card's metadata that name teachers; empty without one.

    >>> print(front_matter([CardTeacher("english", "0f")]), end="")
    teachers:
    - name: english
      fingerprint: 0f
    """
    if not teachers:
        return ""
    return yaml.safe_dump({KEY: [*map(asdict, teachers)]}, sort_keys=False, allow_unicode=True)


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
    front = "" if Path(base).exists() else f"base_model: {base}\n"
    if embedder and adapter is None:
        front += front_matter(read_teachers(base))  # it still embeds into their space
    phi3v = transformer_of(model).config.model_type == "phi3_v"
    return CARD.format(
        front=front,
        title=title,
        sources=sources,
        dim=model.get_embedding_dimension(),
        pooled="." if embedder else ": the state of the last token,\nnormalised.",
        rest=notes + "\n",
        needs="import xvlm2vec_st  # Phi-3.5-vision, which transformers lacks\n" if phi3v else "",
        versions=", ".join(f"{lib} {version(lib)}" for lib in ("sentence-transformers", "transformers")),
    )
