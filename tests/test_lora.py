"""Target presets: the language model's linear layers, all of them, and nothing else."""

import re

import pytest
import tiny
import torch
from torch import nn

from xvlm2vec_st import MultilingualDistillationLoss, SentenceTransformer, lora_config
from xvlm2vec_st.distillation.teachers import AdapterTeacher, FrozenTeacher
from xvlm2vec_st.families.table import FAMILIES

VISION = re.compile("vision|visual|audio|connector|projector|img_")
# The gate of a shared expert routes; Gemma 4's projection for all layers stands before them.
NOT_ADAPTED = re.compile("shared_expert_gate|per_layer_model_projection")


def adapted(family, seed=0, **options):
    model = SentenceTransformer(str(tiny.embedder(family)))
    model.add_adapter(lora_config(family, rank=2, alpha=4, **options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


@tiny.every_family
def test_the_language_model_only(family):
    plain = dict(SentenceTransformer(str(tiny.embedder(family)))[0].model.named_modules())
    linear = {name for name, module in plain.items() if isinstance(module, nn.Linear)}
    expected = {name for name in linear if not VISION.search(name) and not NOT_ADAPTED.search(name)}
    holders = {name.split(".lora_")[0] for name, _ in adapted(family)[0].model.named_parameters() if "lora_" in name}
    assert holders == expected and expected
    assert len(expected) < len(linear), "the tower has linear layers of its own, which are left alone"
    learning = [name for name, p in adapted(family).named_parameters() if p.requires_grad]
    assert all("lora_" in name for name in learning)


@tiny.every_family
def test_with_its_adapter_off_the_student_is_the_base(family):
    base, student = SentenceTransformer(str(tiny.embedder(family))), adapted(family, dropout=0.5)
    student.train()
    inputs = [{"image": tiny.random_image(), "text": "what?"}, {"image": tiny.random_image(), "text": "who?"}]
    features = student.preprocess(inputs)
    expected = FrozenTeacher(base).states(features)["token_embeddings"]
    found = AdapterTeacher(student).states(features)["token_embeddings"]
    assert torch.equal(found, expected) and not found.requires_grad
    assert student.training
    on = student(dict(features))["token_embeddings"]
    assert (on - expected).abs().max() > 1e-3, "the adapter does nothing: nothing compared"


def test_no_teacher_needs_a_student_that_learns_an_adapter_only():
    with pytest.raises(ValueError, match="without a teacher, the student must train an adapter and nothing else"):
        MultilingualDistillationLoss(SentenceTransformer(str(tiny.embedder("llava"))))


def test_unknown_family():
    with pytest.raises(ValueError, match="llava_next"):
        lora_config("paligemma")
    assert set(FAMILIES) == set(tiny.MAKERS)


def test_a_family_without_a_preset_gets_the_linear_layers_of_its_language_model(monkeypatch):
    monkeypatch.setattr("xvlm2vec_st.building.adapters.FAMILIES", {})
    for family, prefix in (("llava", "language_model"), ("idefics3", "text_model"), ("gemma3", "language_model")):
        model = SentenceTransformer(str(tiny.embedder(family)))
        targets = set(lora_config(model).target_modules)
        linear = {name for name, module in model[0].model.named_modules() if isinstance(module, nn.Linear)}
        assert targets == {name for name in linear if name.startswith(f"{prefix}.layers.")} and len(targets) == 14
    with pytest.raises(ValueError, match="no LoRA preset for 'gemma3' with vision"):
        lora_config(model, vision=True)
    with pytest.raises(ValueError, match="Pass the model"):
        lora_config("gemma3")
