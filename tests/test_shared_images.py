"""Image features that student and teacher compute once: when, and that the loss and its gradients stay."""

from functools import partial

import pytest
import tiny
import torch
from test_distillation_shared import GROUPS, LANGUAGES

from mmmeb_tasks.mini.write import write_corpus
from xvlm2vec_st import MultilingualDistillationLoss, SentenceTransformer, load_parallel, lora_config
from xvlm2vec_st.data.collator import ParallelCollator
from xvlm2vec_st.distillation import shared_images
from xvlm2vec_st.distillation.shared_images import SharedImages, image_owner
from xvlm2vec_st.encoding.routes import image_tensors
from xvlm2vec_st.encoding.sharing import ROUTES
from xvlm2vec_st.families.table import VISION


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows with and without an image."""
    folder = write_corpus(tmp_path_factory.mktemp("shared") / "corpus", ["en", *LANGUAGES], scenes=2)
    data = [dict(row) for row in load_parallel(folder / "parallel.jsonl", LANGUAGES, show_progress=False)][:4]
    assert {row["image"] is None for row in data} == {True, False}
    return [row | {code: row[code][:20] for code in ("en", *LANGUAGES)} for row in data]


def student_of(folder):
    """A student that has moved, except for its frozen vision tower."""
    model = tiny.double(SentenceTransformer(str(folder)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not VISION.search(name))
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def adapted(family, **options):
    """A student with an adapter that does something."""
    model = SentenceTransformer(str(tiny.embedder(family)))
    model.add_adapter(lora_config(family, rank=4, alpha=8, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return tiny.double(model)


def loss_of(family, **options):
    folder = tiny.embedder(family)
    return MultilingualDistillationLoss(student_of(folder), tiny.double(SentenceTransformer(str(folder))), **options)


def features_of(loss, rows, *, shared=True):
    collate = ParallelCollator(loss.model.preprocess, languages=LANGUAGES, shared=shared, inputs=loss.needs_inputs)
    batch = collate(rows)
    groups = [{k.removeprefix(g): v for k, v in batch.items() if k.startswith(g)} for g in GROUPS]
    return [group for group in groups if group]


def run(loss, groups):
    """(parts, gradients, how often layers of a vision tower ran) of one step."""
    runs = [0]

    def count(*_):
        runs[0] += 1

    layers = [
        module
        for model in {id(model): model for model in (loss.model, loss.teacher.model)}.values()
        for name, module in image_owner(model).named_modules()
        if VISION.search(name) and isinstance(module, torch.nn.Linear)
    ]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    loss.zero_grad()
    torch.manual_seed(0)  # of the adapter's dropout
    parts = loss(groups)
    for hook in hooks:
        hook.remove()  # checkpointed layers run again in the backward pass
    sum(parts.values()).backward()
    gradients = {n: p.grad.clone() for n, p in loss.named_parameters() if p.grad is not None}
    return {name: part.item() for name, part in parts.items()}, gradients, runs[0]


def run_apart(loss, groups, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(SharedImages, "why_apart", lambda *_: "a test")
        return run(loss, groups)


def assert_shared(loss, groups, monkeypatch, tolerance=1e-9):
    """A step equals the plain one, and the vision tower runs half as often."""
    expected, plain, twice = run_apart(loss, groups, monkeypatch)
    found, gradients, once = run(loss, groups)
    assert 0 < 2 * once == twice
    assert found == pytest.approx(expected, rel=1e-6) and all(value > 0 for value in found.values())
    assert plain.keys() == gradients.keys()
    assert sum(gradient.abs().sum() > 0 for gradient in plain.values()) > 5
    largest = max(gradient.norm() for gradient in plain.values())
    for name, gradient in plain.items():
        assert (gradient - gradients[name]).norm() <= tolerance * max(gradient.norm(), 1e-6 * largest), name


def assert_apart(loss, groups, monkeypatch):
    *_, twice = run_apart(loss, groups, monkeypatch)
    *_, runs = run(loss, groups)
    assert runs == twice > 0


@tiny.every_family
def test_a_step_equals_the_plain_one(family, rows, monkeypatch):
    loss = loss_of(family)
    loss.model.train()
    assert_shared(loss, features_of(loss, rows), monkeypatch, 1e-5 if family in tiny.FP32 else 1e-9)


@tiny.some_families("llava", "phi3_v", "qwen3_vl")
def test_groups_by_side(family, rows, monkeypatch):
    loss = loss_of(family)
    groups = features_of(loss, rows, shared=False)
    english = [group for group in groups if group["side"] == "en"]
    assert len(groups) > len(english) > 1  # the translations' images are other tensors
    assert_shared(loss, english, monkeypatch)


@tiny.some_families("llava", "phi3_v", "idefics3", "qwen3_vl")
def test_an_adapter_teacher(family, rows, monkeypatch):
    loss = MultilingualDistillationLoss(adapted(family, dropout=0.1))
    loss.model.train()
    assert_shared(loss, features_of(loss, rows), monkeypatch, 1e-5 if family in tiny.FP32 else 1e-9)


@tiny.every_family
def test_image_features_depend_on_vision_weights_alone(family):
    model = SentenceTransformer(str(tiny.embedder(family)))
    features = model.preprocess([{"image": tiny.random_image(), "text": text} for text in ("a", "b")])
    owner = image_owner(model)
    images = image_tensors(owner, features)

    def look():
        with torch.no_grad():
            found = owner.get_image_features(**images, return_dict=True).pooler_output
        return found if isinstance(found, torch.Tensor) else torch.cat(list(found))

    before = look()
    assert before.abs().sum() > 0 and images
    with torch.no_grad():
        for name, parameter in owner.named_parameters():
            if not VISION.search(name):
                parameter.fill_(torch.nan)
    assert torch.equal(look(), before)


@pytest.mark.parametrize(("family", "route"), [("phi3_v", "branched"), *(("llava", route) for route in ROUTES)])
def test_every_route(family, route, rows, monkeypatch):
    loss = loss_of(family, image_part=True, middle_layer=1)
    loss.model[0].sharing = loss.teacher.model[0].sharing = route
    groups = features_of(loss, [row for row in rows if row["image"]] if route == "plain" else rows)
    assert_shared(loss, groups, monkeypatch)


def test_with_gradient_checkpointing_and_an_adapter(rows, monkeypatch):
    loss = MultilingualDistillationLoss(adapted("llava"))
    loss.model.gradient_checkpointing_enable({"use_reentrant": False})
    loss.model[0].model.enable_input_require_grads()
    loss.model.train()
    assert_shared(loss, features_of(loss, rows), monkeypatch)


def test_targets_for_the_cache_are_computed_with_the_students_images(rows, tmp_path, monkeypatch):
    expected, _, twice = run_apart(loss_of("llava"), features_of(loss_of("llava"), rows), monkeypatch)
    loss = loss_of("llava", cache=tmp_path)
    groups = features_of(loss, rows)
    missing, _, once = run(loss, groups)
    cached, _, student = run(loss, groups)
    assert 0 < once == student == twice / 2
    assert missing == pytest.approx(expected, rel=1e-6) and cached == missing


def element(model, name="vision_tower"):
    """A view of one element of a frozen weight."""
    return next(p for n, p in model.named_parameters() if name in n and p.ndim > 1).detach().view(-1)[:1]


def test_weights_that_differ_by_one_element_are_apart(rows, monkeypatch):
    loss = loss_of("llava")
    groups = features_of(loss, rows)
    assert_shared(loss, groups, monkeypatch)
    element(loss.model).add_(1e-6)
    assert "differs" in SharedImages().why_apart(loss.model, loss.teacher)
    assert_apart(loss, groups, monkeypatch)
    element(loss.model).copy_(element(loss.teacher.model))
    assert_shared(loss, groups, monkeypatch)
    element(loss.teacher.model, "projector").add_(1e-6)
    assert_apart(loss, groups, monkeypatch)


@pytest.mark.parametrize("name", ["vision_tower", "projector"])
def test_a_student_that_trains_vision_is_apart(name, rows, monkeypatch):
    loss = loss_of("llava")
    groups = features_of(loss, rows)
    assert_shared(loss, groups, monkeypatch)
    chosen = [p for n, p in loss.model.named_parameters() if name in n]
    chosen[0].requires_grad_(True)
    assert "learns" in SharedImages().why_apart(loss.model, loss.teacher)
    assert_apart(loss, groups, monkeypatch)
    assert chosen[0].grad.abs().sum() > 0


def test_an_adapter_on_the_tower_is_apart_even_if_it_is_frozen(rows, monkeypatch):
    loss = MultilingualDistillationLoss(adapted("llava", vision=True))
    groups = features_of(loss, rows)
    assert_apart(loss, groups, monkeypatch)
    for name, parameter in loss.model.named_parameters():
        parameter.requires_grad_("lora_" in name and not VISION.search(name))
    assert "has an adapter" in SharedImages().why_apart(loss.model, loss.teacher)
    assert_apart(loss, groups, monkeypatch)


def test_dropout_in_the_tower_is_apart_while_the_student_trains(rows, monkeypatch):
    loss = loss_of("llava")
    groups = features_of(loss, rows)
    for model in (loss.model, loss.teacher.model):
        for layer in model[0].model.vision_tower.modules():
            if hasattr(layer, "dropout") and isinstance(layer.dropout, float):
                layer.dropout = 0.5
    loss.model.train()
    assert_apart(loss, groups, monkeypatch)
    loss.model.eval()
    assert_shared(loss, groups, monkeypatch)


def test_what_else_is_apart(rows, monkeypatch):
    loss = loss_of("llava")
    why = partial(SharedImages().why_apart, loss.model)
    assert why(loss.teacher) is None
    assert SharedImages().why_apart(torch.nn.DataParallel(loss.model), loss.teacher).endswith("a DataParallel")
    single = MultilingualDistillationLoss(
        student_of(tiny.embedder("llava")), SentenceTransformer(str(tiny.embedder("llava")))
    )
    assert "differs" in SharedImages().why_apart(single.model, single.teacher), "fp64 and fp32"
    other = MultilingualDistillationLoss(loss.model, SentenceTransformer(str(tiny.embedder("phi3_v"))))
    assert "preprocesses" in why(other.teacher)
    monkeypatch.setattr(shared_images, "is_sharded", lambda owner: owner is image_owner(loss.model))
    assert "sharded" in why(loss.teacher)
    monkeypatch.undo()
    monkeypatch.setattr(loss.teacher.model[0].model.config.vision_config, "hidden_act", "gelu")
    assert SharedImages().why_apart(loss.model, loss.teacher) == "the configurations differ"
    monkeypatch.undo()
    monkeypatch.setattr(loss.model[0].model.config, "model_type", "unlisted")
    assert "tested family" in why(loss.teacher)


def test_other_images_have_other_features():
    model = SentenceTransformer(str(tiny.embedder("llava")))
    owner = image_owner(model)
    before = owner.get_image_features
    pixels = [model.preprocess([{"image": tiny.random_image(seed), "text": "a"}])["pixel_values"] for seed in (0, 1)]
    kept = {}
    with shared_images.features_kept(owner, kept):
        first, second = (owner.get_image_features(pixel_values=each, return_dict=True) for each in pixels)
        again = owner.get_image_features(pixel_values=pixels[0], return_dict=True)
        assert len(kept) == 2
        again.pooler_output = None  # the caller's copy
        third = owner.get_image_features(pixel_values=pixels[0], return_dict=True)
    values = [torch.cat(list(each.pooler_output)) for each in (first, second, third)]
    assert torch.equal(values[0], values[2]) and not torch.equal(values[0], values[1])
    assert owner.get_image_features == before


def test_an_error_leaves_the_model_as_it_was(rows):
    loss = loss_of("llava")
    with pytest.raises(RuntimeError, match="stop"), loss._images.between(loss.model, loss.teacher):
        assert "get_image_features" in vars(image_owner(loss.model))
        raise RuntimeError("stop")
    for model in (loss.model, loss.teacher.model):
        assert "get_image_features" not in vars(image_owner(model))
