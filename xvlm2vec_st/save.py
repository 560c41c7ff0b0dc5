"""Save an embedder so that it gives the same embeddings on every machine."""

import json
from pathlib import Path

from sentence_transformers import SentenceTransformer


def save_embedder(model: SentenceTransformer, folder: str | Path) -> None:
    """`model.save` with the image backend pinned to PIL.

    transformers picks torchvision's resizing where torchvision is installed and PIL's elsewhere;
    pixels then differ by up to 0.03. The choice is data of the module's config, which stock
    sentence-transformers obeys.
    """
    model.save(str(folder))
    config = Path(folder) / "sentence_bert_config.json"
    settings = json.loads(config.read_text("utf-8"))
    settings["processor_kwargs"] = settings.get("processor_kwargs", {}) | {"backend": "pil"}
    config.write_text(json.dumps(settings, indent=4) + "\n", "utf-8")
