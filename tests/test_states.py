"""Which states are compared, on hand-made tensors and on a fake model."""

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import nn

from xvlm2vec_st.distillation.states import (
    image_end_token_ids,
    image_part_mask,
    masked_mean,
    pooling_of,
    sentence_state,
)


def positions(*lengths, left=False):
    """States whose value at position t is t (two dims), with the mask of rows of these lengths."""
    width = max(lengths)
    states = torch.arange(width, dtype=torch.float32)[None, :, None].expand(len(lengths), width, 2)
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, width - length :] = 1 if left else 0
        if not left:
            mask[row, :length] = 1
    return states, mask


@pytest.mark.parametrize(("left", "last"), [(False, [1, 4, 2]), (True, [4, 4, 4])])
def test_the_sentence_state_is_the_last_real_tokens_on_either_side(left, last):
    states, mask = positions(2, 5, 3, left=left)
    pooled = sentence_state(Pooling(2, "lasttoken"), {"token_embeddings": states, "attention_mask": mask})
    assert pooled.tolist() == [[t, t] for t in last]  # not normalised


def test_states_are_compared_in_fp32():
    states, mask = positions(2)
    taken = {"token_embeddings": states.bfloat16(), "attention_mask": mask}
    assert sentence_state(Pooling(2, "lasttoken"), taken).dtype == torch.float32
    assert masked_mean(states.bfloat16(), mask.bool()).dtype == torch.float32


def test_image_part_ends_with_the_last_mark_as_in_phi3v():
    # `<s>` is 1, the image 9: Phi-3.5-vision closes the image with a second `<s>`, which counts
    ids = torch.tensor([[1, 9, 9, 9, 1, 5, 6], [1, 5, 6, 0, 0, 0, 0]])
    mask = image_part_mask(ids, (ids != 0).long(), (9, 1))
    assert mask.int().tolist() == [[1, 1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0, 0]]


def test_padding_that_looks_like_a_mark_is_no_image():
    ids = torch.tensor([[9, 9, 1, 9, 5]])
    mask = image_part_mask(ids, torch.tensor([[0, 0, 1, 1, 1]]), (9, 1))
    assert mask.int().tolist() == [[0, 0, 1, 1, 0]]


def test_masked_mean_leaves_padding_out():
    states, mask = positions(2, 4)
    assert masked_mean(states, mask.bool()).tolist() == [[0.5, 0.5], [1.5, 1.5]]


def test_pooling_is_read_and_other_layouts_are_refused(teacher):
    assert pooling_of(teacher).pooling_mode == "lasttoken"
    with pytest.raises(ValueError, match=r"the model is Pooling \+ Normalize; pass one of Transformer \+ Pooling"):
        pooling_of(nn.Sequential(Pooling(2, "mean"), Normalize()))
    with pytest.raises(ValueError, match=r"the model is Transformer \+ Pooling \+ Linear"):
        pooling_of(nn.Sequential(teacher[0], Pooling(2, "mean"), nn.Linear(2, 2)))


def test_the_image_part_ends_with_the_image_token_or_bos(teacher):
    tokenizer = teacher.tokenizer
    assert image_end_token_ids(teacher) == (tokenizer.convert_tokens_to_ids("<image>"), tokenizer.bos_token_id)


def test_a_text_model_has_no_image_part():
    text_model = nn.Sequential(nn.Identity())
    text_model[0].processor = object()
    with pytest.raises(ValueError, match="object has no image token"):
        image_end_token_ids(text_model)
