"""One image, many texts, one forward: a `Transformer` that computes shared prefixes once, with exact results."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from sentence_transformers.sentence_transformer.modules import Transformer
from sentence_transformers.util import batch_to_device
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from xvlm2vec_st.encoding.batches import images_in, text_length
from xvlm2vec_st.encoding.inputs import InputError, open_inputs
from xvlm2vec_st.encoding.last_layer import POOLED_ONLY, last_layer_for, last_tokens
from xvlm2vec_st.encoding.open_images import OpenImages
from xvlm2vec_st.encoding.packing import common_prefix
from xvlm2vec_st.encoding.routes import POOLED, branched_states, is_sharded, packed_states, vision_states
from xvlm2vec_st.encoding.sharing import ROUTES, Sharing, decide_sharing
from xvlm2vec_st.encoding.token_rows import message_images, row_features, unpad_rows, with_new_tail, with_text
from xvlm2vec_st.families.table import FAMILIES

if TYPE_CHECKING:
    from sentence_transformers.base.modules.transformer import ProcessingKwargs

logger = logging.get_logger(__name__)

# Settings of `apply_chat_template` that cut or pad rows, and sentence-transformers' own flag.
SIZES = {"padding", "truncation", "max_length", "return_tensors", "processor_kwargs", "tokenizer_kwargs"}
RESTORE = "restore_suffix"


class LVLM(Transformer):
    """A `Transformer` that processes what rows share only once.

    Rows of a batch with the same images (by content) form a group. Their images are preprocessed once, the vision tower
    runs once, and the decoder sees the group's common leading tokens once (see `encoding.routes`). The states equal
    those of the plain route, row by row. `sharing` says which route the model takes, and why.

    `xvlm2vec_st.SentenceTransformer` uses this class for its first module. It is saved as sentence-transformers' own
    `Transformer`.

    Example::

        model = xvlm2vec_st.SentenceTransformer("xvlm2vec")
        model[0].sharing  # Sharing(route='packed', reason='phi3_v is tested')
        model.encode([{"image": image, "text": text} for text in texts])  # one vision forward
    """

    # Class attributes, because a loaded `Transformer` becomes an LVLM without `__init__`.
    _forced: Sharing | None = None
    _decided: tuple[str, Sharing] | None = None  # for an attention implementation

    @property
    def inner(self) -> Any:
        """The transformers model; `Any`, because `get_image_features` differs between families."""
        return self.model

    @property
    def _text_tokenizer(self) -> PreTrainedTokenizerBase:
        return cast(PreTrainedTokenizerBase, self.tokenizer)

    @property
    def sharing(self) -> Sharing:
        """The route of batches whose rows share images, and why: see `encoding.sharing.Sharing`.

        Families of `families.table` are tested. Another family is checked on first use: a few small rows by the plain
        route and by others. The verdict is remembered under `HF_HOME`. Assign a route ("packed", "branched",
        "vision" or "plain") to force it, or None to decide again.
        """
        if reason := self._cannot_share():
            return Sharing("plain", reason)
        if self._forced is not None:
            return self._forced
        attention = self.config.get_text_config()._attn_implementation
        if self._decided is None or self._decided[0] != attention:
            self._decided = attention, decide_sharing(self, tested=self.config.model_type in FAMILIES)
        return self._decided[1]

    @sharing.setter
    def sharing(self, route: str | None) -> None:
        if route is not None and route not in ROUTES:
            raise ValueError(f"sharing is {route!r}; pass one of {', '.join(ROUTES)}, or None to decide again")
        self._forced, self._decided = None if route is None else Sharing(route, "set by the caller"), None

    @property
    def shares_prefix(self) -> bool:
        """Whether the language model computes what rows with the same images share once."""
        return self.sharing.route in ("packed", "branched")

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        processing_kwargs: "ProcessingKwargs | None" = None,
        images: OpenImages | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Preprocess inputs; if rows share images, each image is preprocessed once.

        Then `input_ids` and other per-token tensors keep the shape (rows, tokens). `image_group` (rows,) numbers the
        rows' sets of images in the order of the image tensors (-1: no image). `shared_tokens` (rows,) is the number of
        leading tokens that a row shares with its group. `images` are those of a call of several batches.
        """
        if not inputs or "image" not in self.modalities:
            return super().preprocess(inputs, prompt=prompt, processing_kwargs=processing_kwargs, **kwargs)
        images = OpenImages() if images is None else images
        originals, inputs = inputs, open_inputs(inputs, images)
        self._check_empty(originals, inputs, prompt)
        if not processing_kwargs and self.sharing.route != "plain":
            messages = self._messages(inputs, prompt)
            if messages is not None and (features := self._shared(messages, images, **kwargs)) is not None:
                return features
        features = super().preprocess(inputs, prompt=prompt, processing_kwargs=processing_kwargs, **kwargs)
        self._restore_suffix(features, inputs, prompt, processing_kwargs)
        return features

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Token states, (rows, tokens, dim), by any route; within `pooled_tokens_only`, those of the last tokens."""
        plain = super().forward
        pooled = {}
        if POOLED_ONLY.get() and self.config.model_type in FAMILIES and "attention_mask" in features:
            pooled = {POOLED: last_tokens(features["attention_mask"])}
        if "image_group" not in features:
            with last_layer_for(self.inner, pooled.get(POOLED)):
                return plain(features, **kwargs)

        def forward(given: dict[str, Any]) -> Tensor:
            with last_layer_for(self.inner, given.pop(POOLED, None)):
                return cast(Tensor, plain(given, **kwargs)[self.module_output_name])

        route, pad = self.sharing.route, cast(int, self._text_tokenizer.pad_token_id)
        if route == "branched" and not is_sharded(self.inner):
            states = branched_states(self.inner, features | pooled, forward, pad)
        elif route == "packed":
            states = packed_states(self.inner, features | pooled, forward, pad)
        else:
            states = vision_states(self.inner, features | pooled, forward)
        return features | {self.module_output_name: states}

    def to_device(self, features: dict[str, Any]) -> dict[str, Any]:
        """The features on the model's device."""
        return batch_to_device(features, self.inner.device)

    def _cannot_share(self) -> str | None:
        """Why the settings of this module forbid sharing; None if they allow it."""
        settings = self.processing_kwargs or {}
        sizes = {*cast(Mapping[str, Any], settings.get("chat_template", {}))} & SIZES
        if not self._has_template():
            return "the processor has no chat template"
        if set(settings) - {"image", "chat_template"} or sizes:
            return f"processing_kwargs sets {', '.join(sorted(sizes or {*settings} - {'image', 'chat_template'}))}"
        return None

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
            rendered = self._render(messages)
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
        rendered = self._render(rows)
        count = len(message_images(messages[0]))
        ids = [self._ids([text], [count])[0] for text in rendered]
        number = common_prefix([row[::-1] for row in ids])
        suffix = ids[0][len(ids[0]) - number :]
        return [] if image in suffix or number == min(map(len, ids)) else suffix

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

    def _shared(self, messages: list[list[dict]], images: OpenImages, **kwargs: Any) -> dict[str, Any] | None:
        """Features of rows that share images; None if no row does."""
        keys = [tuple(map(images.key, message_images(row))) for row in messages]
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
            logger.warning_once(  # type: ignore[attr-defined]
                f"{self.config.model_type}: the processor changes the text after an image; rows share nothing"
            )
            return None
        for number, lead in enumerate(leads):
            if number != lead:
                rows[number] = with_new_tail(rows[lead], len(tails[lead]), tails[number])
        if max(len(row.ids) for row in rows.values()) > (self.max_seq_length or float("inf")):
            return None  # sentence-transformers truncates
        ordered = [rows[number] for number in range(len(leads))]
        side, pad = self._text_tokenizer.padding_side, cast(int, self._text_tokenizer.pad_token_id)
        return features | row_features(ordered, leads, [bool(key) for key in keys], side, pad)

    def _ends(self, messages: list[list[dict] | None]) -> tuple[list[tuple | None], list[list[int]]]:
        """For each row, the ids up to its last image, with one id per image, and the ids after it.

        The first is None for a row without messages, or if the placeholders do not match the images.
        """
        chosen = [number for number, row in enumerate(messages) if row is not None]
        rendered = self._render([cast(list[dict], messages[n]) for n in chosen])
        heads: list[tuple | None] = [None] * len(messages)
        tails: list[list[int]] = [[] for _ in messages]
        counts = [len(message_images(cast(list[dict], messages[n]))) for n in chosen]
        rows = self._ids(rendered, counts)
        image = self._placeholder(rows[0], counts[0])
        for number, ids, count in zip(chosen, rows, counts, strict=True):
            if image is not None and ids.count(image) == count:
                last = len(ids) - ids[::-1].index(image)
                tails[number] = ids[last:]
                heads[number] = tuple(ids[:last])
        return heads, tails

    def _placeholder(self, ids: list[int], count: int) -> int | None:
        """The id that stands `count` times for an image in a row, before the processor expands it."""
        names = ("image_token", "boi_token", "start_image_token")
        tokens = [token for name in names if isinstance(token := getattr(self.processor, name, None), str)]
        candidates = (self._text_tokenizer.convert_tokens_to_ids(token) for token in tokens)
        return next((cast(int, number) for number in candidates if ids.count(cast(int, number)) == count), None)

    def _render(self, messages: list[list[dict]]) -> list[str]:
        """The rows as text, with the chat template and its settings."""
        settings = dict(cast(Mapping[str, Any], (self.processing_kwargs or {}).get("chat_template", {})))
        settings.pop(RESTORE, None)
        return cast(list[str], self.processor.apply_chat_template(messages, tokenize=False, **settings))

    def _ids(self, rendered: list[str], counts: list[int]) -> list[list[int]]:
        """Token ids of rendered rows, with one id per image."""
        # Phi-3.5-vision tokenizes the texts between images separately.
        if hasattr(self.processor, "encode"):
            return [row.ids for row in self.processor.encode(rendered, [[1] * count for count in counts])]
        bos = self._text_tokenizer.bos_token
        special = not (bos and rendered[0].startswith(bos))  # as in transformers' apply_chat_template
        return self._text_tokenizer(rendered, add_special_tokens=special, verbose=False)["input_ids"]
