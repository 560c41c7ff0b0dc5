"""The pipeline: each text once, killed and resumed, in shards, on a full disk, with a bad translator."""

import json
import multiprocessing
import os
import random
import re
import signal
from collections import Counter
from pathlib import Path

import pytest

from mmmeb_tasks.mini.write import write_corpus
from recipes.translate import command as translate
from recipes.translate import translation_memory as memory_file
from recipes.translate.dictionary import Dictionary, mini_dictionary
from recipes.translate.merge import Merged
from recipes.translate.report import SUBSETS, tables
from recipes.translate.schedule import padding_waste, plan_batches, translate_batch
from recipes.translate.translation_memory import Memory, read_memory, write_whole
from xvlm2vec_st.data.corpus import ParallelRow, read_parallel
from xvlm2vec_st.data.dataset import load_parallel

CODES = ["it", "pt", "zh"]


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    """The mini world's English rows."""
    return write_corpus(tmp_path_factory.mktemp("english") / "corpus", ["en"], scenes=60) / "parallel.jsonl"


def words(english, out, *more):
    return ["--corpus", str(english), "--languages", *CODES, "--out", str(out), "--tokens-per-batch", "60", *more]


@pytest.fixture(scope="module")
def whole(english, tmp_path_factory):
    """The bytes of an unbroken run."""
    out = tmp_path_factory.mktemp("whole") / "parallel.jsonl"
    translate.main([*words(english, out), "--translator", "cldr"])
    return out.read_bytes()


class Counting(Dictionary):
    """Counts what it is asked for, and what it was asked for at once."""

    def __init__(self, tables):
        super().__init__(tables, name="counting")
        self.asked, self.calls = Counter(), []

    def translate(self, texts, code):
        self.asked.update((code, text) for text in texts)
        self.calls.append(len(texts))
        return super().translate(texts, code)


def test_commas_or_spaces_between_languages():
    for to in (["it,pt"], ["it", "pt"], ["it, pt"]):
        assert translate.parse_args(["--languages", *to, "--out", "o"]).languages == ["it", "pt"]


def counting(codes=CODES):
    return Counting(mini_dictionary(codes).tables)


def test_the_translations_are_true(english, whole, tmp_path):
    """What the mini world says itself in these languages, row by row."""
    own = write_corpus(tmp_path / "own", ["en", *CODES], scenes=60) / "parallel.jsonl"
    said = {json.loads(line)["id"]: json.loads(line) for line in whole.decode().splitlines()}
    compared = Counter()
    for row in read_parallel(own, CODES):
        for code, text in row.translations.items():
            if text != row.english:
                assert said[row.id][code] == text.rstrip(" ")
                compared[code] += 1
            elif row.english.startswith("Represent the given") and "question" not in text:
                # MMMEB has no such instruction in Portuguese: refused as a copy.
                assert code not in said.get(row.id, {})
                compared["copy"] += 1
    assert min(compared[code] for code in CODES) > 80 and compared["copy"]


def test_identical_texts_are_translated_once(english, tmp_path, capsys):
    translator = counting()
    translate.main(words(english, tmp_path / "out.jsonl"), translator)
    assert set(translator.asked.values()) == {1}
    pattern = r"([\d,]+) texts, ([\d,]+) of them different: 0 known, ([\d,]+) translated"
    printed = re.search(pattern, capsys.readouterr().out)
    asked, unique, done = (int(number.replace(",", "")) for number in printed.groups())
    assert unique == done == len(translator.asked) < asked


def test_throughput_and_padding_are_printed(english, tmp_path, capsys):
    translate.main(words(english, tmp_path / "out.jsonl"), counting())
    out = capsys.readouterr().out
    assert re.search(r"\d+ batches of at most 60 tokens, padding \d+\.\d%", out)
    assert re.search(r"[\d,]+ tokens/s, padding \d+\.\d %", out)


def lognormal_lengths(count=20_000):
    """Captions, questions and news in one corpus: a median of 12 tokens, a few of hundreds."""
    rng = random.Random(0)
    return [max(1, min(512, round(rng.lognormvariate(2.5, 0.9)))) for _ in range(count)]


def test_batches_by_tokens_waste_less_than_batches_by_rows():
    lengths = lognormal_lengths()
    by_rows = [range(start, min(start + 32, len(lengths))) for start in range(0, len(lengths), 32)]
    by_tokens = plan_batches(lengths, 4096)
    assert sorted(i for batch in by_tokens for i in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 4096 for batch in by_tokens)
    rows, tokens = padding_waste(lengths, by_rows), padding_waste(lengths, by_tokens)
    assert rows > 0.6 and tokens < 0.05
    told = re.search(r"(?s)([\d.]+) % padding.*?([\d.]+) % padding", documented("padding"))
    assert [float(number) for number in told.groups()] == pytest.approx([100 * rows, 100 * tokens], abs=0.1)


def documented(word):
    text = (Path(__file__).parents[1] / "docs" / "corpus.md").read_text("utf-8")
    return next(part for part in text.split("\n\n") if f"<!-- {word} -->" in part)


# Killed, resumed, in parts.


def run_and_die(english, out, deaths, shard=()):
    """In a child: the run, which kills itself where `deaths` says, a text or half a line on."""
    texts, torn = deaths

    class Dying(Dictionary):
        left = texts

        def translate(self, batch, code):
            Dying.left -= len(batch)
            if Dying.left < 0 and not torn:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().translate(batch, code)

    def half(handle, data):
        if Dying.left < 0 and torn:
            os.pwrite(handle, data[: len(data) // 2], 0)  # the file is opened for appending
            os.kill(os.getpid(), signal.SIGKILL)
        return real(handle, data)

    real, memory_file.os.write = os.write, half
    translate.main([*words(english, out), *shard], Dying(mini_dictionary(CODES).tables, name="cldr"))


def killed(*args):
    """Whether the run was killed."""
    child = multiprocessing.get_context("fork").Process(target=run_and_die, args=args)
    child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0


def test_killed_ten_times_at_random_points_the_bytes_are_the_same(english, whole, tmp_path):
    out = tmp_path / "parallel.jsonl"
    rng = random.Random(0)
    known = 0
    for _ in range(10):
        assert killed(english, out, (rng.randrange(1, 12), rng.random() < 0.5))
        assert not out.exists()
        before, known = known, len(read_memory([tmp_path / "parallel.jsonl.work"]))
        assert known >= before  # nothing is lost
    assert known > 0
    translator = Counting(mini_dictionary(CODES).tables)
    translator.name = "cldr"
    translate.main(words(english, out), translator)
    assert out.read_bytes() == whole
    everything = counting()
    translate.main(words(english, tmp_path / "other.jsonl"), everything)
    assert sum(translator.asked.values()) == sum(everything.asked.values()) - known  # nothing twice
    assert not (tmp_path / "parallel.jsonl.work").exists()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_shards_give_the_same_bytes_and_translate_nothing_twice(english, whole, tmp_path, count):
    out = tmp_path / "parallel.jsonl"
    asked = Counter()
    for number in reversed(range(count)):
        translator = Counting(mini_dictionary(CODES).tables)
        translator.name = "cldr"
        translate.main([*words(english, out), "--shard", f"{number + 1}/{count}"], translator)
        assert not out.exists()
        asked += translator.asked
        assert translator.asked
    merging = Counting(mini_dictionary(CODES).tables)
    merging.name = "cldr"
    translate.main(words(english, out), merging)
    assert out.read_bytes() == whole
    assert set(asked.values()) == {1} and not merging.asked


def test_shards_that_were_killed_are_completed_by_the_merging_run(english, whole, tmp_path):
    out = tmp_path / "parallel.jsonl"
    assert killed(english, out, (40, True), ("--shard", "1/2"))
    assert killed(english, out, (9, False), ("--shard", "2/2"))
    translate.main([*words(english, out), "--translator", "cldr"])
    assert out.read_bytes() == whole


def test_another_corpus_or_translator_does_not_go_on_with_a_work_folder(english, tmp_path):
    out = tmp_path / "parallel.jsonl"
    translate.main([*words(english, out), "--shard", "1/2"], counting())
    with pytest.raises(ValueError, match="was started with other settings .translator 'counting' -> 'cldr'.*--memory"):
        translate.main([*words(english, out), "--translator", "cldr"])
    lines = english.read_text("utf-8").splitlines(keepends=True)
    other = english.with_name("other.jsonl")
    other.write_text("".join(lines[:20]), "utf-8")
    with pytest.raises(ValueError, match="was started with other settings .corpus it"):
        translate.main(words(other, out), counting())
    known = len(read_memory([tmp_path / "parallel.jsonl.work"]))
    translator = counting()
    translate.main([*words(other, tmp_path / "new.jsonl"), "--memory", f"{out}.work"], translator)
    assert 0 < known and not set(translator.asked) & set(read_memory([Path(f"{out}.work")]))


def test_a_language_can_be_added_to_an_unfinished_run(english, tmp_path):
    out = tmp_path / "parallel.jsonl"
    first = counting()
    translate.main([*words(english, out), "--shard", "1/1"], first)
    second = counting([*CODES, "de"])
    more = words(english, out)
    more.insert(more.index("zh"), "de")
    translate.main(more, second)
    assert {code for code, _ in second.asked} == {"de"}


# Protection.


class Losing(Dictionary):
    """Loses marks and numbers in whole sentences; short pieces are done well."""

    def __init__(self):
        super().__init__({"it": {}}, name="losing")

    def translate(self, texts, code):
        return [re.sub(r"<\d+>|\d+", "", text) if " " in text else text.upper() for text in texts]


def test_what_is_lost_is_translated_in_pieces():
    texts = ['put {x} in "BOX A"', "take 12 apples", "plain words"]
    said, in_pieces = translate_batch(Losing(), texts, "it", 100)
    assert in_pieces == 2
    assert said == ['PUT {x} IN "BOX A"', "TAKE 12 APPLES", "plain words"]


# Bad translators and full disks.


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda texts: [], "gave 0 answers for"),
        (lambda texts: None, "gave 0 answers for"),
        (lambda texts: [*texts, "x"], "answers for"),
        (lambda texts: [7 for _ in texts], "gave 7, which is not a text"),
    ],
)
def test_a_translator_that_does_not_answer_is_named_and_nothing_is_lost(english, whole, tmp_path, answer, message):
    class Broken(Counting):
        def translate(self, texts, code):
            said = super().translate(texts, code)
            return said if len(self.calls) < 4 else answer(said)

    out = tmp_path / "parallel.jsonl"
    broken = Broken(mini_dictionary(CODES).tables)
    broken.name = "cldr"
    with pytest.raises(ValueError, match=message):
        translate.main(words(english, out), broken)
    assert not out.exists() and len(read_memory([Path(f"{out}.work")])) == sum(broken.calls[:3])
    translate.main([*words(english, out), "--translator", "cldr"])
    assert out.read_bytes() == whole


def test_empty_answers_are_refused_row_by_row(english, tmp_path):
    class Empty(Dictionary):
        def translate(self, texts, code):
            return [
                "" if "dog" in text else None if "cat" in text else said
                for text, said in zip(texts, super().translate(texts, code), strict=True)
            ]

    out = tmp_path / "parallel.jsonl"
    translate.main(words(english, out), Empty(mini_dictionary(CODES).tables))
    refused = [json.loads(line) for line in (tmp_path / "parallel.refused.jsonl").open(encoding="utf-8")]
    reasons = Counter(entry["reason"] for entry in refused)
    assert reasons["empty"] and reasons["unfinished"]
    for entry in refused:
        assert entry["reason"] != "empty" or re.search(r"\bdog\b|\bhot dog\b", entry["english"])


def test_a_model_that_answers_nothing_at_all_is_an_error_with_a_report(english, tmp_path):
    class Nothing(Dictionary):
        def translate(self, texts, code):
            return ["" for _ in texts]

    out = tmp_path / "parallel.jsonl"
    with pytest.raises(ValueError, match="no translation was kept; .*report.md tells why"):
        translate.main(words(english, out, "--languages", "pt", "zh"), Nothing(mini_dictionary(CODES).tables))
    assert not out.exists() and (tmp_path / "parallel.report.md").is_file()


def test_a_full_disk_is_reported_and_the_run_continues_when_there_is_room(english, whole, tmp_path, monkeypatch):
    out = tmp_path / "parallel.jsonl"
    real, written = os.write, []

    def full(handle, data):
        if len(written) < 3:
            written.append(handle)
            return real(handle, data)
        if len(written) == 3:  # a few bytes still fit
            written.append(handle)
            return real(handle, data[:20])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(memory_file.os, "write", full)
        with pytest.raises(ValueError, match="No space left on device; .* is kept: make room, then run the same"):
            translate.main([*words(english, out), "--translator", "cldr"])
    assert not out.exists() and read_memory([Path(f"{out}.work")])
    translate.main([*words(english, out), "--translator", "cldr"])
    assert out.read_bytes() == whole


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_really_full_device(tmp_path):
    (tmp_path / "shard-1-of-1.jsonl").symlink_to("/dev/full")
    memory = Memory.__new__(Memory)
    memory.path, memory.known = tmp_path / "shard-1-of-1.jsonl", {}
    with pytest.raises(ValueError, match="No space left on device"):
        memory.add("it", ["dog"], ["cane"])
    assert memory.known == {}


def test_a_file_that_cannot_be_written_whole_is_not_there(tmp_path):
    def lines():
        yield "first\n"
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match="out.jsonl: No space left on device; the translations are kept"):
        write_whole(tmp_path / "out.jsonl", lines())
    assert not list(tmp_path.iterdir())


def test_a_text_beyond_the_translators_length_is_refused_and_the_others_are_not(tmp_path):
    corpus = tmp_path / "english.jsonl"
    rows = [{"id": "long", "en": "dog " * 500_000}, {"id": "short", "en": "dog"}]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert max(map(len, corpus.open())) > 2_000_000
    out = tmp_path / "out.jsonl"
    translate.main(["--corpus", str(corpus), "--languages", "it", "--translator", "cldr", "--out", str(out)])
    assert [row.translations for row in read_parallel(out, ["it"])] == [{"it": "cane"}]
    (refused,) = [json.loads(line) for line in (tmp_path / "out.refused.jsonl").open()]
    assert (refused["id"], refused["reason"]) == ("long", "long")
    assert len((tmp_path / "out.report.html").read_text()) < 50_000


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--languages", "xx"], "unknown language 'xx'"),
        (["--languages", "en"], "English is the source"),
        (["--languages", "it", "it"], "listed twice"),
        (["--shard", "5/4"], "--shard 5/4: give K/N"),
        (["--columns", "caption"], "--columns caption: pass OURS=THEIRS"),
        (["--shard", "1/2", "--overwrite"], "would drop the other shards' work"),
        (["--memory", "nowhere"], "nowhere: no such memory"),
    ],
)
def test_bad_arguments_are_refused(english, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        translate.main([*words(english, tmp_path / "out.jsonl"), "--translator", "cldr", *more])


def test_a_language_that_the_translator_lacks_names_the_nearest(english, tmp_path):
    with pytest.raises(ValueError, match="does not know language 'pt-BR'; nearest: pt"):
        translate.main([*words(english, tmp_path / "o.jsonl"), "--languages", "it", "pt-BR"], counting())


def test_a_finished_corpus_is_not_overwritten_without_asking(english, tmp_path):
    (tmp_path / "out.jsonl").write_text("x")
    with pytest.raises(ValueError, match="exists; choose another --out, or pass --overwrite"):
        translate.main(words(english, tmp_path / "out.jsonl"))


class Stopped(Counting):
    """Is killed after three batches."""

    def translate(self, texts, code):
        if len(self.calls) == 3:
            raise KeyboardInterrupt
        return super().translate(texts, code)


def test_overwriting_loses_nothing_before_the_new_corpus_is_there(english, whole, tmp_path):
    out, work = tmp_path / "parallel.jsonl", tmp_path / "parallel.jsonl.work"
    out.write_text("old")
    again = [*words(english, out), "--overwrite"]
    with pytest.raises(KeyboardInterrupt):
        translate.main(again, Stopped(mini_dictionary(CODES).tables))
    known = len(read_memory([work]))
    with pytest.raises(ValueError, match="no such file"):
        translate.main([*again, "--corpus", str(english.with_name("typing-mistake.jsonl"))], counting())
    assert out.read_text() == "old" and len(read_memory([work])) == known > 0
    translator = counting()
    translate.main(again, translator)  # the same command goes on
    everything = counting()
    translate.main(words(english, tmp_path / "other.jsonl"), everything)
    assert len(translator.asked) == len(everything.asked) - known
    assert out.read_bytes() == whole and not work.exists()


def test_overwriting_drops_the_work_of_another_run(english, whole, tmp_path):
    out = tmp_path / "parallel.jsonl"
    with pytest.raises(KeyboardInterrupt):
        translate.main(words(english, out), Stopped(mini_dictionary(CODES).tables))
    translator = counting()
    translator.name = "another"
    translate.main([*words(english, out), "--overwrite"], translator)
    assert set(translator.asked.values()) == {1} and out.read_bytes() == whole
    everything = counting()
    translate.main(words(english, tmp_path / "other.jsonl"), everything)
    assert translator.asked == everything.asked


def test_a_run_without_a_translator_leaves_anothers_work(tmp_path):
    out, work = tmp_path / "names.jsonl", tmp_path / "names.jsonl.work"
    Memory(work).add("it", ["dog"], ["cane"])
    translate.main(["--corpus", "cldr", "--languages", "pt", "--translator", "none", "--out", str(out)])
    assert out.is_file() and read_memory([work]) == {("it", "dog"): "cane"}


# Reports and what trains on the result.


@pytest.mark.parametrize(("count", "shown"), [(SUBSETS, True), (SUBSETS + 1, False)])
def test_a_table_of_subsets_is_shown_where_ids_name_a_few_of_them(count, shown):
    """Ids such as `scene/17` for each of thousands of scenes would make a table as long as the corpus."""
    kept = [ParallelRow(f"subset-{n}/1", None, "dog", {"it": "cane"}) for n in range(count)]
    found = dict(tables(Merged(kept), ["it"]))
    assert found["By reason and language"][1:] == [["kept", str(count)]]
    assert ("By subset" in found) is shown
    assert not shown or found["By subset"][1:3] == [["subset-0", "1"], ["subset-1", "1"]]


def test_the_reports_count_by_reason_language_and_subset(english, tmp_path):
    out = tmp_path / "parallel.jsonl"
    translate.main([*words(english, out), "--translator", "cldr"])
    kept = Counter(code for row in read_parallel(out, CODES) for code in row.translations)
    refused = [json.loads(line) for line in (tmp_path / "parallel.refused.jsonl").open(encoding="utf-8")]
    report = (tmp_path / "parallel.report.md").read_text("utf-8")
    assert "| kept | " + " | ".join(f"{kept[code]:,}" for code in CODES) + " |" in report
    copies = Counter(entry["language"] for entry in refused if entry["reason"] == "copy")
    assert "| copy | " + " | ".join(str(copies[code]) for code in CODES) + " |" in report
    assert report.count("### ") == len(CODES) + len({entry["reason"] for entry in refused})
    page = (tmp_path / "parallel.report.html").read_text("utf-8")
    assert page.startswith("<!doctype html>") and "<script" not in page and "src=" not in page
    assert page.count("<details") == report.count("### ")


def test_the_corpus_can_be_trained_on(english):
    out = english.with_name("translated.jsonl")
    translate.main([*words(english, out), "--translator", "cldr"])
    data = load_parallel(out, CODES, show_progress=False)
    assert len(data) > 60 and sum(image is not None for image in data["image"]) > 20


def test_an_embedder_that_finds_a_pair_unlike_refuses_it(english, tmp_path, monkeypatch):
    class Embedder:
        def encode(self, texts, **_):
            import torch

            return torch.tensor([[1.0, 0.0] if "sopra" not in text else [0.0, 1.0] for text in texts])

    monkeypatch.setattr(translate, "SentenceTransformer", lambda name: Embedder())
    out = tmp_path / "out.jsonl"
    translate.main([*words(english, out), "--translator", "cldr", "--quality", "some-embedder"])
    assert "sopra" not in out.read_text("utf-8")
    refused = (json.loads(line) for line in (tmp_path / "out.refused.jsonl").open(encoding="utf-8"))
    judged = [entry for entry in refused if entry["reason"] == "quality"]
    assert judged and all("sopra" in entry["translation"] for entry in judged)
