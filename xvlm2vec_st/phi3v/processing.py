"""Texts with `<|image_1|>`, and their images, to what Phi-3.5-vision reads."""

from collections.abc import Sequence
from typing import Any, cast

from transformers import BatchFeature, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from xvlm2vec_st.phi3v.image_processing import Phi3VImageProcessor, num_image_tokens, read_rgb
from xvlm2vec_st.phi3v.layout import (
    CHAT_TEMPLATE,
    TAG,
    Row,
    Side,
    cut,
    error_in,
    images_by_row,
    join,
    pad,
)

UNLIMITED = 10**20  # a tokenizer without a length of its own says 10^30


class Phi3VProcessor(ProcessorMixin):
    """Tokenizer and image processor of Phi-3.5-vision, for batches of any mixture.

    The tokenizer's `<s>` stands before every stretch of text, so an image lies between two; the
    positions of an image hold `image_token`, a real id, and `mm_token_type_ids` marks them.
    """

    def __init__(
        self,
        image_processor: Phi3VImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        image_token: str = "<|image|>",
    ) -> None:
        """Check that the tokenizer has what the layout needs.

        Raises:
            ValueError: the tokenizer has no `image_token`, no `<s>` or no padding token.
        """
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        self.image_token = image_token
        self.image_token_id = cast(int, tokenizer.convert_tokens_to_ids(image_token))
        if self.image_token_id in (None, tokenizer.unk_token_id):
            raise ValueError(f"the tokenizer has no token {image_token!r}; pass image_token, one that it has")
        for name, use in (("bos_token", "stands before every text"), ("pad_token", "fills rows")):
            if getattr(tokenizer, name) is None:
                raise ValueError(f"the tokenizer has no {name}, which {use}; set tokenizer.{name}")

    @property
    def model_input_names(self) -> list[str]:
        """What a call gives; the last three only where the batch has images."""
        return ["input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_sizes"]

    def __call__(
        self, images: Any = None, text: str | list[str] | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Features of a batch.

        Args:
            images: none; one; a list in the order of the texts' tags; or a list for each text.
                Images, arrays, paths or addresses.
            text: one or more texts, with `<|image_1|>`, `<|image_2|>` where the row's images go.
            **kwargs: as for any processor, flat or in `text_kwargs`, `images_kwargs` and
                `common_kwargs`: `padding`, `max_length`, `num_crops`, `return_tensors` and so on.

        Raises:
            ValueError: tags and images of a row do not match; an image cannot be read;
                `max_length` would cut an image.
        """
        for other in ("videos", "audio"):
            if kwargs.pop(other, None) is not None:
                raise ValueError(f"Phi-3.5-vision reads text and images; leave {other} out")
        if text is None:
            raise ValueError("text is missing; for an image alone pass the text '<|image_1|>\\n'")
        settings = self._merge_kwargs(
            self.valid_processor_kwargs,  # type: ignore[arg-type]
            tokenizer_init_kwargs=self.tokenizer.init_kwargs,
            **kwargs,
        )
        texts = [text] if isinstance(text, str) else list(text)
        images = images_by_row(texts, images)
        pixels, counts = self.process_images(images, **settings["images_kwargs"])
        return_tensors = settings["text_kwargs"].pop("return_tensors", None)
        features = self.tokenize(texts, counts, **settings["text_kwargs"])
        return BatchFeature(features | pixels, tensor_type=return_tensors)

    def process_images(
        self, images: Sequence[Sequence[Any]], **images_kwargs: Any
    ) -> tuple[dict[str, Any], list[list[int]]]:
        """Pixels of all rows' images in order, and the image tokens of each row's images.

        Raises:
            ValueError: an image cannot be read; the row and the image are named.
        """
        read = []
        for row, row_images in enumerate(images):
            for number, image in enumerate(row_images, 1):
                with error_in(f"row {row}, image {number}"):
                    read.append(read_rgb(image))
        if not read:
            return {}, [[] for _ in images]
        images_kwargs.pop("return_tensors", None)
        pixels = dict(self.image_processor(read, **images_kwargs))
        sizes = iter(pixels["image_sizes"].tolist())
        return pixels, [[num_image_tokens(*next(sizes)) for _ in row] for row in images]

    def tokenize(
        self,
        texts: Sequence[str],
        counts: Sequence[Sequence[int]],
        *,
        padding: bool | str = False,
        padding_side: Side | None = None,
        pad_to_multiple_of: int | None = None,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_attention_mask: bool | None = None,
        **_: Any,
    ) -> dict[str, list[list[int]]]:
        """Ids, mask and, with images, types: each [batch][seq].

        `counts` has the image tokens of each row's images in the order of its tags. The other
        arguments are a tokenizer's; `padding_side` and `max_length` are the tokenizer's own when
        absent, and `truncation` is on where a `max_length` is given.

        Raises:
            ValueError: a row would lose part of an image, or its text holds `image_token` itself.
        """
        rows = self.encode(texts, counts)
        limit = max_length or self.tokenizer.model_max_length
        if truncation is None:
            truncation = max_length is not None
        if truncation and truncation != "do_not_truncate":
            for number, row in enumerate(rows):
                with error_in(f"row {number}"):
                    rows[number] = cut(row, limit, self.tokenizer.truncation_side)
        width = 0
        if padding and padding != "do_not_pad":
            width = max(len(row.ids) for row in rows)
            if padding == "max_length" and limit < UNLIMITED:
                width = limit
            width += -width % (pad_to_multiple_of or 1)
        side = padding_side or self.tokenizer.padding_side
        columns = {
            "input_ids": ([row.ids for row in rows], self.tokenizer.pad_token_id),
            "attention_mask": ([[1] * len(row.ids) for row in rows], 0),
            "mm_token_type_ids": ([row.types for row in rows], 0),
        }
        if return_attention_mask is False:
            del columns["attention_mask"]
        if not any(counts):
            del columns["mm_token_type_ids"]
        return {
            name: [pad(row, width, fill, side) for row in values] for name, (values, fill) in columns.items()
        }

    def encode(self, texts: Sequence[str], counts: Sequence[Sequence[int]]) -> list[Row]:
        """Each text's ids, `<s>` before every stretch and placeholders for its images.

        The stretches go through the tokenizer one by one, as in training: joined, a stretch after a
        image would lose its leading word mark.

        Raises:
            ValueError: a text holds `image_token` itself.
        """
        stretches = [TAG.split(text)[::2] for text in texts]
        flat = [stretch for row in stretches for stretch in row]
        # Quiet: a row that is too long is cut below, or named there.
        ids = iter(self.tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"])
        bos = cast(int, self.tokenizer.bos_token_id)
        rows = []
        for number, (row, row_counts) in enumerate(zip(stretches, counts, strict=True)):
            chunks = [next(ids) for _ in row]
            if any(self.image_token_id in chunk for chunk in chunks):
                raise ValueError(
                    f"row {number}: the text holds {self.image_token!r}, which stands for pixels; "
                    "write <|image_1|> where an image goes, and no placeholder elsewhere"
                )
            rows.append(join(chunks, row_counts, bos, self.image_token_id))
        return rows
