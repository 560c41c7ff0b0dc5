"""How a recipe ends: the card of what it saves, its last line, and its exit status."""

import re

import fresh
import pytest
import tiny
from sentence_transformers import SentenceTransformer

from mmmeb_tasks.mini import TEACHER
from mmmeb_tasks.mini.write import write_corpus
from recipes.distill import command as distill
from recipes.distill.card import save_with_card
from recipes.shared import command
from xvlm2vec_st.building import builder as checkpoint


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("end") / "c", ["en", "it", "de"], scenes=8) / "parallel.jsonl"


@pytest.mark.parametrize(
    ("rows", "scores"), [(4, r"; held-out rows: it [\d.]+%, de [\d.]+%, English cosine [\d.]+"), (0, "")]
)
def test_the_last_line_tells_where_and_how_good(corpus, tmp_path, capsys, rows, scores):
    out = tmp_path / "out"
    words = ["--student", TEACHER, "--corpus", corpus, "--languages", "it", "de", "--output-dir", out]
    short = ["--per-device-train-batch-size", 2, "--max-steps", 1, "--eval-rows", rows, "--report-to", "none"]
    distill.main([str(word) for word in (*words, *short)])
    assert re.fullmatch(f"saved: {re.escape(str(out))}{scores}", capsys.readouterr().out.splitlines()[-1])
    card = (out / "README.md").read_text()
    assert "\n# teacher distilled into it, de\n" in card and "language:\n- en\n- it\n- de\n" in card
    assert "base_model" not in card and "import xvlm2vec_st" not in card


def test_the_card_names_a_hub_id_and_what_phi3_v_needs(tmp_path):
    model = SentenceTransformer(str(tiny.embedder("phi3_v")))
    save_with_card(model, tmp_path / "m", "some/embedder", ["it"])
    card = (tmp_path / "m" / "README.md").read_text()
    assert "base_model: some/embedder\n" in card and "\n# some/embedder distilled into it\n" in card
    assert "import xvlm2vec_st  # Phi-3.5-vision, which transformers lacks\nfrom sentence_tr" in card


@pytest.mark.parametrize(("error", "status"), [(ValueError("row 3: no"), 2), (KeyboardInterrupt(), 130)])
def test_what_the_user_can_mend_is_one_line(capsys, error, status):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        command.run(main)
    assert end.value.code == status
    assert capsys.readouterr().err == ("error: row 3: no\n" if status == 2 else "")


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        command.run(lambda: 1 / 0)


def test_a_recipe_run_as_a_program_ends_so():
    done = fresh.module("recipes.translate", "--languages", "it,es", "--out", "o.jsonl")
    assert (done.returncode, done.stderr) == (2, "error: no source: pass --corpus FILE, or --mmeb SUBSET\n")


@pytest.mark.parametrize("name", ["./none", "/none/at/all", "~/none", "none/", "a/b/c"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(name):
    with pytest.raises(ValueError, match=f"^{name}: no such folder; a name on the Hub"):
        checkpoint.check_folder(name)
