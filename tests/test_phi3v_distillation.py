"""The loss on Phi-3.5-vision, against the original implementation's figures."""

import json
from pathlib import Path

import pytest
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

import xvlm2vec_st.phi3v  # noqa: F401
from xvlm2vec_st import MultilingualDistillationLoss
from xvlm2vec_st.data.collator import ParallelCollator

GOLDEN = Path(__file__).parent / "golden" / "phi3v"
EXPECTED = json.loads((GOLDEN / "distillation.json").read_text("utf-8"))
MARK = "<|image_1|>\n"  # ours places the image by the template


def embedder():
    body = Transformer(str(GOLDEN))
    return SentenceTransformer(modules=[body, Pooling(64, "lasttoken"), Normalize()])


@pytest.fixture(scope="module")
def pair():
    """(student with the golden LoRA, teacher), and the collated golden rows."""
    student = embedder()
    student[0].model = PeftModel.from_pretrained(student[0].model, str(GOLDEN / "adapter_lora"), is_trainable=True)
    rows = [
        {
            "id": str(i),
            "image": str(GOLDEN / row["image"]) if row["image"] else None,
            "en": row["en"].removeprefix(MARK),
            "it": row["lang"].removeprefix(MARK),
        }
        for i, row in enumerate(EXPECTED["pairs"])
    ]
    batch = ParallelCollator(student.preprocess, languages=["it"])(rows)
    names = [f"{side}_{kind}_" for side in ("en", "translated") for kind in ("text", "image")]
    features = [{k[len(n) :]: v for k, v in batch.items() if k.startswith(n)} for n in names]
    return student, embedder(), features


@pytest.mark.parametrize("variant", ["loss", "image_loss"])
def test_parts_totals_and_gradients_are_the_original_ones(pair, variant):
    student, teacher, features = pair
    loss = MultilingualDistillationLoss(student, teacher, image_part=variant == "image_loss")
    student.zero_grad()
    parts = loss(features)
    for name, value in parts.items():
        assert value.item() * len(parts) == pytest.approx(EXPECTED[name], rel=1e-4)
    total = sum(parts.values())
    assert total.item() == pytest.approx(EXPECTED[variant], rel=1e-4)
    total.backward()
    norms = {name: p.grad.norm().item() for name, p in student.named_parameters() if p.grad is not None}
    expected = {k.split("/")[1]: v for k, v in EXPECTED["grad_norms"].items() if k.startswith(f"{variant}/")}
    assert len(expected) == 4
    for name, value in expected.items():
        found = [norm for key, norm in norms.items() if key.endswith(name.split("model.model.")[-1])]
        assert len(found) == 1 and found[0] == pytest.approx(value, rel=1e-4)
