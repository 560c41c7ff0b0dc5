"""`xvlm2vec check` against the golden values of the original Phi-3.5-vision."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from recipes.__main__ import main
from xvlm2vec_st import SentenceTransformer, build
from xvlm2vec_st.building.parity import check_parity, read_reference

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "phi3v"
CASES = json.loads((GOLDEN / "cases.json").read_text("utf-8"))
EXPECTED = load_file(GOLDEN / "expected.safetensors")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The golden checkpoint as it is."""
    return build(GOLDEN, tmp_path_factory.mktemp("parity") / "model", num_crops=4)


@pytest.fixture
def reference(tmp_path):
    """A file of the original's values, and its rows."""
    rows = []
    for case in CASES:
        if case["num_crops"] in (None, 4) and case["length"] < 1000:
            ids = EXPECTED[f"{case['case']}.input_ids"].tolist()
            image = case["image"] and Path(case["image"]).name
            if image:
                shutil.copy(GOLDEN / case["image"], tmp_path / image)
            text = case["text"].removeprefix("<|image_1|>\n") or None
            state = EXPECTED[f"{case['case']}.last"].tolist()
            rows.append({"text": text, "image": image, "input_ids": ids, "pooled": len(ids) - 1, "embedding": state})
    assert {bool(row["image"]) for row in rows} == {True, False} and len(rows) > 6
    return tmp_path / "reference.json", rows


def write(reference, rows=None):
    file, own = reference
    file.write_text(json.dumps({"model": "golden", "rows": own if rows is None else rows}))
    return str(file)


def test_the_golden_values_agree(model, reference, capsys):
    assert main(["check", str(model), "--reference", write(reference)]) == 0
    printed = capsys.readouterr().out
    count = len(reference[1])
    assert len(re.findall(r"row \d+ agrees: cosine 1\.000000\n|row \d+ agrees: cosine 0\.99999", printed)) == count
    assert f"{count} of {count} rows agree\n" in printed


def test_every_kind_of_difference_is_named(model, reference, capsys):
    rows = reference[1]
    image = next(number for number, row in enumerate(rows) if row["image"])
    text = next(number for number, row in enumerate(rows) if not row["image"])
    rows[text] |= {"input_ids": [*rows[text]["input_ids"][:-1], 7]}
    shorter = [i for i in rows[image]["input_ids"] if i >= 0]
    rows[image] |= {"input_ids": shorter, "pooled": len(shorter) - 2}
    rows[-1] |= {"embedding": [-value for value in rows[-1]["embedding"]]}
    assert main(["check", str(model), "--reference", write(reference)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"row {text} differs" in lines[text] and f"token {len(rows[text]['input_ids']) - 1} is " in lines[text]
    assert "757 image tokens from [1] on, and 0 from [] on in the reference" in lines[image]
    assert "is pooled, and" in lines[image] and "in the reference" in lines[image]
    assert "differs: cosine -1.000000" in lines[len(rows) - 1]
    assert lines[-1] == f"{len(rows) - 3} of {len(rows)} rows agree"


def test_another_template_differs(reference, tmp_path):
    template = (ROOT / "xvlm2vec_st" / "families" / "chat_template.jinja").read_text("utf-8")
    (tmp_path / "t.jinja").write_text(template.replace("@IMAGE@", "<|image_' ~ seen.images ~ '|>") + "?")
    other = SentenceTransformer(str(build(GOLDEN, tmp_path / "other", template=tmp_path / "t.jinja", num_crops=4)))
    found = check_parity(other, read_reference(write(reference)))
    assert not any(result.agrees(1e-3) for result in found) and all(result.ids for result in found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is not a reference"),
        ('{"lines": []}', "KeyError: 'rows'"),
        ('{"rows": []}', "has no rows; record at least one"),
        ('{"rows": [{"input_ids": [1], "pooled": 0}]}', "row 0: embedding missing; record the row again"),
        (
            '{"rows": [{"input_ids": [1], "pooled": 0, "embedding": [1], "image": "gone.png"}]}',
            "row 0: no image gone.png beside the reference; copy it there",
        ),
    ],
)
def test_bad_references(content, message, tmp_path, model, capsys):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_reference(tmp_path / "r.json")
    assert main(["check", str(model), "--reference", str(tmp_path / "r.json")]) == 2
    assert message in capsys.readouterr().err


def test_another_size_is_refused(model, reference):
    rows = [reference[1][0] | {"embedding": [1.0]}]
    with pytest.raises(ValueError, match="row 0: the model has 64 dimensions and the reference 1"):
        check_parity(SentenceTransformer(str(model)), read_reference(write(reference, rows)))


def test_the_documented_recorder(model, tmp_path, monkeypatch):
    """On the raw golden checkpoint, by transformers alone."""
    text = (ROOT / "docs" / "parity.md").read_text("utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "json.dump" in block]
    shutil.copy(GOLDEN / "images" / "0_336x336.png", tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/parity.md", "exec"), {"MODEL": os.fspath(GOLDEN)})
    found = check_parity(SentenceTransformer(str(model)), read_reference("reference.json"))
    assert len(found) == 2 and all(result.agrees(1e-5) for result in found), found
