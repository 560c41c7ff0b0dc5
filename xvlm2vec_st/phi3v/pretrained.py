"""The base class of all Phi-3.5-vision models: loading refuses weights that do not fit."""

import os
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import Phi3PreTrainedModel
from transformers import initialization as init

from xvlm2vec_st.phi3v.configuration import Phi3VConfig
from xvlm2vec_st.phi3v.vision import ImageEmbedding


class Phi3VPreTrainedModel(Phi3PreTrainedModel):
    """Refuse weights that do not fit, and initialise the separators."""

    config: Phi3VConfig
    input_modalities = ["image", "text"]
    # Shapes depend on the positions of the images, which a full graph cannot express.
    _can_compile_fullgraph = False
    # `wte` is a copy of the token embedding; `inv_freq` and `position_ids` are computed.
    _keys_to_ignore_on_load_unexpected = [
        r"vision_embed_tokens\.wte\.weight$",
        r"rotary_emb\.inv_freq$",
        r"embeddings\.position_ids$",
    ]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ImageEmbedding):
            init.normal_(module.glb_GN, std=self.config.initializer_range)
            init.normal_(module.sub_GN, std=self.config.initializer_range)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> Self:
        """Load weights; errors name a damaged file.

        Raises:
            ValueError: a safetensors file is truncated or damaged; keys are missing, unexpected or of another shape.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except SafetensorError as error:
            raise ValueError(
                f"a weight file of {pretrained_model_name_or_path} cannot be read ({error}): it is truncated or "
                "damaged; copy or download it again"
            ) from error

    def load_adapter(self, peft_model_id: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Load an adapter; raise an error where transformers only logs.

        Raises:
            ValueError: keys of the adapter match no layer, or layers get no weights.
        """
        kwargs["ignore_mismatched_sizes"] = True  # reported below; transformers does not name them
        info = super().load_adapter(peft_model_id, *args, **kwargs)
        refuse_load_errors(f"the adapter {peft_model_id}", type(self).__name__, info)
        return info

    def _adjust_missing_and_unexpected_keys(self, loading_info: Any) -> None:
        """Raise an error where transformers only logs: a randomly initialised layer gives plausible wrong embeddings.

        transformers 5.23 has no public hook that also sees the base model if a folder holds an adapter.
        """
        super()._adjust_missing_and_unexpected_keys(loading_info)
        refuse_load_errors("the checkpoint", type(self).__name__, loading_info)


def refuse_load_errors(what: str, model: str, info: Any) -> None:
    """Raise a ValueError that lists all keys of a `LoadStateDictInfo` that do not fit."""
    shapes = sorted(f"{name} {list(has)} not {list(needs)}" for name, has, needs in info.mismatched_keys)
    kinds = {
        "missing": sorted(info.missing_keys),
        "unexpected": sorted(info.unexpected_keys),
        "of another shape": shapes,
    }
    listed = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in kinds.items() if keys)
    if listed:
        info.mismatched_keys.clear()  # else transformers' error would replace this one
        raise ValueError(
            f"{what} does not fit {model}: {listed}; check that the weights belong to the "
            "config.json beside them and that no file is missing"
        )
