"""Rotary positions with short and long factors, chosen per row.

Phi-3.5-vision has two sets of rotary factors: short ones up to `original_max_position_embeddings` positions (4,096),
long ones beyond. The 2024 implementation chose by the length of the *batch*, padding included. transformers'
`Phi3Model` chooses by the largest position in the batch. In both, a text's embedding changes if a long row joins its
batch. Here the length of each row decides: a batch gives the same results as single rows, and single rows equal the
original.
"""

import torch
from torch import Tensor, nn
from transformers import Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


class RowRotaryEmbedding(nn.Module):
    """Cosines and sines for `Phi3Model`, with the factors for each row's length."""

    def __init__(self, config: Phi3Config) -> None:
        """Store the configuration; frequencies are computed in float32 on first use.

        They are not buffers: `model.to(bfloat16)` would round them by up to 0.2 %, 8 radians at position 4,000.
        """
        super().__init__()
        self.config = config
        self.original: int = config.original_max_position_embeddings
        self._frequencies: dict[torch.device, tuple[Tensor, Tensor, float]] = {}

    def frequencies(self, device: torch.device) -> tuple[Tensor, Tensor, float]:
        """Short and long inverse frequencies [head_dim / 2], and the scale of cosine and sine."""
        if device not in self._frequencies:
            initialize = ROPE_INIT_FUNCTIONS["longrope"]
            short, scale = initialize(self.config, device, seq_len=self.original)
            long, _ = initialize(self.config, device, seq_len=self.original + 1)
            self._frequencies[device] = short, long, scale
        return self._frequencies[device]

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine in x's dtype, [batch, seq, head_dim] from positions [batch, seq]."""
        short, long, scale = self.frequencies(x.device)
        is_long = text_lengths(position_ids)[..., None] > self.original
        angles = position_ids[..., None].float() * torch.where(is_long, long, short)
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * scale).to(x.dtype), (angles.sin() * scale).to(x.dtype)

    def refuse_crossing(self, cached: int, new: int, position_ids: Tensor | None) -> None:
        """Refuse to continue a row whose cached keys were rotated with other factors.

        Args:
            cached: tokens in the cache, padding included.
            new: tokens that are added to each row.
            position_ids: of the new tokens, [batch, new]; None: they follow the cache.

        Raises:
            ValueError: a row's cached part used short factors, and the whole row needs long ones.
        """
        if cached == 0 or cached + new <= self.original:
            return
        if position_ids is None:
            position_ids = torch.arange(cached, cached + new)[None]
        first, last = position_ids[:, 0], position_ids.amax(dim=1)
        if ((first > 0) & (first <= self.original) & (last >= self.original)).any():
            raise ValueError(
                f"a row grows past original_max_position_embeddings ({self.original}), and its first part was "
                "cached with short rotary factors; run the whole row without a cache"
            )


def text_lengths(position_ids: Tensor) -> Tensor:
    """For each position [batch, seq], the length of the text that it belongs to.

    A text starts at position 0, which separates the texts of a flattened batch; its length is its largest position + 1.
    Texts that share a prefix (packed rows) do not start at 0: they count as one text with the length of the longest.

    >>> text_lengths(torch.tensor([[0, 1, 2, 0, 1], [0, 0, 0, 1, 2]])).tolist()
    [[3, 3, 3, 2, 2], [1, 1, 3, 3, 3]]
    """
    text = (position_ids == 0).long().cumsum(-1)
    longest = torch.zeros(text.shape[0], text.shape[1] + 1, dtype=torch.long, device=position_ids.device)
    longest = longest.scatter_reduce(1, text, position_ids.long() + 1, "amax")
    return longest.gather(1, text)


def positions_from_mask(attention_mask: Tensor) -> Tensor:
    """Positions [batch, seq] that count real tokens only, for padding on either side.

    Padding repeats a neighbour's position (or 0 before the text), so it does not lengthen a row.

    >>> positions_from_mask(torch.tensor([[1, 1, 0], [0, 1, 1]])).tolist()
    [[0, 1, 1], [0, 0, 1]]
    """
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
