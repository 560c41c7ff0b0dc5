"""Batches of so many tokens, with the padding that a batch really has."""

import pytest
import tiny
from datasets import Dataset

from xvlm2vec_st import SentenceTransformer
from xvlm2vec_st.data.batch_sampler import Costs, RowLengths, TokenBudgetBatches, places_single_forward, row_costs
from xvlm2vec_st.data.collator import ParallelCollator
from xvlm2vec_st.encoding.routes import packed_plan

LANGUAGES = ("it", "de")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows of unlike lengths, two of three without an image."""
    folder = tmp_path_factory.mktemp("budget")
    found = []
    for number in range(9):
        image = None
        if number % 3 == 0:
            image = str(folder / f"{number}.png")
            tiny.random_image(number, 30 + 20 * number).save(image)
        texts = {
            "en": f"text {number}",
            "it": "x" * (number + 1),
            "de": "y" * 40 if number % 4 == 0 else None,
        }
        found.append({"id": str(number), "image": image, **texts})
    return found


def ints(values):
    return Costs([RowLengths(0, (value,)) for value in values], lambda rows: sum(row.texts[0] for row in rows))


@pytest.mark.parametrize("shared", [True, False])
def test_a_batch_costs_the_places_that_the_model_computes(data, shared):
    model = SentenceTransformer(str(tiny.embedder("llava")))
    costs = row_costs(Dataset.from_list(data), LANGUAGES, model, image_size=None, shared=shared)
    collate = ParallelCollator(model.preprocess, languages=LANGUAGES, shared=shared)
    for batch in (range(9), [1, 2, 4], [0, 1, 2], [3], [5, 8, 6]):
        features = collate([data[row] for row in batch])
        if "texts_image_group" in features:
            plain = {key.removeprefix("texts_"): value for key, value in features.items()}
            real = packed_plan(model[0].config.get_text_config(), plain).stretch.numel()
        else:
            real = sum(value.numel() for key, value in features.items() if key.endswith("input_ids"))
        # One of the tokenizer's `<s>` is counted in the image and in each of its texts.
        spare = sum(1 + len(costs.rows[row].texts) for row in batch) * len(batch)
        assert real <= costs.total(batch) <= real + spare


def test_batches_keep_to_the_budget_and_change_their_order():
    costs = ints([(7 * n) % 11 + 1 for n in range(40)])
    batches = TokenBudgetBatches(list("x" * 40), costs, budget=20, max_rows=5, seed=0)
    first = list(batches)
    assert sorted(sum(first, [])) == list(range(40)) and len(first) == len(batches)
    assert all(costs.total(batch) <= 20 and len(batch) <= 5 for batch in first)
    batches.set_epoch(1)
    second = list(batches)
    assert second != first and sorted(map(tuple, second)) == sorted(map(tuple, first))
    with pytest.raises(
        ValueError,
        match="row b has 30 tokens in all its languages, padding included, and a batch has 20; raise",
    ):
        TokenBudgetBatches(["a", "b"], ints([1, 30]), budget=20, max_rows=5, seed=0)


def test_padding_does_not_pass_the_budget():
    costs = Costs([RowLengths(0, (n,)) for n in [1] * 30 + [20]], places_single_forward)
    batches = TokenBudgetBatches(list("x" * 31), costs, budget=40, max_rows=31, seed=0)
    assert all(len(batch) * max(costs.rows[row].texts[0] for row in batch) <= 40 for batch in batches)
