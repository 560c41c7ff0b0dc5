"""The last layer for the pooled tokens only: equal results, fewer operations, and when all tokens are computed."""

import contextvars
import threading

import numpy as np
import pytest
import tiny
import torch
from sentence_transformers.sentence_transformer.modules import Pooling
from test_routes import embedder, mixed_rows, routes_of
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.utils.flop_counter import FlopCounterMode

from xvlm2vec_st import MultilingualDistillationLoss, SentenceTransformer, lora_config
from xvlm2vec_st.distillation.middle_layer import middle_states
from xvlm2vec_st.encoding.last_layer import (
    FEWEST,
    KEPT,
    last_layer_for,
    last_tokens,
    pooled_tokens_only,
    pools_last_token,
    token_modules,
)
from xvlm2vec_st.utils.modules import find_language_layers, language_layers


def embeddings(model, rows, *, pooled_only):
    with pooled_tokens_only(model, wanted=pooled_only):
        return model(model.preprocess(rows))


def real(states):
    """The states of each row but its last token's: (tokens of all rows, dim)."""
    mask = states["attention_mask"].bool() & ~last_tokens(states["attention_mask"])
    return states["token_embeddings"][mask]


def watched(monkeypatch):
    """The tokens that each forward keeps, as they come."""
    seen = []

    def keep(body, kept):
        seen.append(kept)
        return last_layer_for(body, kept)

    monkeypatch.setattr("xvlm2vec_st.lvlm.last_layer_for", keep)
    return seen


def twins():
    """One text goes on where another ends: the end of the first lies within the second's shared tokens."""
    image = tiny.random_image(5)
    return [{"image": image, "text": text} for text in ("a", "a", "a b c")]


@tiny.every_family
def test_embeddings_and_gradients_of_every_route(family):
    """Against all states by the same route; the best route with both sides of padding."""
    model = tiny.double(SentenceTransformer(str(tiny.embedder(family)))).train()
    tolerance = 1e-5 if family in tiny.FP32 else 1e-9
    rows = mixed_rows() + twins()

    def run(pooled_only):
        model.zero_grad()
        states = embeddings(model, rows, pooled_only=pooled_only)
        embedding = states["sentence_embedding"]
        (embedding * torch.arange(embedding.numel()).view_as(embedding).cos()).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return embedding.detach(), gradients, real(states).detach()

    best, *rest = *routes_of(model), "plain"
    for route, side in ((best, "left"), (best, "right"), *((route, "right") for route in rest)):
        model[0].sharing, model.tokenizer.padding_side = route, side
        (all_states, all_gradients, others), (own, gradients, left) = run(False), run(True)
        assert (all_states - own).abs().max() < tolerance, (route, side)
        assert not torch.allclose(others, left, atol=1e-3), "the other tokens were computed too"
        assert gradients.keys() == all_gradients.keys()
        assert sum(gradient.norm() > 1e-3 for gradient in gradients.values()) > 20
        for name, gradient in gradients.items():
            allowed = 10 * tolerance * (all_gradients[name].norm() + 1e-3)
            assert (gradient - all_gradients[name]).norm() <= allowed, (route, side, name)


@tiny.every_family
def test_a_layer_has_its_feed_forward_and_output_projection_left_out(family):
    layer = language_layers(embedder(family))[-1]
    names = [name for name, module in layer.named_modules() if any(module is one for one in token_modules(layer))]
    assert {name.split(".")[-1] for name in names} & {"mlp", "feed_forward"}, names
    assert any(name.endswith(("o_proj", "out_proj")) for name in names), names
    assert not any(name.endswith(("k_proj", "v_proj", "qkv_proj", "in_proj")) for name in names), names


@tiny.some_families("phi3_v", "llava", "qwen3_vl")
def test_encode_leaves_them_out_unless_it_returns_states(family, monkeypatch):
    model, rows = embedder(family), [*mixed_rows(), "a text"]
    model[0].sharing = None
    seen = watched(monkeypatch)
    with torch.no_grad():
        expected = embeddings(model, rows, pooled_only=False)["sentence_embedding"].numpy()
    assert seen and all(kept is None for kept in seen)
    seen.clear()
    for convert in ({}, {"convert_to_tensor": True}, {"precision": "float32"}):
        assert np.abs(np.asarray(model.encode(rows, batch_size=4, **convert)) - expected).max() < 1e-5
    assert seen and all(kept is not None and not kept.all() for kept in seen)
    for output in ("token_embeddings", None):
        seen.clear()
        model.encode(rows, batch_size=4, output_value=output)
        assert seen and all(kept is None for kept in seen)


def test_operations_are_those_of_the_arithmetic():
    """A feed-forward part of 8 d^2 and two projections of d^2 each, of 4 layers of 12 d^2, for all tokens but one."""
    from mmmeb_tasks.mini import TEACHER

    model = SentenceTransformer(str(TEACHER))
    layer, rows = language_layers(model)[-1], ["a short text", "another text of some more words " * 8]
    features = model.preprocess(rows)
    dropped = features["attention_mask"].numel() - len(rows)
    weights = sum(p.numel() for module in token_modules(layer) for p in module.parameters())
    counts = []
    for pooled_only in (False, True):
        with FlopCounterMode(display=False) as counter, pooled_tokens_only(model, wanted=pooled_only), torch.no_grad():
            model(dict(features))
        counts.append(counter.get_total_flops())
    assert counts[0] - counts[1] == 2 * weights * dropped > 0.15 * counts[0]


def test_the_loss_leaves_them_out_unless_it_reads_the_image_part(monkeypatch):
    student, teacher = (SentenceTransformer(str(tiny.embedder("llava"))) for _ in range(2))
    features = student.preprocess([{"image": tiny.random_image(), "text": "a"}, "a text"])
    features |= {"row": torch.arange(2), "language": torch.zeros(2, dtype=torch.long)}
    seen = watched(monkeypatch)
    for options, pooled_only in (
        ({}, True),
        ({"middle_layer": 1, "middle_weight": 1.0}, True),
        ({"image_part": True}, False),
    ):
        seen.clear()
        MultilingualDistillationLoss(student, teacher, **options)([dict(features)])
        assert len(seen) == 2 and all((kept is not None) == pooled_only for kept in seen), options


def test_middle_states_are_all_there():
    """The middle layer lies before the last one, so none of its states is left out."""
    model = embedder("llava")
    features = model.preprocess(["a text", "another text " * 20])
    with torch.no_grad():
        whole, pooled = (middle_states(model, features, 1, pooled_only=only) for only in (False, True))
    assert torch.equal(whole["middle_embeddings"], pooled["middle_embeddings"])
    assert not torch.allclose(whole["token_embeddings"], pooled["token_embeddings"], atol=1e-3)


@pytest.mark.parametrize("mode", ["mean", "cls", ("lasttoken", "mean")])
def test_other_poolings_see_all_tokens(mode):
    model = SentenceTransformer(str(tiny.embedder("llava")))
    width = model[1].embedding_dimension
    model[1] = Pooling(width, mode)
    assert not pools_last_token(model)
    rows = mixed_rows()
    with torch.no_grad():
        expected = model(model.preprocess(rows))["sentence_embedding"].numpy()
    assert np.abs(model.encode(rows, batch_size=64) - expected).max() < 1e-5
    model[1] = Pooling(width, "lasttoken")
    assert pools_last_token(model)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_layer_that_runs_again_in_the_backward_pass_computes_all(wrapped):
    model = tiny.double(SentenceTransformer(str(tiny.embedder("llava")))).train()
    rows = mixed_rows()

    def gradients():
        model.zero_grad()
        states = embeddings(model, rows, pooled_only=True)
        states["sentence_embedding"].cos().sum().backward()
        return {
            name.replace("_checkpoint_wrapped_module.", ""): p.grad.clone()
            for name, p in model.named_parameters()
            if p.grad is not None
        }

    expected = gradients()
    if wrapped:
        layers = language_layers(model)
        layers[-1] = CheckpointWrapper(layers[-1])
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for name, gradient in gradients().items():
        assert torch.allclose(gradient, expected[name], rtol=1e-6, atol=1e-9), name


@tiny.some_families("phi3_v", "llava", "lfm2_vl")
def test_an_adapter_around_a_prepared_layer(family):
    """The hooks of the first `encode` are on layers that then lie within those of the adapter."""
    model, rows = SentenceTransformer(str(tiny.embedder(family))), mixed_rows()
    before = model.encode(rows)
    model.add_adapter(lora_config(model))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
        expected = embeddings(model, rows, pooled_only=False)["sentence_embedding"].numpy()
    assert np.abs(expected - before).max() > 1e-2, "the adapter does nothing"
    assert np.abs(model.encode(rows) - expected).max() < 1e-5


def test_threads_do_not_see_each_others_tokens():
    """One thread computes pooled tokens only while another one asks the same model for all states."""
    model = embedder("llava")
    features = model.preprocess(["a text", "a longer text of more words " * 10])
    with torch.no_grad():
        expected = model(dict(features))["token_embeddings"]
    found = []

    def run():
        with torch.no_grad():
            found.append(model(dict(features))["token_embeddings"])

    kept = last_tokens(features["attention_mask"])
    with last_layer_for(model[0].model, kept):
        assert KEPT.get() is not None
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert contextvars.copy_context()[KEPT] is not None
        with torch.no_grad():
            assert not torch.allclose(model(dict(features))["token_embeddings"], expected, atol=1e-3)
    assert torch.equal(found[0], expected) and KEPT.get() is None


def test_a_failure_leaves_nothing_behind():
    model = embedder("llava")
    with (
        pytest.raises(RuntimeError, match="stop"),
        last_layer_for(model[0].model, torch.arange(FEWEST).view(1, -1) == 0),
    ):
        raise RuntimeError("stop")
    assert KEPT.get() is None


def test_few_tokens_are_all_computed():
    """There is nothing to gain, and a short text has bit by bit the embedding that sentence-transformers gives it."""
    body = embedder("llava")[0].model
    for tokens, narrow in ((FEWEST - 1, False), (FEWEST, True)):
        with last_layer_for(body, torch.arange(tokens).view(1, -1) == 0):
            assert (KEPT.get() is not None) == narrow


def test_an_untested_family_computes_all_tokens(monkeypatch):
    model = SentenceTransformer(str(tiny.embedder("llava")))
    seen = watched(monkeypatch)
    monkeypatch.setattr("xvlm2vec_st.lvlm.FAMILIES", {})
    model[0].sharing = "plain"
    model.encode(["a text " * 40])
    assert seen == [None]


def test_a_model_that_is_no_module_is_left_alone():
    """As those of sentence-transformers' ONNX and OpenVINO backends."""
    with last_layer_for(object(), torch.arange(FEWEST).view(1, -1) == 0):
        assert KEPT.get() is None


def test_no_layer_list_no_change():
    class Body(torch.nn.Module):
        config = embedder("llava")[0].config

    assert find_language_layers(Body()) is None
    with last_layer_for(Body(), torch.arange(FEWEST).view(1, -1) == 0):
        assert KEPT.get() is None
