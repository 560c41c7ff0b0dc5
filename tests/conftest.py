"""What several tests share."""

import gc
import logging
import os

from guard.fixture import no_network, pytest_unconfigure  # noqa: F401 - before anything that has a network

collect_ignore = ["guard/sitecustomize.py"]  # for the Pythons that tests start

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# On the CPU everywhere: bounds are those of fp32 on a CPU, and CUDA does not survive a fork. The benchmarks
# in recipes/ compare the routes on a GPU.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Imports make millions of objects that stay: to look for garbage among them takes a quarter of the time.
gc.disable()

import mteb  # noqa: E402, F401 - it seeds the global generators on import: better now than half-way
import pytest  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402

from mmmeb_tasks.mini import TEACHER  # noqa: E402
from xvlm2vec_st.utils.terminal import LIBRARIES  # noqa: E402


def pytest_collection_finish():
    """Keep what is imported out of every later garbage collection.

    With the libraries' objects, one takes 0.4 seconds; transformers' Trainer and accelerate ask for several per run.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def no_deprecation_in_the_logs(request):
    """The libraries log some deprecations, where the filters of pyproject.toml do not see them."""
    found = []

    def note(record):
        if "deprecated" in record.getMessage():
            found.append(record.getMessage())

    handler = logging.Handler()
    handler.emit = note
    loggers = [logging.getLogger(name) for name in ("transformers", *LIBRARIES)]
    for logger in loggers:
        logger.addHandler(handler)
    yield
    for logger in loggers:
        logger.removeHandler(handler)
    if not request.node.get_closest_marker("old_name"):
        assert not found, found


@pytest.fixture(scope="session")
def teacher():
    """The bundled English embedder; not to be changed."""
    return SentenceTransformer(str(TEACHER)).eval().requires_grad_(False)
