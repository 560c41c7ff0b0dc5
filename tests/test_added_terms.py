"""The terms beyond the paper's: a middle layer, and InfoNCE over the rows of all processes."""

import processes
import pytest
import tiny
import torch
from sentence_transformers.sentence_transformer.modules import Dense

from mmmeb_tasks.mini.write import write_corpus
from xvlm2vec_st import MultilingualDistillationLoss, SentenceTransformer, load_parallel, lora_config
from xvlm2vec_st.data.collator import ParallelCollator
from xvlm2vec_st.distillation.middle_layer import middle_states
from xvlm2vec_st.utils.modules import language_layers, transformer_of

LANGUAGES = ("it", "de")
TEXTS = [{"id": str(n), "image": None, "en": f"text {n}", "it": f"testo {n}", "de": f"Satz {n}"} for n in range(5)]


def embedder(family="llava", seed=0):
    model = SentenceTransformer(str(tiny.embedder(family)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


def parts_of(loss, rows):
    collate = ParallelCollator(loss.model.preprocess, languages=LANGUAGES, shared=True, inputs=loss.needs_inputs)
    batch = collate(rows)
    return loss([{k.removeprefix("texts_"): v for k, v in batch.items() if k.startswith("texts_")}])


@tiny.every_family
def test_middle_states_are_those_of_transformers(family):
    model = embedder(family)
    features = model.preprocess(["red apple", "a dog left of a cat"])
    plain = model(dict(features))["token_embeddings"]
    for layer in range(1, len(language_layers(model))):
        states = middle_states(model, features, layer)
        assert torch.equal(states["token_embeddings"], plain)
        output = transformer_of(model).model(
            input_ids=features["input_ids"], attention_mask=features["attention_mask"], output_hidden_states=True
        )
        torch.testing.assert_close(states["middle_embeddings"], output.hidden_states[layer], atol=1e-5, rtol=0)
        assert (states["middle_embeddings"] - plain).abs().max() > 1e-3
    assert model(dict(features))["token_embeddings"].shape == plain.shape  # no hook stays


def test_a_middle_term_lowers_and_is_kept_in_the_cache(tmp_path):
    student, teacher = embedder(seed=1), embedder()
    loss = MultilingualDistillationLoss(student, teacher, middle_layer=1, middle_weight=3.0)
    parts = parts_of(loss, TEXTS)
    assert {"english_middle", "translated_middle"} < set(parts)
    single = MultilingualDistillationLoss(student, teacher, middle_layer=1)
    assert parts["english_middle"].item() == pytest.approx(3 * parts_of(single, TEXTS)["english_middle"].item())
    same = parts_of(MultilingualDistillationLoss(embedder(), teacher, middle_layer=1), TEXTS)
    assert abs(same["english_middle"].item()) < 1e-6 < same["translated_middle"].item()
    cached = MultilingualDistillationLoss(student, teacher, middle_layer=1, middle_weight=3.0, cache=tmp_path)
    for _ in range(2):  # computed, then read
        assert {n: p.item() for n, p in parts_of(cached, TEXTS).items()} == pytest.approx(
            {n: p.item() for n, p in parts.items()}, rel=1e-5
        )
    optimizer = torch.optim.AdamW(student.parameters(), 1e-3)
    for _ in range(10):
        optimizer.zero_grad()
        sum(parts_of(loss, TEXTS).values()).backward()
        optimizer.step()
    assert parts_of(loss, TEXTS)["translated_middle"] < 0.7 * parts["translated_middle"]


def test_an_adapter_is_off_in_the_middle_too():
    student = embedder()
    student.add_adapter(lora_config("llava", rank=4))
    loss = MultilingualDistillationLoss(student, middle_layer=1)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    assert parts_of(loss, TEXTS)["english_middle"].item() > 1e-4


def test_a_middle_layer_that_is_missing_is_refused():
    with pytest.raises(ValueError, match="middle_layer is 2; pass 1 to 1: the language model has 2 layers"):
        MultilingualDistillationLoss(embedder(), embedder(), middle_layer=2)
    projected = embedder()
    projected.insert(2, Dense(32, 32))
    with pytest.raises(ValueError, match="middle_layer needs models without a Dense layer"):
        MultilingualDistillationLoss(embedder(), projected, middle_layer=1)


def contrastive(rows):
    loss = MultilingualDistillationLoss(embedder(seed=1), embedder(), contrastive_weight=0.7)
    parts = parts_of(loss, rows)
    sum(parts.values()).backward()
    gradients = {name: p.grad for name, p in loss.named_parameters() if p.grad is not None}
    return {name: part.item() for name, part in parts.items()}, gradients


def contrastive_of_one(rank, sizes):
    """This process' share of the rows."""
    torch.distributed.init_process_group("gloo")
    first = sum(sizes[:rank])
    parts, gradients = contrastive(TEXTS[first : first + sizes[rank]])
    torch.distributed.barrier()
    return parts, {name: gradient.numpy() for name, gradient in gradients.items()}  # a tensor dies with its process


@pytest.mark.parametrize("sizes", [(2, 2), (4, 1)])
def test_negatives_come_from_all_processes(sizes):
    """The shares' parts and gradients, weighted by rows, are those of the whole batch in one process."""
    rows = sum(sizes)
    whole, gradients = contrastive(TEXTS[:rows])
    shares = processes.together("ddp.yaml", contrastive_of_one, sizes)
    for name, value in whole.items():
        mean = sum(share[0][name] * size for share, size in zip(shares, sizes, strict=True)) / rows
        assert mean == pytest.approx(value, rel=1e-4), name
    for name, gradient in gradients.items():
        mean = sum(share[1][name] * size for share, size in zip(shares, sizes, strict=True)) / rows
        torch.testing.assert_close(torch.from_numpy(mean), gradient, atol=1e-6, rtol=1e-3)
    assert sum(gradient.abs().sum() > 0 for gradient in gradients.values()) > 10
    alone, _ = contrastive(TEXTS[: sizes[0]])
    assert alone["translated_contrastive"] < 0.9 * shares[0][0]["translated_contrastive"]  # fewer negatives


def test_autocast_leaves_the_terms_in_fp32(monkeypatch):
    """The same states give the same parts: similarities are not multiplied in bf16."""
    loss = MultilingualDistillationLoss(embedder(seed=1), embedder(), contrastive_weight=1.0, similarity_weight=1.0)
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1, 64, generator=generator)
    near = base + 0.05 * torch.randn(6, 64, generator=generator)  # cosines of about 0.998, which bf16 rounds to 1
    states = {
        "row": torch.arange(3),
        "language": torch.zeros(3, dtype=torch.long),
        "sentence": near[:3].requires_grad_(),
    }
    monkeypatch.setattr(loss, "_compute_states", lambda features: states)
    monkeypatch.setattr(loss, "_compute_targets", lambda *_: {"row": torch.arange(3), "sentence": near[3:]})
    features = [states | {"side": "en"}]
    plain = {name: part.item() for name, part in loss(features).items()}
    with torch.autocast("cpu", torch.bfloat16):
        assert {name: part.item() for name, part in loss(features).items()} == plain
        rows = torch.nn.functional.normalize(near, dim=-1)
        assert ((rows @ rows.T).float() == 1).sum() > 6  # so does autocast, beside the diagonal
    assert plain["english_contrastive"] > 0.1


def test_weights_are_checked():
    with pytest.raises(ValueError, match="contrastive_weight is -1; pass 0"):
        MultilingualDistillationLoss(embedder(), embedder(), contrastive_weight=-1)


def test_rows_with_images_have_all_terms(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", ["en", *LANGUAGES], scenes=3) / "parallel.jsonl"
    rows = [dict(row) for row in load_parallel(corpus, LANGUAGES, show_progress=False)]
    loss = MultilingualDistillationLoss(
        embedder(seed=1), embedder(), contrastive_weight=0.1, similarity_weight=0.1, middle_layer=1
    )
    parts = parts_of(loss, rows)
    assert len(parts) == 8 and all(part.item() > 0 for part in parts.values())
