"""An index at its edges: filters of many rows, odd days and names, other runs, a full disk, models of other kinds."""

import os
import resource
import shutil
import signal
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("lancedb", reason='needs pip install "xvlm2vec-st[search]"')

from photos import DIM, SPACE, Toy, empty_index, pixels, rows, write_photos
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer

from mmmeb_tasks.mini import TEACHER
from recipes.image_search import models, scan, store, tables
from recipes.image_search.indexing import update
from recipes.image_search.options import parse_search_args
from recipes.image_search.prompts import IMAGE, TEXT, image_prompt, text_prompt
from recipes.image_search.results_page import results_page
from recipes.image_search.searching import search, why_none
from recipes.image_search.spaces import check_space
from recipes.image_search.store import ImageIndex, Row
from xvlm2vec_st.families.published import PUBLISHED
from xvlm2vec_st.families.templates import build_template
from xvlm2vec_st.utils.failures import reason


@pytest.fixture
def made(tmp_path):
    """An index of five images."""
    write_photos(tmp_path / "images", range(5))
    index = empty_index(tmp_path / "index", tmp_path / "images")
    update(index, Toy())
    return index


# ---- Queries ----


def test_a_filter_is_answered_from_all_partitions_of_an_approximate_index(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "PROBES", 1)
    rng = np.random.default_rng(0)
    count, clusters = 30_000, 60
    centres, cluster = rng.normal(size=(clusters, DIM)), rng.integers(0, clusters, count)
    vectors = (centres[cluster] + 0.1 * rng.normal(size=(count, DIM))).astype(np.float32)
    index = ImageIndex.create(tmp_path / "index", SPACE, tmp_path)
    index.add([Row(f"{cluster[i]}/{i}.png", 1, 1, str(i), 1, 1, b"", vectors[i]) for i in range(count)])
    index.approximate()
    [name] = [each.name for each in index.table.list_indices()]
    assert index.table.index_stats(name).num_indexed_rows == count > 4096 * 4, "there are several partitions"
    farthest = np.argsort(centres @ centres[0])[:10]
    for folder in farthest:
        assert len(index.search(vectors[cluster == 0][0], 20, folder=str(folder))) == 20
    assert len(index.search(vectors[0], 10**9)) == count, "it takes no memory for more than there is"


@pytest.mark.parametrize(
    ("days", "found"),
    [
        ({"until": date.max}, 5),
        ({"since": date.max}, 0),
        ({"since": date.min}, 5),
        ({"until": date.min}, 0),
        ({"since": date(1, 1, 1), "until": date(9999, 12, 31)}, 5),
        ({"until": date(2300, 1, 1)}, 5),
        ({"since": date(2300, 1, 1)}, 0),
    ],
)
def test_days_beyond_64_bits_filter_too(made, days, found):
    assert len(made.search(np.ones(DIM), **days)) == found


def test_a_folder_may_be_its_whole_path(made):
    query = np.ones(DIM)
    assert len(made.search(query, folder=str(made.root / "000"))) == 5 == len(made.search(query, folder=str(made.root)))
    assert made.search(query, folder=str(made.root.parent)) == []


def test_no_match_says_which_filter_or_that_the_index_is_empty(made, tmp_path):
    args = parse_search_args([str(made.place), "dog", "--folder", "none", "--since", "2024-05-01"])
    folder = f"--folder is a folder below {made.root}"
    assert why_none(made, args) == f"no image of {made.place} matches --folder none --since 2024-05-01; {folder}"
    assert "has no images; put some into" in why_none(empty_index(tmp_path / "other", tmp_path), args)


def test_an_index_that_is_begun_anew_while_it_is_open_is_refused(made):
    for name, dim in (("other", DIM), ("wider", DIM + 1)):
        ImageIndex.create(made.place, store.Space(name, None, "ee" * 16, "", dim), made.root)
        for read in (lambda: made.search(np.ones(DIM)), lambda: made.thumbnail("00")) * 2:
            with pytest.raises(ValueError, match="index was begun anew since it was opened; start this command again"):
                read()


def test_a_query_whose_version_is_deleted_meanwhile_is_made_again(made, monkeypatch):
    wanted, tries = made.search(np.ones(DIM)), []
    table = made.table

    def fail_twice(*args, **options):
        tries.append(1)
        if len(tries) < 3:
            raise RuntimeError("lance error: Not found: images.lance/data/1.lance, /root/io.rs:1:2")
        return table.search(*args, **options)

    watched = SimpleNamespace(
        search=fail_twice, checkout_latest=table.checkout_latest, schema=table.schema, count_rows=table.count_rows
    )
    monkeypatch.setattr(made, "table", watched)
    assert made.search(np.ones(DIM)) == wanted and len(tries) == 3
    shutil.rmtree(made.place)
    with pytest.raises(ValueError, match=r"index cannot be read or written: .*Not found.*; run the command again$"):
        made.search(np.ones(DIM))


# ---- Names ----


def test_a_line_break_in_a_name_begins_no_line(made, capsys, monkeypatch):
    name = "a\n0.9999  fake.png"
    Image.new("RGB", (32, 32), "red").save(made.root / name)
    (made.root / f"empty{name}").touch()
    report = update(made, Toy())
    assert report.lines()[0] == "emptya\\n0.9999  fake.png: the file is empty"
    with Image.open(made.root / name) as image:
        vector = pixels(image)
    monkeypatch.setattr("recipes.image_search.searching.load_query_model", lambda *args: None)
    monkeypatch.setattr("recipes.image_search.searching.embed_query", lambda *args, **options: vector)
    search(parse_search_args([str(made.place), "red", "--limit", "1"]))
    assert capsys.readouterr().out == "1.0000  a\\n0.9999  fake.png\n"
    assert name in results_page("red", made.search(vector, 1), made.thumbnail)


# ---- Runs ----


def test_a_folder_that_cannot_be_listed_keeps_its_rows(made, monkeypatch):
    (made.root / "Rome").mkdir()
    Image.new("RGB", (32, 32), "red").save(made.root / "Rome" / "red.png")
    update(made, Toy())
    before, listed = rows(made), os.scandir

    def refuse(folder):
        if folder == str(made.root / "000"):
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(scan.os, "scandir", refuse)
    (made.root / "Rome" / "red.png").unlink()
    Image.new("RGB", (32, 32), "blue").save(made.root / "blue.png")
    report = update(made, Toy())
    assert (report.removed, report.lines()[0]) == (1, "000/: Permission denied")
    assert [row for row in rows(made) if row["path"] != "blue.png"] == before[:-1]


def test_a_full_disk_is_a_line_and_the_next_run_goes_on(made):
    write_photos(made.root, range(5, 300))
    before, (soft, hard) = len(made), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError) as refused:
            update(made, Toy())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert reason(refused.value) == f"{made.place}: File too large; raise the limit of a file's size (ulimit -f)"
    assert len(ImageIndex.open(made.place)) == before
    assert update(made, Toy()).images == 300


def test_a_damaged_index_is_a_line(made):
    for file in (Path(made.place) / "images.lance" / "_versions").glob("*.manifest"):
        file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"cannot be opened: lance error[^/]*; delete it, and index the images again$"):
        ImageIndex.open(made.place)


# ---- Models of other kinds ----


def with_template(text):
    model = SimpleNamespace(prompts={"query": "", "document": ""}, supports=lambda kinds: True)
    return type("Model", (SimpleNamespace,), {"__getitem__": lambda self, i: self.first})(
        first=SimpleNamespace(processor=SimpleNamespace(chat_template=text)), **vars(model)
    )


def test_only_models_of_vlm2vecs_kind_get_its_instructions():
    found = {name: with_template(layout.template) for name, layout in PUBLISHED.items()}
    instructed = {name for name, model in found.items() if image_prompt(model) == IMAGE and text_prompt(model) == TEXT}
    assert instructed == {"vlm2vec_v2"}
    others = {
        name: (image_prompt(model), text_prompt(model)) for name, model in found.items() if name not in instructed
    }
    assert others.pop("nomic_multimodal") == ("", "Query: ") and set(others.values()) == {("", "")}
    own = with_template("{{ x or 'Represent the user\\'s input.' }}")  # Qwen3-VL-Embedding's, as it is published
    assert (image_prompt(own), text_prompt(own)) == ("", "")
    for template in (build_template("llava"), build_template("phi3_v"), "{{ messages }}", None):
        model = with_template(template)
        assert (image_prompt(model), text_prompt(model)) == (IMAGE, TEXT)
    model = with_template(PUBLISHED["nomic_multimodal"].template)
    model.prompts = {"query": "Mine: "}
    assert text_prompt(model) == "Mine: "


def test_a_model_without_transformers_is_refused_in_a_line(monkeypatch):
    tokenizer = Tokenizer.from_file(str(TEACHER / "tokenizer.json"))
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)])
    with pytest.raises(ValueError, match="made with toy, and static embeds into another space"):
        check_space(SPACE, static, "static")
    monkeypatch.setattr(static, "supports", lambda kind: True)
    monkeypatch.setattr(models, "SentenceTransformer", lambda *args, **options: static)
    with pytest.raises(ValueError, match="owner/name begins with the module StaticEmbedding; pass a model"):
        models.load_index_model("owner/name")


def test_a_device_that_torch_was_not_built_for_is_a_line():
    assert reason(AssertionError("Torch not compiled with CUDA enabled")) == "Torch not compiled with CUDA enabled"
    assert reason(AssertionError("a bug")) is None
    assert tables.lance_reason(RuntimeError("lance error: odd, /root/a/b.rs:1:2")) == "lance error: odd"
