"""What is built is tried before it appears: a text, an image, and both."""

import numpy as np
from PIL import Image
from sentence_transformers import SentenceTransformer

IMAGE = Image.fromarray(np.linspace(0, 255, 64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
TRIALS = {
    "a text": "a dog",
    "an image": {"image": IMAGE},
    "an image with a text": {"image": IMAGE, "text": "a dog"},
}


def check_encodes(model: SentenceTransformer, name: str) -> None:
    """Encode a text, an image, and both, so that a folder that cannot never appears.

    Args:
        model: what was built.
        name: the checkpoint, for the message.

    Raises:
        ValueError: one of the three fails, or gives values that are not numbers; with what to look at.
    """
    for what, trial in TRIALS.items():
        try:
            vector = model.encode([trial], prompt="", show_progress_bar=False)[0]
        except Exception as error:
            # Whatever a processor, a template or a model raises on files that do not fit each other.
            said = " ".join(str(error).split())[:300] or type(error).__name__
            raise ValueError(
                f"{name}: what it makes cannot encode {what} ({said}); check its chat template, tokenizer "
                "files, preprocessor_config.json, processor_config.json and config.json"
            ) from error
        if not np.isfinite(vector).all():
            raise ValueError(
                f"{name}: the embedding of {what} is not a number; check its weights, or pass another dtype"
            )
