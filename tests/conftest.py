"""What several tests share."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# On the CPU everywhere: bounds are those of fp32 on a CPU, and CUDA does not survive a fork. The benchmarks
# in recipes/ compare the routes on a GPU.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import mteb  # noqa: E402, F401 - it seeds the global generators on import: better now than half-way
import pytest  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402

from mmmeb_tasks.mini import TEACHER  # noqa: E402


@pytest.fixture(scope="session")
def teacher():
    """The bundled English embedder; not to be changed."""
    return SentenceTransformer(str(TEACHER)).eval().requires_grad_(False)
