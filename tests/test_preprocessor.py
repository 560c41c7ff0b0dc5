"""Loading workers get the processor, not the model."""

import pickle

import pytest
import tiny
import torch
from torch.utils.data import DataLoader

from xvlm2vec_st import SentenceTransformer
from xvlm2vec_st.data.collator import ParallelCollator
from xvlm2vec_st.data.preprocessor import Preprocessor

FAMILIES = ("llava", "phi3_v", "idefics3")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pickle_holds_no_weights_and_gives_the_same_features(family):
    model = SentenceTransformer(str(tiny.embedder(family)), device="cpu")
    model[0].model.gradient_checkpointing_enable()
    model[0].model.enable_input_require_grads()
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        pickle.dumps(model.preprocess)
    inputs = [
        "a dog",
        {"image": tiny.random_image(), "text": "a"},
        {"image": tiny.random_image(), "text": "b"},
    ]
    copied = pickle.loads(pickle.dumps(Preprocessor(model)))
    assert sum(p.numel() for p in copied.target.parameters()) == 0
    assert sum(p.numel() for p in model.parameters()) > 0
    want, found = model.preprocess(inputs), copied(inputs)
    assert want.keys() == found.keys()
    for key, value in want.items():
        same = torch.equal(value, found[key]) if isinstance(value, torch.Tensor) else value == found[key]
        assert same, key


def test_a_worker_that_is_started_anew_collates(tmp_path):
    model = SentenceTransformer(str(tiny.embedder("llava")), device="cpu")
    model[0].model.gradient_checkpointing_enable()
    rows = [{"id": str(n), "image": None, "en": f"text {n}", "it": f"testo {n}"} for n in range(2)]
    collate = ParallelCollator(Preprocessor(model), languages=("it",), shared=True)
    (batch,) = DataLoader(rows, 2, collate_fn=collate, num_workers=1, multiprocessing_context="forkserver")
    assert torch.equal(batch["texts_input_ids"], collate(rows)["texts_input_ids"])
