"""Phi-3.5-vision on transformers' `Phi3Model` and `CLIPVisionModel`.

`Phi3VModel` (without a head, for embeddings) and `Phi3VForCausalLM` both hold the decoder as `model`. Parameters have
the official names in both, and published adapters (`base_model.model.model.layers…`) fit both.
"""

from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, GenerationMixin, Phi3Model
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.utils.generic import can_return_tuple

from xvlm2vec_st.phi3v.configuration import Phi3VConfig
from xvlm2vec_st.phi3v.pretrained import Phi3VPreTrainedModel
from xvlm2vec_st.phi3v.rope import RowRotaryEmbedding, positions_from_mask
from xvlm2vec_st.phi3v.vision import ImageEmbedding, image_positions, place_images

# transformers 5.24 renamed the argument and the output `past_key_values` to `cache`, and warns about the old name
# (https://github.com/huggingface/transformers, deprecate_kwarg in models/phi3/modeling_phi3.py).
CACHE = "cache" if "cache" in signature(Phi3Model.forward).parameters else "past_key_values"


class Phi3VDecoder(Phi3VPreTrainedModel, Phi3Model):
    """`Phi3Model` with image tokens at the image positions, and rotary factors per row."""

    def __init__(self, config: Phi3VConfig) -> None:
        """Build decoder, tower and projection for `config`."""
        super().__init__(config)
        tower = cast(CLIPVisionConfig, config.vision_config)
        self.vision_embed_tokens = ImageEmbedding(tower, config.hidden_size)
        if cast(dict, config.rope_parameters)["rope_type"] == "longrope":
            self.rotary_emb = RowRotaryEmbedding(config)  # type: ignore[assignment]
        self.post_init()

    def get_image_features(
        self, pixel_values: Tensor, image_sizes: Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Image tokens, [n, hidden] for each image, in `pooler_output`; see `ImageEmbedding`."""
        return BaseModelOutputWithPooling(pooler_output=self.vision_embed_tokens(pixel_values, image_sizes))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """States after the final norm.

        Args:
            input_ids: [batch, seq], or `inputs_embeds` [batch, seq, hidden].
            attention_mask: [batch, seq] (1 is real), or 4-D with `position_ids`.
            position_ids: [batch, seq]; default: counted from a 2-D mask.
            cache: keys and values of the tokens before `input_ids`.
            inputs_embeds: instead of `input_ids`.
            pixel_values: [images, crops, 3, side, side] of all rows' images in order.
            image_sizes: [images, 2].
            mm_token_type_ids: [batch, seq], 1 for image tokens; default: the ids that equal `config.image_token_id`.
            mm_encoder_outputs: `{"image": get_image_features(…)}` instead of the pixels.
            past_key_values: the name of `cache` before transformers 5.24.
            **kwargs: for `Phi3Model`.

        Raises:
            ValueError: the numbers of image tokens and image positions differ; a row crosses
                `original_max_position_embeddings` after its first part was cached; two caches are passed.
        """
        if cache is not None and past_key_values is not None:
            raise ValueError("pass one of cache and past_key_values: they are two names of one argument")
        cache = past_key_values if cache is None else cache
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        is_image = image_positions(input_ids, mm_token_type_ids, self.config.image_token_id)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if pixel_values is not None:
            if mm_encoder_outputs or image_sizes is None:
                raise ValueError("pass pixel_values and image_sizes, or mm_encoder_outputs alone")
            mm_encoder_outputs = {"image": self.get_image_features(pixel_values, image_sizes)}
        images = (mm_encoder_outputs or {}).get("image")
        tokens = [] if images is None else list(cast(list[Tensor], images.pooler_output))
        inputs_embeds = place_images(inputs_embeds, is_image, tokens)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = positions_from_mask(attention_mask)[:, -inputs_embeds.shape[1] :]
        if cache is not None and isinstance(self.rotary_emb, RowRotaryEmbedding):
            self.rotary_emb.refuse_crossing(cache.get_seq_length(), inputs_embeds.shape[1], position_ids)
        return super().forward(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **{CACHE: cache},
            **kwargs,
        )


class Phi3VModel(Phi3VPreTrainedModel):
    """Phi-3.5-vision without the language model head, for embeddings."""

    _keys_to_ignore_on_load_unexpected = [
        *Phi3VPreTrainedModel._keys_to_ignore_on_load_unexpected,
        r"^lm_head\.",
    ]

    def __init__(self, config: Phi3VConfig) -> None:
        """Build the decoder, with its tower, for `config`."""
        super().__init__(config)
        self.model = Phi3VDecoder(config)
        self.post_init()

    def get_image_features(
        self, pixel_values: Tensor, image_sizes: Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """See `Phi3VDecoder.get_image_features`."""
        return self.model.get_image_features(pixel_values, image_sizes, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """`last_hidden_state` [batch, seq, hidden], after the final norm; see `Phi3VDecoder`."""
        return self.model(
            input_ids,
            attention_mask,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            mm_token_type_ids=mm_token_type_ids,
            **kwargs,
        )


class Phi3VForCausalLM(Phi3VPreTrainedModel, GenerationMixin):
    """Phi-3.5-vision with its language model head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Phi3VConfig) -> None:
        """Build the decoder, with its tower, and the head for `config`."""
        super().__init__(config)
        self.model = Phi3VDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(
        self, pixel_values: Tensor, image_sizes: Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """See `Phi3VDecoder.get_image_features`."""
        return self.model.get_image_features(pixel_values, image_sizes, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [batch, kept, vocabulary], and the loss if `labels` [batch, seq] are passed."""
        outputs = self.model(
            input_ids,
            attention_mask,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            mm_token_type_ids=mm_token_type_ids,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: outputs.get(CACHE)},
        )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Drop the cache at the step at which a row changes from short to long rotary factors."""
        original = self.config.original_max_position_embeddings
        if next_sequence_length is not None and input_ids.shape[1] > original:
            lengths = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            lengths = lengths.sum(-1)
            if ((lengths > original) & (lengths - next_sequence_length <= original)).any():
                next_sequence_length = None
                kwargs |= {CACHE: None, "is_first_iteration": True}
        return super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,  # type: ignore[arg-type]
            next_sequence_length=next_sequence_length,
            attention_mask=attention_mask,  # type: ignore[arg-type]
            **kwargs,
        )
