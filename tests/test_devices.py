"""A list of devices: the model goes to processes that are started anew."""

import pickle

import numpy as np
import tiny

from xvlm2vec_st import SentenceTransformer
from xvlm2vec_st.sentence_transformer import drop_capturing_hooks

ITEMS = ["a", {"image": tiny.random_image(), "text": "b"}, {"image": tiny.random_image()}]


def test_a_model_that_has_encoded_goes_to_other_processes():
    model = SentenceTransformer(str(tiny.embedder("llava")), device="cpu")
    want = model.encode(ITEMS)
    assert np.abs(model.encode(ITEMS, device=["cpu"]) - want).max() < 1e-5
    assert np.abs(model.encode(ITEMS) - want).max() < 1e-6


def test_the_hooks_come_back_with_the_next_forward():
    model = SentenceTransformer(str(tiny.embedder("llava")), device="cpu")
    model.encode(ITEMS)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    assert sum(hooks)
    drop_capturing_hooks(model)
    pickle.dumps(model)
    model.encode(ITEMS)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
