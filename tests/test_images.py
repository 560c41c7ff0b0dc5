"""One way to open an image: the same pixels in every form, alone and beside other texts."""

import io
import os

import numpy as np
import pytest
import sentence_transformers
import tiny
import torch
from PIL import Image

from xvlm2vec_st import SentenceTransformer
from xvlm2vec_st.data.row_images import row_image_size
from xvlm2vec_st.images.opening import open_image
from xvlm2vec_st.phi3v.image_processing import read_rgb

IMAGE = tiny.random_image()
PIXELS = np.asarray(IMAGE)


def bytes_of(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "given",
    [
        PIXELS,
        PIXELS.transpose(2, 0, 1),
        PIXELS.astype(np.int64),
        PIXELS / 255,
        PIXELS.astype(np.float32),
        PIXELS.astype(np.uint16) * 257,
        torch.tensor(PIXELS),
        torch.tensor(PIXELS).permute(2, 0, 1),
        torch.tensor(PIXELS).to(torch.bfloat16),
        bytes_of(IMAGE),
        io.BytesIO(bytes_of(IMAGE)),
    ],
)
def test_every_form_gives_the_same_pixels(given):
    assert np.array_equal(np.asarray(open_image(given)), PIXELS)


def test_paths_of_both_kinds_and_base64(tmp_path):
    import base64

    (tmp_path / "a.png").write_bytes(bytes_of(IMAGE))
    text = base64.b64encode(bytes_of(IMAGE)).decode()
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), text, f"data:image/png;base64,{text}"):
        assert np.array_equal(np.asarray(open_image(given)), PIXELS)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_sixteen_bits_and_floats_are_scaled_by_their_range(mode):
    grey = PIXELS[..., 0]
    values = {"I;16": grey.astype(np.uint16) * 257, "I": grey.astype(np.int32) * 257}.get(
        mode, grey.astype(np.float32) / 255
    )
    image = Image.fromarray(values)
    assert image.mode == mode
    want = np.repeat(grey[..., None], 3, axis=-1)
    assert np.array_equal(np.asarray(open_image(image)), want)
    assert np.array_equal(np.asarray(open_image(values if mode != "I" else values.astype(np.uint16))), want)
    assert np.array_equal(np.asarray(read_rgb(image)), want)


@pytest.mark.parametrize("values", [np.full((2, 2), np.nan), np.full((2, 2), 300.0), np.full((2, 2), -1)])
def test_values_without_a_known_range_are_refused(values):
    with pytest.raises(ValueError, match="values range from"):
        open_image(values)


def test_arrays_with_transparency_and_one_channel():
    four = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 9, np.uint8)])
    assert open_image(four).mode == "RGBA"
    for grey in (PIXELS[..., 0], PIXELS[..., :1], PIXELS[None, ..., 0]):
        assert np.array_equal(np.asarray(open_image(grey))[..., 1], PIXELS[..., 0])


def test_a_row_has_one_embedding_alone_and_beside_another_text(tmp_path):
    """Whatever its image is given as."""
    ours = SentenceTransformer(str(tiny.embedder("llava")), device="cpu")
    clear = tiny.random_image(3).quantize(8)
    clear.save(tmp_path / "clear.png", transparency=0)
    clear.save(tmp_path / "clear.gif", save_all=True, append_images=[tiny.random_image(4).quantize(8)])
    tiny.random_image(5).save(tmp_path / "a.bmp")
    Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 200).save(tmp_path / "deep.png")
    forms = [tmp_path / name for name in ("clear.png", "clear.gif", "a.bmp", "deep.png")]
    forms += [str(forms[0]), bytes_of(IMAGE), PIXELS / 255, tiny.random_image(6).convert("RGBA")]
    forms += [tiny.random_image(7, width=60, height=3), np.asarray(tiny.random_image(7, width=60, height=3))]
    for form in forms:
        rows = [{"image": form, "text": text} for text in ("a", "bb", "c")]
        together = ours.encode(rows)
        alone = np.stack([ours.encode([row])[0] for row in rows])
        assert np.abs(together - alone).max() < 1e-5, form
        assert np.abs(alone[0] - alone[1]).max() > 1e-3


def test_a_strip_is_what_stock_makes_of_it():
    ours = SentenceTransformer(str(tiny.embedder("llava")), device="cpu")
    stock = sentence_transformers.SentenceTransformer(str(tiny.embedder("llava")), device="cpu")
    for height in (1, 3, 4):
        strip = tiny.random_image(height=height)
        rows = [{"image": form, "text": "a"} for form in (strip, np.asarray(strip), strip)]
        want = np.stack([stock.encode([row])[0] for row in rows[:1]])
        assert np.abs(ours.encode(rows)[[0, 2]] - want).max() < 1e-5


def test_an_unreadable_image_is_named_with_its_row_and_file(tmp_path):
    ours = SentenceTransformer(str(tiny.embedder("llava")), device="cpu")
    (tmp_path / "cut.png").write_bytes(bytes_of(IMAGE)[:900])
    closed = Image.open(io.BytesIO(bytes_of(IMAGE)))
    closed.close()
    good = {"image": IMAGE, "text": "a much longer text, which is encoded first"}
    for bad, match in (
        (str(tmp_path / "cut.png"), r"cut\.png"),
        (closed, "PngImageFile"),
        ({"a": 1}, "dict"),
    ):
        for batch_size in (1, 32):
            with pytest.raises(ValueError, match=rf"^row 2, image 1: cannot read an image from .*{match}"):
                ours.encode([good, "a text", {"image": bad, "text": "b"}], batch_size=batch_size)


def test_too_many_pixels_are_one_error_in_every_door(tmp_path, monkeypatch):
    from xvlm2vec_st import load_parallel

    (tmp_path / "big.png").write_bytes(bytes_of(IMAGE))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (tmp_path / "c.jsonl").write_text('{"id": "r7", "image": "big.png", "en": "a", "it": "b"}\n')
    path = str(tmp_path / "big.png")
    doors = (open_image, read_rgb, lambda file: row_image_size(file, "r7"))
    for door in (*doors, lambda file: load_parallel(tmp_path / "c.jsonl", ["it"], show_progress=False)):
        with pytest.raises(ValueError, match=r"big\.png.*2400 pixels.*MAX_IMAGE_PIXELS"):
            door(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for door in (open_image, lambda file: row_image_size(file, "r7")):
        with pytest.raises(ValueError, match="not a regular file"):
            door(str(tmp_path / "a.png"))


def test_damaged_exif_is_named(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    data = bytes_of(IMAGE, "JPEG", exif=exif)
    (tmp_path / "good.jpg").write_bytes(data)
    assert row_image_size(str(tmp_path / "good.jpg"), "r7") == IMAGE.size[::-1] == open_image(data).size
    start = data.index(b"Exif") + 6
    for bad in (
        data[:start] + b"XX" + data[start + 2 :],
        data[: start + 8] + b"\xff" * 8 + data[start + 16 :],
    ):
        (tmp_path / "bad.jpg").write_bytes(bad)
        try:
            assert row_image_size(str(tmp_path / "bad.jpg"), "r7") == open_image(str(tmp_path / "bad.jpg")).size
        except ValueError as error:
            assert str(error).startswith("row r7: ")


def test_none_is_left_out_and_an_empty_text_has_one_meaning():
    ours = SentenceTransformer(str(tiny.embedder("llava")), device="cpu")
    rows = [{"image": IMAGE, "text": None}, {"image": IMAGE, "text": ""}, IMAGE, {"image": IMAGE}]
    found = ours.encode(rows)
    assert np.abs(found - found[2]).max() < 1e-5
    texts = ours.encode([{"image": None, "text": "a"}, "a", ""])
    assert np.abs(texts[0] - texts[1]).max() < 1e-5 and np.abs(texts[2] - texts[1]).max() > 1e-3
    for nothing in (None, {"text": None}, {"image": None, "text": None}):
        with pytest.raises(ValueError, match=r"^row 1: it has neither text nor image"):
            ours.encode(["a", nothing])


def test_an_empty_text_without_a_token_is_refused(monkeypatch):
    from tokenizers import processors

    ours = SentenceTransformer(str(tiny.embedder("llava")), device="cpu")
    plain = processors.TemplateProcessing(single="$A", special_tokens=[])
    ours.tokenizer.backend_tokenizer.post_processor = plain
    for rows, place in (([""], 0), (["a", ""], 1), ([{"image": IMAGE, "text": "x"}, "", "a"], 1)):
        with pytest.raises(ValueError, match=rf"^row {place}: the text is empty, and the model adds no token"):
            ours.encode(rows)
    assert np.linalg.norm(ours.encode([{"image": IMAGE, "text": ""}])[0]) > 0.9


def test_a_row_that_is_cut_keeps_the_templates_closing_tokens():
    ours = SentenceTransformer(str(tiny.embedder("llava")), device="cpu")
    ours[0].processor.chat_template += "{{- '</s>' -}}"
    ours.max_seq_length = 60
    rows = ["x" * 90, {"image": IMAGE, "text": "x" * 90}, {"image": IMAGE, "text": "y" * 90}]
    for group in (rows, rows[:1], rows[1:2]):
        features = ours[0].preprocess(group)
        assert features["attention_mask"].sum(-1).tolist() == [60] * len(group)
        assert (features["input_ids"][:, -1] == ours.tokenizer.eos_token_id).all()


def test_a_batch_size_below_one_is_refused():
    ours = SentenceTransformer(str(tiny.embedder("llava")), device="cpu")
    with pytest.raises(ValueError, match="batch_size is 0; pass 1 or more"):
        ours.encode(["a", "b"], batch_size=0)


def test_a_call_opens_and_hashes_each_image_once(tmp_path, monkeypatch):
    from xvlm2vec_st.encoding import open_images

    path = str(tmp_path / "one.png")
    tiny.random_image(1).save(path)
    counts = {"opened": 0, "hashed": 0}

    def count(name, original):
        def counting(source):
            counts[name] += 1
            return original(source)

        return counting

    monkeypatch.setattr(open_images, "open_image", count("opened", open_images.open_image))
    monkeypatch.setattr(open_images, "image_key", count("hashed", open_images.image_key))
    model = SentenceTransformer(str(tiny.embedder("llava")))
    model[0].preprocess([{"image": path, "text": f"question {n}"} for n in range(16)])
    assert counts["opened"] == 1 and counts["hashed"] == 1
