"""Try a built model before its folder appears: encode a text, an image, and both."""

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
    """Encode a text, an image, and both.

    Args:
        model: the built model.
        name: the checkpoint, for the message.

    Raises:
        ValueError: one of the three fails, or its embedding is not a number; the message says what to check.
    """
    for what, trial in TRIALS.items():
        try:
            vector = model.encode([trial], prompt="", show_progress_bar=False)[0]
        except Exception as error:
            # A processor, a template or a model can raise anything on files that do not fit each other.
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ValueError(
                f"{name}: the built model cannot encode {what} ({reason}); check its chat template, tokenizer "
                "files, preprocessor_config.json, processor_config.json and config.json"
            ) from error
        if not np.isfinite(vector).all():
            raise ValueError(
                f"{name}: the embedding of {what} is not a number; check its weights, or pass another dtype"
            )
