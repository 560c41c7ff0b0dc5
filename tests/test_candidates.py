"""Candidates as numbers: the same data, the same scores and the same errors as lists of ids."""

import json
import pickle
import random
from collections.abc import Iterable
from pathlib import Path

import mteb
import numpy as np
import pytest
from mteb.abstasks._statistics_calculation import calculate_top_ranked_statistics
from PIL import Image
from toys import Random

from mmmeb_tasks.data.candidates import CandidateLists
from mmmeb_tasks.data.contents import Contents, Images, Selection
from mmmeb_tasks.data.layout import BenchmarkRow, Kind, data_file, read_records, read_rows
from mmmeb_tasks.models.encoder import MMMEBEncoder
from mmmeb_tasks.models.inputs import content_id
from mmmeb_tasks.models.search import place_finder
from mmmeb_tasks.retrieval import split_data
from mmmeb_tasks.tasks import MaXMRanking, XTD10I2TRanking, XTD10T2IRanking


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of 40 queries over 30 captions or images; several images have the same bytes."""
    rng = random.Random(0)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "xtd_images").mkdir()
    for number in range(30):
        Image.new("RGB", (2, 2), (number // 2, 0, 0)).save(tmp_path / "xtd_images" / f"{number}.jpg", "PNG")
    for kind in ("i2t", "t2i"):
        with data_file(tmp_path, "xtd", "en", 1000, kind).open("w") as file:
            for number in range(40):
                own = rng.sample(range(30), rng.randint(1, 8)) if number % 4 else [7, 1, 7]
                names = [f"{name}.jpg" if name % 3 else str(name) for name in own]
                texts = [f"caption {name}" if name else "" for name in own]
                line = {"i2t": {"img": "3", "captions": texts}, "t2i": {"text": f"text {number}", "images": names}}
                file.write(json.dumps({"id": number} | line[kind]) + "\n")
    return tmp_path


def plain_split(rows: Iterable[BenchmarkRow]) -> tuple[dict, dict, list[tuple[str, str]]]:
    """(gold, candidates, corpus) as lists of ids."""
    gold, candidates, ids = {}, {}, {}
    for row in rows:
        for content in row.candidates:
            if content not in ids:
                ids[content] = content_id(content)
        query = f"{row.line}:{row.id}"
        gold[query] = {ids[row.candidates[0]]: 1}
        candidates[query] = sorted({ids[content] for content in row.candidates})
    corpus = {id: str(content) for content, id in ids.items()}
    return gold, candidates, sorted(corpus.items())


@pytest.mark.parametrize("kind", ["i2t", "t2i"])
@pytest.mark.parametrize("ready", [False, True], ids=["as they are read", "rows by hand"])
def test_the_data_of_a_task_are_those_of_lists(folder: Path, kind: Kind, ready: bool) -> None:
    rows: list[BenchmarkRow] = list(read_rows(folder, "xtd", "en", 1000, kind))
    if ready:
        rows = [BenchmarkRow(r.line, r.id, r.image, r.text, tuple(r.candidates)) for r in rows]  # type: ignore[arg-type]
    gold, candidates, corpus = plain_split(rows)
    data = split_data(iter(rows) if ready else read_rows(folder, "xtd", "en", 1000, kind), kind)
    assert data["relevant_docs"] == gold and data["top_ranked"] == candidates and len(candidates) == 40
    side = "image" if kind == "t2i" else "text"
    assert data["corpus"]["id"][:] == [id for id, _ in corpus]
    stored = data["corpus"].data.column(side).to_pylist()
    assert [one["path"] if kind == "t2i" else one for one in stored] == [content for _, content in corpus]
    assert len(corpus) == (15 if kind == "t2i" else 30)


def test_rows_that_are_left_out_bring_no_candidates(folder: Path) -> None:
    """The rows of a file share one list of contents; a part of them must not bring the rest."""
    rows = list(read_rows(folder, "xtd", "en", 1000, "i2t"))[5:8]
    assert split_data(rows, "i2t")["top_ranked"] == plain_split(rows)[1]
    assert split_data(rows, "i2t")["corpus"]["id"][:] == [id for id, _ in plain_split(rows)[2]]
    both = [*rows, *read_rows(folder, "xtd", "en", 1000, "i2t")]  # two reads, two lists
    assert split_data(both, "i2t")["top_ranked"] == plain_split(both)[1]


def test_equal_lists_are_stored_once_in_few_bytes(folder: Path) -> None:
    own = split_data(read_rows(folder, "xtd", "en", 1000, "i2t"), "i2t")["top_ranked"]
    assert own is not None
    same = [own[f"{line}:{line - 1}"] for line in range(1, 41, 4)]
    assert len({id(one) for one in same}) == 1 and len({id(one) for one in own.values()}) > 20
    assert same[0].places.dtype == np.uint8  # type: ignore[attr-defined]
    many = CandidateLists(str)
    many.add([str(number) for number in range(70_000)])
    assert many.finish()[0].places.dtype == np.uint32
    assert CandidateLists(str).finish() == []


@pytest.mark.parametrize("task", [XTD10I2TRanking, XTD10T2IRanking])
def test_scores_and_predictions_are_those_of_lists(folder: Path, tmp_path: Path, task: type) -> None:
    found = []
    for as_lists in (False, True):
        one = task(data_root=folder)
        one.hf_subsets = ["en"]
        one.load_data()
        data = one.dataset["en"]["test"]
        if as_lists:
            data["top_ranked"] = {query: list(own) for query, own in data["top_ranked"].items()}
        out = tmp_path / f"predictions {as_lists}"
        model = MMMEBEncoder(Random(), show_progress=False)
        results = mteb.evaluate(
            model, one, cache=None, co2_tracker=False, show_progress_bar=False, prediction_folder=out
        )
        predicted = next(json.loads(path.read_text())["en"] for path in out.rglob("*.json"))
        found.append((results.task_results[0].scores, predicted))
    assert repr(found[0]) == repr(found[1]) and len(found[0][1]["test"]) == 40


def test_places_hold_in_their_own_corpus_only() -> None:
    own = Selection(["a", "b", "c"], np.array([0, 2], np.uint8))
    assert place_finder(["a", "b", "c"])(own) is own.places
    assert place_finder(["c", "b", "a"])(own).tolist() == [2, 0]
    assert place_finder(["x", "a", "b", "c"])(own).tolist() == [1, 3]
    with pytest.raises(KeyError, match="c"):
        place_finder(["a", "b"])(own)


def test_a_selection_reads_as_a_list() -> None:
    ids, rng = [f"{number:03}" for number in range(300)], np.random.default_rng(0)
    places = np.sort(rng.choice(300, 50, replace=False)).astype(np.uint16)
    own, plain = Selection(ids, places), [ids[place] for place in places]
    assert own == plain and own == tuple(plain) and plain == own and not own != plain and own != plain[1:]
    assert [own[n] for n in (0, -1, 7)] == [plain[n] for n in (0, -1, 7)] and own[3:9] == plain[3:9]
    assert own[::-1] == plain[::-1] and max(own) == max(plain) and own.index(plain[3]) == 3 and repr(own) == repr(plain)
    assert ("000" in own) == ("000" in plain) and own.count("x") == 0 and list(reversed(own)) == plain[::-1]
    assert pickle.loads(pickle.dumps(own)) == plain and own != "text"
    with pytest.raises(IndexError):
        own[50]
    facts = calculate_top_ranked_statistics({"1": own, "2": own[:3]}, 2)  # type: ignore[dict-item]
    assert facts["num_top_ranked"] == 53 and facts["min_top_ranked_per_query"] == 3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", 7], "'captions' holds 7; needs strings only"),
        (["a", ["b"]], r"'captions' holds \['b'\]; needs strings only"),
        (["a", None], "'captions' holds None; needs strings only"),
        (["a", True], "'captions' holds True; needs strings only"),
        (["a", "b\0"], "a text of 'captions' holds a NUL character"),
        (["a", "\ud800"], "a text of 'captions' holds half a character"),
        ([], r"'captions' is \[\]; needs a list"),
        ({"a": 1}, "'captions' is {'a': 1}; needs a list"),
    ],
)
def test_bad_candidates_are_named_whether_others_are_known_or_not(folder: Path, names: object, message: str) -> None:
    path = data_file(folder, "xtd", "en", 1000, "i2t")
    good = {"id": 1, "img": "3", "captions": ["a", "b"]}
    lines = [good | {"captions": names}, good, good | {"captions": names}, good]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    records = list(read_records(folder, "xtd", "en", 1000, "i2t"))
    errors = [(number, str(row)) for number, row in records if isinstance(row, ValueError)]
    assert [number for number, _ in errors] == [1, 3] and errors[0][1] == errors[1][1]
    assert [list(row.candidates) for _, row in records if isinstance(row, BenchmarkRow)] == [["a", "b"]] * 2
    with pytest.raises(ValueError, match=message):
        raise records[0][1]  # type: ignore[misc]


def test_the_first_fault_of_a_row_is_named(folder: Path) -> None:
    """Types of candidates before the id, the id before the query's image, that before the candidates' images."""
    path = data_file(folder, "maxm_v1", "en", 100, "vqa")
    line: dict[str, object] = {"id": " ", "img": "none", "question": "q", "answers": ["a", 1]}
    messages = []
    for change in ({}, {"answers": ["a"]}, {"id": 1}):
        line |= change
        path.write_text(json.dumps(line) + "\n")
        messages.append(str(next(read_records(folder, "maxm_v1", "en", 100, "vqa"))[1]))
    assert [message.split(" ")[0] for message in messages] == ["'answers'", "'id'", "image"]
    path = data_file(folder, "xtd", "fr", 1000, "t2i")
    path.write_text(json.dumps({"id": 1, "text": "a", "images": ["3", "none", 7]}) + "\n")
    assert "holds 7" in str(next(read_records(folder, "xtd", "fr", 1000, "t2i"))[1])
    assert MaXMRanking.metadata.kind == "vqa"


def test_an_image_that_is_missing_leaves_the_others_known(folder: Path) -> None:
    contents = Contents(Images(folder, "xtd"))
    with pytest.raises(ValueError, match="image 'none' is not at"):
        contents.add(["1", "none", "2"])
    assert [path.name for path in contents.add(["2", "1"])] == ["2.jpg", "1.jpg"]  # type: ignore[union-attr]
    assert contents.select(["1", "none"]) is None and contents.select(["1", "2"]) is not None
