"""The processor of Phi-3.5-vision: texts with `<|image_1|>`, and their images, to features."""

from collections.abc import Sequence
from typing import Any, cast

from transformers import BatchFeature, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from xvlm2vec_st.families.templates import build_template
from xvlm2vec_st.phi3v.image_processing import Phi3VImageProcessor, num_image_tokens, read_rgb
from xvlm2vec_st.phi3v.layout import (
    TAG,
    Side,
    TypedRow,
    error_in,
    images_by_row,
    join_chunks,
    pad,
    truncate,
)

UNLIMITED = 10**20  # a tokenizer without a maximum length has 10^30


class Phi3VProcessor(ProcessorMixin):
    """Tokenizer and image processor of Phi-3.5-vision, for batches of texts with and without images.

    `<s>` stands before every text between images, so an image lies between two of them. The positions of an image hold
    the id of `image_token`, and `mm_token_type_ids` marks them.
    """

    def __init__(
        self,
        image_processor: Phi3VImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        image_token: str = "<|image|>",
    ) -> None:
        """Check that the tokenizer has the tokens that the layout needs.

        Raises:
            ValueError: the tokenizer has no `image_token`, no `<s>` or no padding token.
        """
        super().__init__(image_processor, tokenizer, chat_template=chat_template or build_template("phi3_v"))
        self.image_token = image_token
        self.image_token_id = cast(int, tokenizer.convert_tokens_to_ids(image_token))
        if self.image_token_id in (None, tokenizer.unk_token_id):
            raise ValueError(f"the tokenizer has no token {image_token!r}; pass another image_token")
        for name, use in (("bos_token", "starts every text"), ("pad_token", "pads rows")):
            if getattr(tokenizer, name) is None:
                raise ValueError(f"the tokenizer has no {name}, which {use}; set tokenizer.{name}")

    @property
    def model_input_names(self) -> list[str]:
        """Keys of the features; the last three only if the batch has images."""
        return ["input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_sizes"]

    def __call__(self, images: Any = None, text: str | list[str] | None = None, **kwargs: Any) -> BatchFeature:
        """Preprocess a batch.

        Args:
            images: None; one image; a list in the order of the texts' tags; or a list per text. An image may be
                an array, a path or a URL.
            text: one or more texts, with `<|image_1|>`, `<|image_2|>` at the places of the images.
            **kwargs: as for any processor, flat or in `text_kwargs`, `images_kwargs` and
                `common_kwargs`: `padding`, `max_length`, `num_crops`, `return_tensors` and so on.

        Raises:
            ValueError: tags and images of a row do not match; an image cannot be read; `max_length` would truncate
                an image.
        """
        for other in ("videos", "audio"):
            if kwargs.pop(other, None) is not None:
                raise ValueError(f"Phi-3.5-vision reads text and images; leave {other} out")
        if text is None:
            raise ValueError("text is missing; for an image without text, pass the text '<|image_1|>\\n'")
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
        """Pixels of all images in order, and the number of image tokens of each row's images.

        Raises:
            ValueError: an image cannot be read; the message names the row and the image.
        """
        opened = []
        for row, row_images in enumerate(images):
            for number, image in enumerate(row_images, 1):
                with error_in(f"row {row}, image {number}"):
                    opened.append(read_rgb(image))
        if not opened:
            return {}, [[] for _ in images]
        images_kwargs.pop("return_tensors", None)
        pixels = dict(self.image_processor(opened, **images_kwargs))
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

        `counts` holds the number of image tokens of each row's images, in the order of its tags. The others are a
        tokenizer's arguments. `padding_side` and `max_length` default to the tokenizer's, and `truncation` is on if
        `max_length` is passed.

        Raises:
            ValueError: a row would lose part of an image; a text holds `image_token`.
        """
        rows = self.encode(texts, counts)
        limit = max_length or self.tokenizer.model_max_length
        if truncation is None:
            truncation = max_length is not None
        if truncation and truncation != "do_not_truncate":
            for number, row in enumerate(rows):
                with error_in(f"row {number}"):
                    rows[number] = truncate(row, limit, self.tokenizer.truncation_side)
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
        return {name: [pad(row, width, fill, side) for row in values] for name, (values, fill) in columns.items()}

    def encode(self, texts: Sequence[str], counts: Sequence[Sequence[int]]) -> list[TypedRow]:
        """The ids of each text, with `<s>` before every chunk and image tokens between them.

        The chunks of text between images are tokenized separately, as in training: in one piece, text after an image
        would lose its leading word mark.

        Raises:
            ValueError: a text holds `image_token`.
        """
        chunk_texts = [TAG.split(text)[::2] for text in texts]
        flat = [chunk for row in chunk_texts for chunk in row]
        # verbose=False: a row that is too long is truncated, or reported, later.
        ids = iter(self.tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"])
        bos = cast(int, self.tokenizer.bos_token_id)
        rows = []
        for number, (row, row_counts) in enumerate(zip(chunk_texts, counts, strict=True)):
            chunks = [next(ids) for _ in row]
            if any(self.image_token_id in chunk for chunk in chunks):
                raise ValueError(
                    f"row {number}: the text holds {self.image_token!r}, the image token; "
                    "write <|image_1|> at the place of an image, and no placeholder elsewhere"
                )
            rows.append(join_chunks(chunks, row_counts, bos, self.image_token_id))
        return rows
