"""What several tests share."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import mteb  # noqa: E402, F401 - it seeds the global generators on import: better now than half-way
import pytest  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402

from mmmeb_tasks.mini import TEACHER  # noqa: E402


@pytest.fixture(scope="session")
def teacher():
    """The bundled English embedder; not to be changed."""
    return SentenceTransformer(str(TEACHER)).eval().requires_grad_(False)
