"""Every route of every family against the plain route: states, gradients, memory, and the choice among routes."""

import json
import logging
import subprocess
import sys
from functools import cache, wraps
from pathlib import Path

import numpy as np
import pytest
import sentence_transformers
import tiny
import tiny_more
import torch
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig
from transformers.masking_utils import flash_attention_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from xvlm2vec_st import SentenceTransformer, build, families, lora_config
from xvlm2vec_st.encoding import routes, sharing
from xvlm2vec_st.encoding.branching import branch_chunks, plan_branches, take
from xvlm2vec_st.encoding.prefix_cache import branch_cache, build_prefix_cache
from xvlm2vec_st.lvlm import logger

TEXTS = ["what is it?", "che cos'è questo?", "a", "¿qué es, di una frase mucho más larga que las otras?"]


@cache
def embedder(family):
    """Loaded once a process; tests set its route."""
    return SentenceTransformer(str(tiny.embedder(family)))


def mixed_rows():
    """Several images per row, rows of one image, an image alone, an image with one text, and texts."""
    one, two, three = (tiny.random_image(seed) for seed in range(3))
    rows = [{"image": one, "text": text} for text in TEXTS] + ["a text"]
    rows += [{"image": [one, two], "text": text} for text in TEXTS] + ["another text alone", {"image": one}]
    return [*rows, {"image": three, "text": "x"}]


def routes_of(model):
    return sharing.possible_routes(model[0].config, model[0].inner)[0]


@tiny.every_family
def test_states_by_every_route(family, monkeypatch):
    """With branches in several chunks, and both sides of padding."""
    model, rows = embedder(family), mixed_rows()
    monkeypatch.setattr(routes, "BRANCH_TOKENS", 200)
    found = routes_of(model)
    assert found[-1] == "vision" and ("branched" in found) == (family != "phi3_v")
    for side in ("right", "left"):
        monkeypatch.setattr(model.tokenizer, "padding_side", side)
        model[0].sharing = "plain"
        expected = model.encode(rows, batch_size=64)
        assert np.abs(expected[0] - expected[1]).max() > 1e-3, "all rows alike: nothing compared"
        for route in found:
            model[0].sharing = route
            assert "image_group" in model[0].preprocess(rows)
            for batch_size in (1, 3, 64):
                assert np.abs(model.encode(rows, batch_size=batch_size) - expected).max() < 1e-5, (route, side)
    model[0].sharing = None


@tiny.every_family
def test_gradients_by_every_route(family):
    model = tiny.double(SentenceTransformer(str(tiny.embedder(family)))).train()
    rows = mixed_rows()

    def gradients(route):
        model[0].sharing = route
        model.zero_grad()
        states = model(model.preprocess(rows))["sentence_embedding"]
        (states * torch.arange(states.numel()).view_as(states).cos()).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients("plain")
    assert sum(gradient.norm() > 1e-3 for gradient in plain.values()) > 20
    tolerance = 1e-5 if family in tiny.FP32 else 1e-6
    for route in routes_of(model):
        for name, gradient in gradients(route).items():
            assert (gradient - plain[name]).norm() <= tolerance * (plain[name].norm() + 1e-3), (route, name)


@pytest.mark.parametrize("reentrant", [False, True])
@tiny.some_families("llava", "gemma3", "qwen3_5")
def test_gradient_checkpointing_keeps_the_gradients_of_branches(family, reentrant):
    model = tiny.double(SentenceTransformer(str(tiny.embedder(family)))).train()
    model[0].sharing = "branched"
    runs = []
    hooks = [
        module.register_forward_hook(lambda *_: runs.append(1))
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
    ]

    def gradients():
        runs.clear()
        model.zero_grad()
        model(model.preprocess(mixed_rows()))["sentence_embedding"].cos().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, len(runs)

    plain, count = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed, again = gradients()
    assert again > count, "nothing was computed a second time"
    for name, gradient in plain.items():
        assert torch.allclose(gradient, checkpointed[name], rtol=1e-6, atol=1e-9), name
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert not any("_can_checkpoint_with_cache" in vars(layer) for layer in layers), "the layers are left changed"
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("checkpointing", [False, True])
@tiny.some_families("llava", "gemma3", "qwen3_5")
def test_gradients_of_an_adapter_on_branches(family, checkpointing):
    model = SentenceTransformer(str(tiny.embedder(family)))
    torch.manual_seed(0)
    model.add_adapter(lora_config(model, rank=2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=generator)
    tiny.double(model).train()

    def gradients(route):
        model[0].sharing = route
        model.zero_grad()
        model(model.preprocess(mixed_rows()))["sentence_embedding"].cos().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients("plain")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    branched = gradients("branched")
    assert plain.keys() == branched.keys() and all("lora_" in name for name in plain)
    assert sum(gradient.norm() > 1e-4 for gradient in plain.values()) > 10
    # In fp32 an adapter's small gradients of linear attention differ by up to 6e-05 over six seeds: see `tiny.FP32`.
    tolerance = 1e-4 if family in tiny.FP32 else 1e-6
    for name, gradient in plain.items():
        assert (gradient - branched[name]).norm() <= tolerance * (gradient.norm() + 1e-3), name


def test_a_sharded_model_runs_its_layers_once(monkeypatch):
    """FSDP2 waits if one process runs a layer more often than another."""
    model = SentenceTransformer(str(tiny.embedder("gemma3")))
    assert model[0].sharing.route == "branched"
    expected = model.encode(mixed_rows())
    words, counts = model[0].model.get_input_embeddings(), []
    words.register_forward_hook(lambda *_: counts.append(1))
    model.encode(mixed_rows())
    assert len(counts) > 1
    monkeypatch.setattr("xvlm2vec_st.lvlm.is_sharded", lambda model: True)
    counts.clear()
    assert np.abs(model.encode(mixed_rows()) - expected).max() < 1e-5
    assert len(counts) == 1


def test_a_processor_that_changes_the_text_takes_the_plain_route_and_says_so(monkeypatch, caplog):
    model = SentenceTransformer(str(tiny.embedder("llava")))
    rows = [{"image": tiny.random_image(), "text": text} for text in TEXTS]
    expected = model.encode([row | {"text": f"{row['text']}!"} for row in rows])
    kind = type(model[0].processor)
    call = kind.__call__

    @wraps(call)
    def changed(self, images=None, text=None, **kwargs):
        return call(self, images=images, text=[f"{row}!" for row in text], **kwargs)

    monkeypatch.setattr(kind, "__call__", changed)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    logger.warning_once.cache_clear()
    states = model.encode(rows)
    assert "image_group" not in model[0].preprocess(rows)
    assert caplog.text.count("llava: the processor changes the text after an image; rows share nothing") == 1
    assert np.abs(states - expected).max() < 1e-5


def masked_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """What flash attention does: it takes the padding mask only, and is causal from the end of the keys."""
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError("a 2-D mask is needed")
    count, total = query.shape[-2], key.shape[-2]
    seen = torch.ones(count, total, dtype=torch.bool).tril(total - count)[None, None]
    if attention_mask is not None:
        seen = seen & attention_mask.bool()[:, None, None]
        seen = seen | torch.eye(total, dtype=torch.bool)[-count:]
    repeats = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(repeats, 1) for states in (key, value))
    states = torch.nn.functional.scaled_dot_product_attention(query, key, value, seen, scale=scaling)
    return states.transpose(1, 2).contiguous(), None


def test_attention_without_4d_masks_takes_the_branched_route():
    """As flash attention, which needs a GPU."""
    AttentionInterface.register("masked", masked_attention)
    AttentionMaskInterface.register("masked", flash_attention_mask)
    model = SentenceTransformer(str(tiny.embedder("llava")))
    expected = model.encode(mixed_rows())
    model[0].model.language_model.set_attn_implementation("masked")
    assert model[0].sharing.route == "branched" and "takes no 4-D mask" in model[0].sharing.reason
    assert np.abs(model.encode(mixed_rows()) - expected).max() < 1e-5
    model[0].sharing = "packed"
    with pytest.raises(ValueError, match="a 2-D mask is needed"):
        model.encode(mixed_rows())


@pytest.mark.parametrize("route", ["packed", "branched"])
def test_a_thousand_texts_of_one_image(route, monkeypatch):
    """In one batch: far more tokens than a packed row holds, one vision forward, each text its own state."""
    model = embedder("llava")
    image, looks = tiny.random_image(), []
    look = model[0].model.get_image_features
    monkeypatch.setattr(
        model[0].model, "get_image_features", wraps(look)(lambda *a, **k: looks.append(1) or look(*a, **k))
    )
    rows = [{"image": image, "text": f"text number {number}"} for number in range(1000)]
    chosen = [0, 500, 999]
    model[0].sharing = "plain"
    expected = model.encode([rows[number] for number in chosen])
    model[0].sharing = route
    looks.clear()
    states = model.encode(rows, batch_size=1000)
    model[0].sharing = None
    assert len(looks) == 1
    assert sum(len(row["text"]) for row in rows) > 3 * routes.LONGEST_STRETCH
    assert np.abs(states[chosen] - expected).max() < 1e-5


def unlisted(monkeypatch, tmp_path, family="llava"):
    """A model of a family that the tables do not list, and a place for verdicts."""
    monkeypatch.setattr("xvlm2vec_st.lvlm.FAMILIES", {})
    monkeypatch.setattr(sharing, "HF_HOME", str(tmp_path))
    return SentenceTransformer(str(tiny.embedder(family)))


@pytest.mark.parametrize(("family", "route"), [("llava", "packed"), ("gemma3", "branched")])
def test_an_unlisted_family_is_checked_once(family, route, monkeypatch, tmp_path):
    model = unlisted(monkeypatch, tmp_path, family)
    model.train()
    assert model[0].sharing.route == route and "checked: states differ by" in model[0].sharing.reason
    assert model.training
    (file,) = tmp_path.rglob("*.json")
    assert json.loads(file.read_text())["route"] == route
    monkeypatch.setattr(sharing, "check_sharing", None)
    assert unlisted(monkeypatch, tmp_path, family)[0].sharing == model[0].sharing
    file.write_text("{")
    monkeypatch.undo()
    assert unlisted(monkeypatch, tmp_path, family)[0].sharing == model[0].sharing


@pytest.mark.parametrize(
    ("make", "placeholder"), tiny_more.UNLISTED.items(), ids=lambda value: getattr(value, "__name__", None)
)
def test_families_of_transformers_that_nobody_listed(make, placeholder, monkeypatch, tmp_path):
    """Built with a template, checked, equal to the plain route, and adapted by a derived preset."""
    monkeypatch.setattr(sharing, "HF_HOME", str(tmp_path))
    raw = tiny.write(tmp_path / "raw", *make(tiny.TEXT, tiny.ID, tiny.tokenizer))
    with pytest.raises(ValueError, match=f"no chat template for '{make.__name__}'"):
        build(raw, tmp_path / "built")
    template = (Path(families.__file__).parent / "chat_template.jinja").read_text("utf-8")
    (tmp_path / "t.jinja").write_text(template.replace("@IMAGE@", placeholder))
    folder = build(raw, tmp_path / "built", template=tmp_path / "t.jinja")
    model, stock = SentenceTransformer(str(folder)), sentence_transformers.SentenceTransformer(str(folder))
    images = [tiny.random_image(seed) for seed in (0, 1)]
    rows = [{"image": image, "text": text} for image in images for text in TEXTS]
    assert np.abs(model.encode(rows) - stock.encode(rows)).max() < 1e-5
    if make.__name__ == "mllama":
        assert model[0].sharing == sharing.Sharing("plain", "a mllama has no image features to share")
    else:
        assert model[0].sharing.route == "packed" and "checked" in model[0].sharing.reason
    assert len(lora_config(model).target_modules) == 14


def test_a_bidirectional_language_model_shares_the_vision_tower(tmp_path):
    config, processor = tiny.MAKERS["llava"]()
    config.text_config.is_causal = False
    folder = build(tiny.write(tmp_path / "raw", config, processor), tmp_path / "built")
    model, stock = SentenceTransformer(str(folder)), sentence_transformers.SentenceTransformer(str(folder))
    causal = embedder("llava").encode(mixed_rows())
    assert model[0].sharing.route == "vision" and "bidirectional" in model[0].sharing.reason
    assert "image_group" in model[0].preprocess(mixed_rows())
    states = model.encode(mixed_rows())
    assert np.abs(states - stock.encode(mixed_rows())).max() < 1e-5
    assert np.abs(states - causal).max() > 1e-3, "the language model is causal: nothing was tested"


def test_the_check_encodes_fewer_than_eight_images(monkeypatch, tmp_path):
    model = unlisted(monkeypatch, tmp_path)
    look, images = model[0].model.get_image_features, []
    counted = wraps(look)(lambda *a, **k: images.append(len(k["pixel_values"])) or look(*a, **k))
    monkeypatch.setattr(model[0].model, "get_image_features", counted)
    assert model[0].sharing.route == "packed"
    assert 2 < sum(images) < 8


def test_a_model_that_computes_something_else_takes_the_plain_route(monkeypatch, tmp_path, caplog):
    """Packed rows with a mask that is causal only, branches at wrong positions: the check must see both."""
    causal = torch.finfo(torch.float32).min * torch.ones(1, 1, 4096, 4096).triu(1)
    monkeypatch.setattr(
        routes,
        "attention_mask",
        lambda plan, dtype: causal[..., : plan.stretch.shape[1], :][..., : plan.stretch.shape[1]],
    )
    monkeypatch.setattr(routes, "take", lambda values, places, pad=0: take(values, places, pad) + (values.ndim == 3))
    model = unlisted(monkeypatch, tmp_path)
    assert (
        model[0].sharing.route in ("branched", "vision", "plain") and "packed: states differ" in model[0].sharing.reason
    )
    monkeypatch.setattr(routes, "branch_cache", lambda cache, owner: branch_cache(cache, owner * 0))
    again = unlisted(monkeypatch, tmp_path / "again")
    assert again[0].sharing.route == "vision" and "branched: states differ" in again[0].sharing.reason
    monkeypatch.setattr(routes, "encode_images", None)
    last = unlisted(monkeypatch, tmp_path / "last")
    assert last[0].sharing.route == "plain" and not last[0].shares_prefix
    assert not [*(tmp_path / "last").rglob("*.json")], "a failed check is remembered"
    rows = mixed_rows()
    assert "image_group" not in last[0].preprocess(rows)
    assert np.abs(last.encode(rows) - tiny.stock("llava").encode(rows)).max() < 1e-5


def test_a_route_can_be_forced_and_is_a_route():
    model = SentenceTransformer(str(tiny.embedder("llava")))
    model[0].sharing = "vision"
    assert model[0].sharing == sharing.Sharing("vision", "set by the caller")
    model[0].sharing = "plain"
    assert not model[0].shares_prefix
    model[0].sharing = None
    assert model[0].sharing.route == "packed"
    with pytest.raises(ValueError, match="sharing is 'fast'; pass one of packed, branched, vision, plain"):
        model[0].sharing = "fast"


@pytest.mark.parametrize(
    ("settings", "routes", "reason"),
    [
        ({"use_bidirectional_attention": True}, ["vision"], "bidirectional"),
        ({"layer_types": ["chunked_attention", "full_attention"]}, ["vision"], "chunked_attention"),
        ({"cross_attention_layers": [1]}, [], "cross-attention"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            ["packed", "vision"],
            "dynamic",
        ),
    ],
)
def test_what_a_configuration_allows(settings, routes, reason, monkeypatch):
    model = SentenceTransformer(str(tiny.embedder("llava")))
    for name, value in settings.items():
        monkeypatch.setattr(model[0].config.text_config, name, value, raising=False)
    assert sharing.possible_routes(model[0].config, model[0].inner)[0] == routes
    assert reason in sharing.possible_routes(model[0].config, model[0].inner)[1]


def test_processing_settings_that_cut_rows_share_nothing():
    model = SentenceTransformer(str(tiny.embedder("llava")))
    model[0].processing_kwargs = {"chat_template": {"add_generation_prompt": True}}
    assert model[0].sharing.route == "packed"
    model[0].processing_kwargs = {"chat_template": {"max_length": 8}}
    assert model[0].sharing == sharing.Sharing("plain", "processing_kwargs sets max_length")
    model[0].processing_kwargs = {"text": {"padding": "longest"}}
    assert model[0].sharing == sharing.Sharing("plain", "processing_kwargs sets text")


def test_plan_of_branches():
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    plan = plan_branches(mask, torch.tensor([0, 0, -1, 0]), torch.tensor([3, 3, 0, 3]))
    assert plan.prefix.tolist() == [[0, 1, 2], [-1, 10, 11]]
    assert plan.branch.tolist() == [[3, -1], [8, 9]] and plan.owner.tolist() == [0, 0]
    assert plan.slot.tolist() == [[0, 1, 2, 6, -1], [0, 1, 2, 8, 9], [4, 5, -1, -1, -1], [0, 1, 2, -1, -1]]
    assert branch_chunks(plan, 1) == [slice(0, 1), slice(1, 2)] and branch_chunks(plan, 99) == [slice(0, 19)]
    flipped = plan_branches(mask.flip(-1), torch.tensor([0, 0, -1, 0]), torch.tensor([3, 3, 0, 3]))
    assert flipped.prefix.tolist() == [[1, 2, 3], [-1, 13, 14]] and flipped.branch.tolist() == [[4, -1], [8, 9]]


def test_a_cache_hands_out_what_it_was_given():
    prefixes = build_prefix_cache(LlamaConfig(num_hidden_layers=1))
    keys = torch.arange(12.0).view(2, 1, 3, 2).requires_grad_()
    prefixes.update(keys, keys + 1, 0)
    prefixes.update(keys, keys + 1, 0)  # as gradient checkpointing does
    assert prefixes.get_seq_length() == 0
    branches = branch_cache(prefixes, torch.tensor([1, 1, 0]))
    assert branches.get_seq_length() == 3 and branches.get_mask_sizes(2, 0) == (5, 0)
    own = torch.zeros(3, 1, 2, 2)
    for _ in range(2):
        found, values = branches.update(own, own, 0)
        assert found[:, 0, :3].tolist() == keys[[1, 1, 0], 0].tolist() and not found[:, 0, 3:].any()
    values.sum().backward()
    assert keys.grad[:, 0, 0, 0].tolist() == [1, 2]


MEASURED = """
import resource, sys
sys.path.insert(0, {tests!r})
import tiny, torch
from test_routes import SentenceTransformer, sentence_transformers
torch.set_num_threads(1)
route, folder = sys.argv[1:]
kind = sentence_transformers.SentenceTransformer if route == "stock" else SentenceTransformer
model = kind(folder, device="cpu")
if route != "stock":
    model[0].sharing = route
image = tiny.random_image()
rows = [{{"image": image, "text": f"text number {{number}}"}} for number in range(5000)]
model.encode(rows[:2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
states = model.encode(rows, batch_size=5000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, *states[[0, 4999]].flatten().tolist())
"""


@pytest.mark.slow
def test_five_thousand_texts_of_one_image_take_less_memory_than_stock():
    """In one batch, in a process per route. With the 313 tokens of a Phi-3.5-vision image, stock needs over 24 GB."""
    folder = str(tiny.embedder("idefics3"))
    code = MEASURED.format(tests=str(Path(__file__).parent))
    peaks, states = {}, {}
    for route in ("stock", "packed", "branched"):
        done = subprocess.run([sys.executable, "-c", code, route, folder], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        peak, *numbers = map(float, done.stdout.split())
        peaks[route], states[route] = peak, np.array(numbers)
    for route in ("packed", "branched"):
        assert np.abs(states[route] - states["stock"]).max() < 1e-5
        assert peaks[route] < 0.8 * peaks["stock"], peaks
