"""Adding languages, from the command line to the report, on a very small scale; and what it refuses."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from sentence_transformers import SentenceTransformer

from mmmeb_tasks.data.layout import read_rows
from mmmeb_tasks.metadata import LANGUAGES
from mmmeb_tasks.mini import TEACHER
from mmmeb_tasks.mini import write as mini_files
from mmmeb_tasks.mini.world import load_world
from mmmeb_tasks.mini.write import write_corpus
from recipes.add_language import command as add_language
from xvlm2vec_st.building.model_card import read_teachers
from xvlm2vec_st.data.corpus import read_parallel
from xvlm2vec_st.data.dataset import load_parallel
from xvlm2vec_st.distillation.fingerprint import fingerprint

SMALL = ["--mini", "60", "--steps", "3", "--batch-size", "6", "--eval-rows", "8", "--queries", "100"]
TASKS = ["i2t", "t2i"]
NEW, KEPT = ["pt", "zh"], ["it"]


@pytest.fixture(scope="module")
def added(tmp_path_factory):
    """(the finished folder, the work folder as it was before training ended)."""
    folder = tmp_path_factory.mktemp("add")
    out = folder / "seven"
    kept = {}
    real = add_language.distill

    def spy(arguments, training):
        work = folder / "seven.work"
        kept["train"] = list(read_parallel(work / "train.jsonl", [*NEW, *KEPT]))
        kept["held out"] = list(read_parallel(work / "held_out.jsonl", [*NEW, *KEPT]))
        kept["queries"] = list(read_rows(work / "mini-pt", "mini", "en", 100, "t2i"))
        kept["arguments"] = arguments
        return real(arguments, training)

    add_language.distill = spy
    try:
        add_language.main(
            [str(TEACHER), *NEW, "--known-languages", *KEPT, "--out", str(out), *SMALL, "--tasks", *TASKS]
        )
    finally:
        add_language.distill = real
    return out, kept


def test_the_result_is_a_model_of_its_own_with_a_report(added, teacher):
    out, _ = added
    student = SentenceTransformer(str(out))
    texts = ["dog above cat", "cachorro acima de gato", "猫在狗的上面"]
    assert student.encode(texts).shape == (3, 192)
    assert not torch.equal(torch.tensor(student.encode(texts)), torch.tensor(teacher.encode(texts)))
    assert {path.name for path in out.parent.iterdir()} == {"seven"}
    report = {path.name for path in (out / "report").iterdir()}
    assert report == {"languages.json", "languages.md", "corpus.report.md", "corpus.report.html"}


def test_before_and_after_have_every_language_and_task(added):
    told = json.loads((added[0] / "report" / "languages.json").read_text())
    assert (told["new"], told["kept"]) == (NEW, KEPT)
    for side in ("before", "after"):
        assert set(told[side]["MMMEBMini"]) == {"en", *NEW, *KEPT}
        assert all(set(scores) == set(TASKS) for scores in told[side]["MMMEBMini"].values())
        assert set(told[side]["held out"]) == {*NEW, *KEPT}
    assert told["before"] != told["after"]
    table = (added[0] / "report" / "languages.md").read_text("utf-8")
    assert "| P@1, %: teacher → student | en | pt | zh | it |" in table


def test_the_english_of_the_model_itself_scores_the_known_languages_as_the_demo_does(added):
    """The bundled teacher, in English 90 and in Italian below 15 of 100: the folders are not mixed up."""
    before = json.loads((added[0] / "report" / "languages.json").read_text())["before"]["MMMEBMini"]
    assert before["en"]["i2t"] > 0.85
    assert max(before[code]["i2t"] for code in ("it", *NEW)) < 0.2


def test_new_languages_have_their_own_texts_with_english_instructions(added):
    queries = [row.text for row in added[1]["queries"]]
    assert len(queries) == 100 and all(re.search("acima de|à esquerda de", text) for text in queries)


def test_training_rows_have_the_new_languages_and_rehearse_the_old(added):
    train, held_out = added[1]["train"], added[1]["held out"]
    content = [row for row in train if "pt" in row.translations]
    assert len(content) > 60 and all("zh" in row.translations for row in content)
    rehearsed = sum("it" in row.translations for row in train) / len(train)
    assert 0.35 < rehearsed < 0.65
    assert len(held_out) == 8 and all({"pt", "zh", "it"} == set(row.translations) for row in held_out)
    assert not {row.id for row in train} & {row.id for row in held_out}
    texts = {row.english for row in held_out if row.image is None}
    assert texts and not texts & {row.english for row in train if row.image is None}


def test_new_languages_of_mmmeb_have_their_own_instructions(tmp_path, monkeypatch):
    monkeypatch.setattr(mini_files, "_images", lambda *args: args[-1].mkdir(parents=True))
    args = SimpleNamespace(languages=["de", "pt"], known_languages=["it"], queries=100)
    data = add_language.write_benchmarks(args, tmp_path)
    assert list(data) == ["en", "de", "pt", "it"]
    assert data["de"] == data["it"] == data["en"] != data["pt"]

    asked = {}

    def first_text(encoder, *, languages, data_root, tasks):
        (code,) = languages
        assert code in LANGUAGES
        lines = (data_root / "datasets" / f"mini_{code}_100_formatted_t2i.jsonl").open(encoding="utf-8")
        asked.setdefault(code, []).append(json.loads(next(lines))["text"])
        return {code: dict.fromkeys(tasks, 0.5)}

    monkeypatch.setattr(add_language, "evaluate_mini", first_text)
    monkeypatch.setattr(add_language, "MMMEBEncoder", lambda model: model)
    monkeypatch.setattr(add_language, "parallel_evaluator", lambda *args: lambda model: {})
    scores = add_language.score(None, None, None, [], data, ["t2i"], tmp_path / "note.json")
    assert list(scores["MMMEBMini"]) == list(data)
    assert asked == {
        "en": ["sunflower above candle", "girassol acima de vela"],
        "de": ["Sonnenblume über Kerze"],
        "it": ["girasole sopra candela"],
    }


def test_the_teacher_is_the_model_itself(added):
    arguments = added[1]["arguments"]
    assert (arguments.student, arguments.teacher) == (str(TEACHER), None)
    assert arguments.languages == ["pt", "zh", "it"]
    # So the result may query its index.
    assert [each.fingerprint for each in read_teachers(str(added[0]))] == [
        fingerprint(SentenceTransformer(str(TEACHER)))
    ]


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "corpus", ["en"], scenes=30) / "parallel.jsonl"
    words = [
        str(TEACHER),
        "pt",
        "--corpus",
        str(corpus),
        "--translator",
        "cldr",
        "--out",
        str(tmp_path / "m"),
    ]
    words += ["--steps", "1", "--batch-size", "2", "--eval-rows", "4"]
    real, scored = add_language.distill, add_language.score

    def stopped(arguments, training):
        raise KeyboardInterrupt

    monkeypatch.setattr(add_language, "distill", stopped)
    with pytest.raises(KeyboardInterrupt):
        add_language.main(words)
    assert not (tmp_path / "m").exists() and (tmp_path / "m.work" / "before.json").is_file()
    with pytest.raises(ValueError, match="was begun with other arguments"):
        add_language.main([*words, "--seed", "7"])
    monkeypatch.setattr(add_language, "distill", real)
    monkeypatch.setattr(add_language, "translate", None)  # the corpus is there: not made again
    seen = []
    monkeypatch.setattr(add_language, "score", lambda *args: seen.append(args[-1].is_file()) or scored(*args))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "old").write_text("")
    add_language.main([*words, "--overwrite"])  # begun with the same arguments: its work is not dropped
    assert seen == [True, False] and not (tmp_path / "m" / "old").exists()
    told = json.loads((tmp_path / "m" / "report" / "languages.json").read_text())
    assert list(told["after"]) == ["held out"]  # without --mini there is no MMMEBMini

    # The translations stay, with the way to their images, for the next language.
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "m", "m.corpus"}
    kept = tmp_path / "m.corpus" / "parallel.jsonl"
    assert {path.name for path in kept.parent.iterdir()} == {"parallel.jsonl", "parallel.refused.jsonl"}
    rows = load_parallel(kept, ["pt"], outside_images=True, show_progress=False)
    assert len(rows) > 20 and sum(image is not None for image in rows["image"]) > 5
    with pytest.raises(ValueError, match="m.corpus exists"):
        (tmp_path / "m").rename(tmp_path / "elsewhere")
        add_language.main(words)


def test_new_tokens_are_for_the_new_language_alone(tmp_path, teacher):
    out = tmp_path / "m"
    more = ["--new-tokens", "80", "--join-ascii", "--known-languages", "it", "--tasks", "i2t", "--out", str(out)]
    add_language.main([str(TEACHER), "nl", *SMALL, *more])
    student = SentenceTransformer(str(out))
    rows = load_world(["en", "nl", "it"]).concepts
    names = {code: [row.names[code] for row in rows] for code in ("en", "nl", "it")}
    before, after = (
        {code: each.tokenizer(own)["input_ids"] for code, own in names.items()} for each in (teacher, student)
    )
    assert (after["en"], after["it"]) == (before["en"], before["it"])
    assert sum(map(len, after["nl"])) < sum(map(len, before["nl"]))
    # The teacher is the model without them, so its index stays valid.
    assert [each.fingerprint for each in read_teachers(str(out))] == [fingerprint(teacher)]


def test_other_training_keeps_the_translations(tmp_path, capsys):
    work = tmp_path / "m.work"

    def begun(*more):
        words = [str(TEACHER), "pt", "--mini", "20", "--out", str(tmp_path / "m"), *more]
        add_language.check_arguments(add_language.parse_args(words))
        return {path.name for path in work.iterdir()}

    begun()
    corpus = {"arguments.json", "parallel.jsonl", "parallel.jsonl.work", "parallel.images", "english"}
    folders = {"parallel.jsonl.work", "parallel.images", "english", "model", "model.partial", "mini-known"}
    made = {*corpus, *folders, "train.jsonl", "held_out.jsonl", "before.json", "after.json"}
    for name in made - {"arguments.json"}:
        (work / name).mkdir() if name in folders else (work / name).write_text("")
    assert begun() == made and not capsys.readouterr().out
    assert begun("--eval-rows", "4") == corpus
    assert "(eval_rows): keeping the corpus" in capsys.readouterr().out
    (work / "model.partial").mkdir()
    assert begun("--eval-rows", "4", "--overwrite") == {*corpus, "model.partial"}
    assert begun("--steps", "7", "--overwrite") == corpus
    with pytest.raises(ValueError, match=r"begun with other arguments \(dtype\), which its corpus"):
        begun("--dtype", "fp16")
    assert begun("--dtype", "fp16", "--overwrite") == {"arguments.json"}


def test_images_written_for_a_corpus_stay_with_it_and_those_that_were_there(tmp_path):
    work, folder = tmp_path / "m.work", tmp_path / "m.corpus"
    for place in (work, folder):
        (place / "parallel.images").mkdir(parents=True)
        (place / "parallel.images" / f"{place.suffix[1:]}.png").write_bytes(b"")
    (work / "parallel.jsonl").write_text('{"id": 1}\n')
    (work / "parallel.refused.jsonl").write_text("")
    assert add_language.keep_corpus(work / "parallel.jsonl", folder) == folder / "parallel.jsonl"
    assert (folder / "parallel.jsonl").read_text() == '{"id": 1}\n'
    assert {p.name for p in (folder / "parallel.images").iterdir()} == {"work.png", "corpus.png"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pt"], "pass --corpus SOURCE or --mini SCENES"),
        (["pt", "--mini", "5", "--corpus", "x.jsonl"], "one of them"),
        (["pt", "it", "--known-languages", "it", "--mini", "5"], "it: both new and in --known-languages"),
        (["pt", "--mini", "5", "--rehearsal", "0"], "--rehearsal 0.0: pass a number above 0"),
        (["pt", "--mini", "20"], "and at most half of them can be held out"),
        (["xx", "--mini", "5"], "unknown language 'xx'"),
        (["pt", "--mini", "5", "--new-tokens", "0"], "--new-tokens 0: pass 1 or more"),
        (["pt", "--mini", "5", "--join-ascii"], "--join-ascii does nothing without --new-tokens"),
        (["pt", "--mini", "5", "--new-tokens", "9", "--lora-rank", "4"], "an adapter does not train embeddings"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        add_language.main([str(TEACHER), *words, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"^\./none: no such folder; a name on the Hub"):
        add_language.main(["./none", "pt", "--mini", "5", "--out", str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []
