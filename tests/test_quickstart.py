"""The quick-start notebook runs from top to bottom, and its student has learned."""

import json
from pathlib import Path

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"


def test_the_notebook_runs_and_the_student_learns(tmp_path, monkeypatch):
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) == 3 and not any(cell.get("outputs") for cell in notebook["cells"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "mteb"))
    names: dict = {}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), names)
    teacher, student = names["scores"]["teacher"], names["scores"]["student"]
    assert student["it"]["t2i"] > teacher["it"]["t2i"] + 0.1
    assert (tmp_path / "italian-embedder" / "modules.json").is_file()
