"""One image, many texts, one forward: a `Transformer` that computes shared prefixes once, with exact results."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, cast

import torch
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from xvlm2vec_st.encoding.batches import images_in, key_of, text_length
from xvlm2vec_st.encoding.inputs import InputError, open_inputs
from xvlm2vec_st.encoding.packing import (
    Plan,
    attention_mask,
    common_prefix,
    has_window,
    images_of_groups,
    pack,
    plan_rows,
    repeat_per_stretch,
    unpack,
)
from xvlm2vec_st.encoding.token_rows import TokenRow, message_images, pad_rows, unpad_rows, with_new_tail, with_text
from xvlm2vec_st.families.table import FAMILIES

if TYPE_CHECKING:
    from sentence_transformers.base.modules.transformer import ProcessingKwargs

ATTENTION = ("sdpa", "eager")  # flash attention accepts no 4-D mask
# A packed row's mask has width x width entries: 64 MiB of fp32 at this width.
LONGEST_STRETCH = 4096
# Per-token values beside `input_ids`.
PER_TOKEN = ("attention_mask", "mm_token_type_ids")
# Per-row values of a batch that shares; all other tensors belong to its images.
PER_ROW = ("input_ids", *PER_TOKEN, "image_group", "shared_tokens")


class LVLM(Transformer):
    """A `Transformer` that processes what rows share only once.

    Rows of a batch with the same images (by content) form a group. Their images are preprocessed once, the vision tower
    runs once, and the decoder sees the group's common leading tokens once, in a packed row (see `encoding.packing`).
    The states equal those of the plain route, row by row. If nothing is shared, or the family is not in
    `families.table`, the plain route runs. `shares_prefix` says which route is possible.

    `xvlm2vec_st.SentenceTransformer` uses this class for its first module. It is saved as sentence-transformers' own
    `Transformer`.

    Example::

        model = xvlm2vec_st.SentenceTransformer("xvlm2vec")
        model[0].shares_prefix  # True
        model.encode([{"image": image, "text": text} for text in texts])  # one vision forward
    """

    @property
    def inner(self) -> Any:
        """The transformers model; `Any`, because `get_image_features` differs between families."""
        return self.model

    @property
    def _text_tokenizer(self) -> PreTrainedTokenizerBase:
        return cast(PreTrainedTokenizerBase, self.tokenizer)

    @property
    def shares_prefix(self) -> bool:
        """Whether the family and the settings allow sharing."""
        text = self.config.get_text_config()
        return (
            self.config.model_type in FAMILIES
            and self.config._attn_implementation in ATTENTION
            and not getattr(text, "use_bidirectional_attention", False)
            and not has_window(text)
            and set(self.processing_kwargs or {}) <= {"image"}
            and getattr(self.processor, "chat_template", None) is not None
        )

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        processing_kwargs: "ProcessingKwargs | None" = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Preprocess inputs; if rows share images, each image is preprocessed once.

        Then `input_ids` and other per-token tensors keep the shape (rows, tokens). `image_group` (rows,) numbers the
        rows' sets of images in the order of the image tensors (-1: no image). `shared_tokens` (rows,) is the number of
        leading tokens that a row shares with its group.
        """
        if not inputs or "image" not in self.modalities:
            return super().preprocess(inputs, prompt=prompt, processing_kwargs=processing_kwargs, **kwargs)
        originals, inputs = inputs, open_inputs(inputs)
        self._check_empty(originals, inputs, prompt)
        if not processing_kwargs and self.shares_prefix:
            messages = self._messages(inputs, prompt)
            if messages is not None and (features := self._shared(messages, **kwargs)) is not None:
                return features
        features = super().preprocess(inputs, prompt=prompt, processing_kwargs=processing_kwargs, **kwargs)
        self._restore_suffix(features, inputs, prompt, processing_kwargs)
        return features

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Token states, (rows, tokens, dim), by either route."""
        if "image_group" not in features:
            return super().forward(features, **kwargs)
        plan = self.plan(features)
        packed = {key: value for key, value in features.items() if key not in PER_ROW}
        packed["input_ids"] = pack(plan, features["input_ids"], self._text_tokenizer.pad_token_id)
        if "mm_token_type_ids" in features:
            packed["mm_token_type_ids"] = pack(plan, features["mm_token_type_ids"])
        packed["position_ids"] = pack(plan, self.positions(features))
        packed["attention_mask"] = attention_mask(plan, cast(torch.dtype, self.inner.dtype))
        images = self._image_tensors(features)
        encoded = self.inner.get_image_features(**images, return_dict=True)
        packed = {key: value for key, value in packed.items() if key not in images}
        counts = features["num_images_per_sample"].tolist()
        by_row = FAMILIES[self.config.model_type].encoded_by_row
        packed["mm_encoder_outputs"] = {"image": repeat_per_stretch(encoded, plan.groups, counts, by_row=by_row)}
        states = super().forward(packed, **kwargs)[self.module_output_name]
        return features | {self.module_output_name: unpack(plan, states)}

    def plan(self, features: dict[str, Any]) -> Plan:
        """Plan how a batch is packed."""
        text = self.config.get_text_config()
        return plan_rows(
            features["attention_mask"],
            features["image_group"],
            features["shared_tokens"],
            limit=min(text.max_position_embeddings, LONGEST_STRETCH),
            boundary=getattr(text, "original_max_position_embeddings", None),
        )

    def positions(self, features: dict[str, Any]) -> Tensor:
        """Positions of a batch's tokens: (rows, tokens), or (3, rows, tokens) for families with M-RoPE."""
        mask = features["attention_mask"]
        if not hasattr(self.inner, "get_rope_index"):
            return (mask.cumsum(-1) - 1).clamp(min=0)
        grids = features["image_grid_thw"].split(images_of_groups(features))
        row_grids = [grids[group] for group in features["image_group"].tolist() if group >= 0]
        positions, _ = self.inner.get_rope_index(
            features["input_ids"],
            mm_token_type_ids=features["mm_token_type_ids"],
            image_grid_thw=torch.cat(row_grids),
            attention_mask=mask,
        )
        return positions

    def _check_empty(self, originals: Sequence[Any], inputs: Sequence[Any], prompt: str | None) -> None:
        """Refuse an empty text if template and tokenizer add no token to it.

        Without a token there is no state to pool; sentence-transformers returns a zero vector or fails.
        """
        for row, item in enumerate(inputs):
            if text_length(item) or images_in(item) or not self._has_template():
                continue
            messages = self._messages([item], prompt, texts=True)
            if messages is None:
                continue
            rendered = self.processor.apply_chat_template(messages, tokenize=False)
            if not self._ids(rendered, [0])[0]:
                raise InputError(
                    row, originals[row], "the text is empty, and the model adds no token to it; remove the row"
                )

    def _has_template(self) -> bool:
        return getattr(self.processor, "chat_template", None) is not None

    def _restore_suffix(
        self, features: dict[str, Any], inputs: Sequence[Any], prompt: str | None, settings: Mapping | None
    ) -> None:
        """Write the template's closing tokens over the end of truncated rows with an image.

        Last-token pooling reads these tokens. sentence-transformers 6.2 restores them in rows without an image only.
        """
        limit, mask = self.max_seq_length, features.get("attention_mask")
        if settings or not limit or not isinstance(mask, Tensor) or mask.shape[-1] < limit:
            return
        image = getattr(self.processor, "image_token_id", None)
        for row in (mask.sum(-1) >= limit).nonzero().flatten().tolist():
            if image is None or not self._has_template() or not images_in(inputs[row]):
                continue
            suffix = self._suffix(self._messages([inputs[row]], prompt, texts=True), image)
            places = mask[row].nonzero().flatten()[-max(len(suffix), 1) :]
            if suffix and not (features["input_ids"][row, places] == image).any():
                features["input_ids"][row, places] = torch.tensor(suffix)

    def _suffix(self, messages: list[list[dict]] | None, image: int) -> list[int]:
        """The ids after the content of a row: the common end of the same row with two other texts."""
        if not messages:
            return []
        rows = [[with_text(message, text) for message in messages[0]] for text in ("0", "1 2 3 4")]
        rendered = [self.processor.apply_chat_template([row], tokenize=False)[0] for row in rows]
        count = len(message_images(messages[0]))
        ids = [self._ids([text], [count])[0] for text in rendered]
        number = common_prefix([row[::-1] for row in ids])
        suffix = ids[0][len(ids[0]) - number :]
        return [] if image in suffix or number == min(map(len, ids)) else suffix

    def _image_tensors(self, features: dict[str, Any]) -> dict[str, Tensor]:
        parameters = signature(self.inner.get_image_features).parameters
        return {key: features[key] for key in parameters if isinstance(features.get(key), Tensor)}

    def _messages(self, inputs: Sequence[Any], prompt: str | None, *, texts: bool = False) -> list[list[dict]] | None:
        """The opened inputs as chat messages; None for inputs without images, unless `texts` is set."""
        if not inputs:
            return None
        modality, parsed, extra = self.input_formatter.parse_inputs(inputs)
        if any(extra.values()) or "message" not in self.modality_config:
            return None
        if modality != "message":
            if "image" not in modality and not texts:
                return None
            _, parsed = self.input_formatter.batch_to_message(modality, parsed)
        messages = parsed["message"]
        if prompt:
            messages = self.input_formatter.prepend_prompt_to_messages(messages, prompt)
        return messages

    def _shared(self, messages: list[list[dict]], **kwargs: Any) -> dict[str, Any] | None:
        """Features of rows that share images; None if no row does."""
        known: dict[int, Any] = {}
        keys = [tuple(key_of(image, known) for image in message_images(row)) for row in messages]
        repeats = {key for key in keys if key and keys.count(key) > 1}
        if not repeats:
            return None
        heads, tails = self._ends([row if key in repeats else None for row, key in zip(messages, keys, strict=True)])
        leader: dict[tuple, int] = {}
        leads = [
            number if head is None else leader.setdefault((key, head), number)
            for number, (key, head) in enumerate(zip(keys, heads, strict=True))
        ]
        leaders = list(dict.fromkeys(leads))
        if len(leaders) == len(messages):
            return None
        features = super().preprocess([messages[number] for number in leaders], **kwargs)
        rows = dict(zip(leaders, unpad_rows(features), strict=True))
        if any(rows[lead].ids[-len(tails[lead]) :] != tails[lead] for lead in leads if tails[lead]):
            return None  # the processor inserts more than image tokens
        for number, lead in enumerate(leads):
            if number != lead:
                rows[number] = with_new_tail(rows[lead], len(tails[lead]), tails[number])
        if max(len(row.ids) for row in rows.values()) > (self.max_seq_length or float("inf")):
            return None  # sentence-transformers truncates
        return features | self._row_features([rows[n] for n in range(len(leads))], leads, keys)

    def _row_features(self, rows: list[TokenRow], leads: list[int], keys: list[tuple]) -> dict[str, Tensor]:
        """The per-token and per-row values of a batch that shares."""
        members: dict[int, list[int]] = {}
        for number, lead in enumerate(leads):
            if keys[lead]:
                members.setdefault(lead, []).append(number)
        group = {lead: number for number, lead in enumerate(members)}
        common = {lead: common_prefix([rows[n].ids for n in numbers]) for lead, numbers in members.items()}
        side, pad = self._text_tokenizer.padding_side, self._text_tokenizer.pad_token_id
        features = {
            "input_ids": pad_rows([row.ids for row in rows], pad, side),
            "attention_mask": pad_rows([[1] * len(row.ids) for row in rows], 0, side),
            "image_group": torch.tensor([group.get(lead, -1) for lead in leads]),
            "shared_tokens": torch.tensor([common.get(lead, 0) for lead in leads]),
        }
        if rows[0].types is not None:
            features["mm_token_type_ids"] = pad_rows([cast(list[int], row.types) for row in rows], 0, side)
        return features

    def _ends(self, messages: list[list[dict] | None]) -> tuple[list[tuple | None], list[list[int]]]:
        """For each row, the ids up to its last image, with one id per image, and the ids after it.

        The first is None for a row without messages, or if the placeholders do not match the images.
        """
        chosen = [number for number, row in enumerate(messages) if row is not None]
        rendered = self.processor.apply_chat_template([messages[n] for n in chosen], tokenize=False)
        heads: list[tuple | None] = [None] * len(messages)
        tails: list[list[int]] = [[] for _ in messages]
        image = self.processor.image_token_id
        counts = [len(message_images(cast(list[dict], messages[n]))) for n in chosen]
        for number, ids, count in zip(chosen, self._ids(rendered, counts), counts, strict=True):
            if ids.count(image) == count:
                last = len(ids) - ids[::-1].index(image)
                tails[number] = ids[last:]
                heads[number] = tuple(ids[:last])
        return heads, tails

    def _ids(self, rendered: list[str], counts: list[int]) -> list[list[int]]:
        """Token ids of rendered rows, with one id per image."""
        # Phi-3.5-vision tokenizes the texts between images separately.
        if hasattr(self.processor, "encode"):
            return [row.ids for row in self.processor.encode(rendered, [[1] * count for count in counts])]
        bos = self._text_tokenizer.bos_token
        special = not (bos and rendered[0].startswith(bos))  # as in transformers' apply_chat_template
        return self._text_tokenizer(rendered, add_special_tokens=special, verbose=False)["input_ids"]
