"""Every program that writes a result is killed again and again: the result is the same, nothing else stays.

XVLM2VEC_KILLS=1000 python -m pytest -m slow tests/test_kills.py    # so many kills; 204 by default
"""

import json
import math
import os
import random
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import processes
import pytest
import tiny
from kills import REFUSED, contents, killed_after, killed_before, to_the_end
from toys import write_published

from mmmeb_tasks.data import download as data
from mmmeb_tasks.mini import TEACHER, write
from recipes import demo
from recipes.add_language import command as add_language
from recipes.distill import command as distill
from recipes.evaluate import command as evaluate
from recipes.translate import command as translate
from xvlm2vec_st import build

SHORT = ["--tasks", "c", "--queries", "100", "--eval-rows", "4", "--batch-size", "4", "--steps", "3"]


@dataclass
class Program:
    """What is run in an empty folder, again and again, and what it leaves there.

    Args:
        run: takes the shared inputs.
        out: what appears whole or not at all.
        result: what must be the same, of the folder where it ran.
        prepare: what is there before.
        keeps: what else may stay.
    """

    run: Callable[["Inputs"], object]
    out: str = "out"
    result: Callable[[Path], object] = lambda folder: contents(folder / "out")
    prepare: Callable[[Path], object] = lambda folder: None
    keeps: tuple[str, ...] = ()


@dataclass
class Inputs:
    """What the programs read."""

    corpus: Path
    benchmark: Path
    published: Path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A corpus, MMMEBMini with few rows, and the published layout with its images packed."""
    folder = tmp_path_factory.mktemp("inputs")
    corpus = write.write_corpus(folder / "corpus", ["en", "it", "de"], scenes=10) / "parallel.jsonl"
    benchmark = write.write_benchmark(folder / "benchmark", queries=100)
    for path in benchmark.glob("datasets/*.jsonl"):
        path.write_text("\n".join(path.read_text("utf-8").splitlines()[:20]) + "\n", "utf-8")
    whole, published = write_published(folder / "whole"), folder / "snapshots" / "0123456789abcdef"
    shutil.copytree(whole / "datasets", published / "datasets")
    with zipfile.ZipFile(published / "images.zip", "w") as archive:
        for path in sorted(whole.glob("*_images/*.jpg")):
            archive.write(path, path.relative_to(whole).as_posix())
    tiny.embedder("llava")
    shutil.copytree(TEACHER, folder / "model")
    return Inputs(corpus, benchmark, published)


# ---- The programs ----


def distilling(*more):
    """`recipes.distill`, resumed where there is something to resume."""

    def run(inputs):
        words = ["--student", str(tiny.embedder("llava")), "--corpus", str(inputs.corpus), "--output-dir", "out"]
        words += [
            "--languages",
            "it,de",
            "--per-device-train-batch-size",
            "4",
            "--max-steps",
            "6",
            "--learning-rate",
            "1e-3",
        ]
        words += ["--eval-rows", "0", "--save-steps", "1", "--report-to", "none", *more]
        distill.main(words + (["--resume-from-checkpoint"] if Path("out.partial/arguments.json").is_file() else []))

    return run


def two_processes(inputs):
    """The same in two processes over gloo; a refusal of theirs is one of the program."""
    run = distilling()
    try:
        processes.together("ddp.yaml", lambda rank: run(inputs) and None)
    except AssertionError as error:
        if "ValueError: " in str(error):
            raise ValueError(str(error)) from error
        raise


def weights(folder):
    """The bytes of a model, and the names of its files but TensorBoard's, which hold the time."""
    names = sorted(name for name in contents(folder / "out") if not name.startswith("runs/"))
    return (folder / "out" / "model.safetensors").read_bytes(), names


def an_old_model(folder):
    """What --overwrite replaces."""
    (folder / "out").mkdir()
    (folder / "out" / "model.safetensors").write_bytes(b"old")


def translating(inputs):
    """`recipes.translate`, in small batches."""
    words = ["--corpus", str(inputs.corpus), "--languages", "pt", "zh", "--out", "out", "--translator", "cldr"]
    translate.main([*words, "--tokens-per-batch", "30"])


def translated(folder):
    """The corpus, what was refused, and that the reports are there."""
    assert (folder / "out.report.md").stat().st_size and (folder / "out.report.html").stat().st_size
    return (folder / "out").read_bytes(), (folder / "out.refused.jsonl").read_bytes()


def evaluating(inputs):
    """`recipes.evaluate` of one model on two tasks."""
    os.environ["MMMEB_MINI_DATA"] = str(inputs.benchmark)
    words = ["../model", "--tasks", "MiniT2IRanking", "MiniClassification", "--languages", "eng", "ita"]
    evaluate.main([*words, "--resamples", "50", "--out", "out"])


def report(folder):
    """All of a report but mteb's own files, which say when they were written."""
    names = ("scores.md", "scores.csv", "queries.csv", "pairs.csv", "queries.html", "images")
    found = contents(folder / "out")
    return {name: data for name, data in found.items() if name.split("/")[0] in names}


def mteb_run(inputs):
    """The stock command of mteb."""
    from mteb.cli import main

    os.environ["MMMEB_MINI_DATA"] = str(inputs.benchmark)
    words = ["-m", "../model", "-t", "MiniT2IRanking", "MiniClassification", "-l", "eng", "ita"]
    sys.argv = ["mteb", "run", *words, "--output-folder", "out", "-v", "0"]
    try:
        main()
    except SystemExit as error:
        if error.code:
            raise


def mteb_scores(folder):
    """The scores of every task and language."""
    found = {}
    for path in (folder / "out").rglob("Mini*.json"):
        scores = json.loads(path.read_text("utf-8"))["scores"]["test"]
        found[path.name] = sorted((one["hf_subset"], one["main_score"]) for one in scores)
    return found


def adding(inputs):
    """`recipes.add_language` to the mini teacher."""
    add_language.main([str(TEACHER), "pt", "--mini", "20", "--out", "out", *SHORT])


def demonstrating(inputs):
    """`recipes.demo`."""
    demo.main(["--out", "out", "--scenes", "20", *SHORT])


def with_report(*names):
    """The weights, and the values of a report that do not depend on the time."""

    def result(folder):
        (path,) = [p for p in (folder / "out" / "report").glob("*.json")]
        report = json.loads(path.read_text("utf-8"))
        return weights(folder), [report[name] for name in names]

    return result


def unpacking(inputs):
    """MMMEB's data into the cache."""
    os.environ["MMMEB_CACHE"] = "."
    data.unpacked(inputs.published, revision="out")


def benchmark_in_cache(inputs):
    """MMMEBMini into the cache."""
    os.environ["MMMEB_CACHE"] = "."
    real = write.write_benchmark
    write.write_benchmark = lambda out, languages: real(out, languages, queries=100)
    write.ensure_mini(["en", "it"])


CACHED = f"mini-{'[0-9a-f]' * 12}"
PROGRAMS = {
    "distill": Program(distilling(), result=weights),
    "distill --cache": Program(distilling("--cache", "cache"), result=weights, keeps=("cache",)),
    "distill --stream": Program(distilling("--stream"), result=weights),
    "distill --lora": Program(distilling("--lora-rank", "2"), result=weights),
    "distill --overwrite": Program(distilling("--overwrite"), result=weights, prepare=an_old_model),
    "distill, two processes": Program(two_processes, result=weights),
    "translate": Program(
        translating, result=translated, keeps=("out.report.md", "out.report.html", "out.refused.jsonl")
    ),
    "evaluate": Program(evaluating, result=report, out="out/queries.html"),
    "mteb run": Program(mteb_run, result=mteb_scores, out=""),
    "build": Program(lambda inputs: build(tiny.checkpoint("llava"), "out")),
    "build --overwrite": Program(
        lambda inputs: build(tiny.checkpoint("llava"), "out", overwrite=True), prepare=an_old_model
    ),
    "add_language": Program(adding, result=with_report("before", "after")),
    "demo": Program(demonstrating, result=with_report("teacher", "student")),
    "mini corpus": Program(lambda inputs: write.write_corpus(Path("out"), ["en", "it"], scenes=60)),
    "mini benchmark": Program(lambda inputs: write.write_benchmark(Path("out"), ["en"], queries=100)),
    "mini benchmark in the cache": Program(
        benchmark_in_cache, out=CACHED, result=lambda folder: contents(next(folder.glob(CACHED)))
    ),
    "unpacking": Program(unpacking, out="data-out", result=lambda folder: contents(folder / "data-out")),
}
KILLS = math.ceil(int(os.environ.get("XVLM2VEC_KILLS", "204")) / len(PROGRAMS))


def leftovers(folder, program):
    """Names that nobody is to see when a program has ended, hidden ones at any time."""
    allowed = [name for name in (*program.keeps, program.out.split("/")[0], "out") if name]
    visible = [path.name for path in folder.iterdir() if not any(map(path.match, allowed))]
    inside = [path for path in folder.rglob("*") if ".part" in path.name or path.name.startswith("tmp")]
    return [*visible, *map(str, inside), *hidden(folder)]


def hidden(folder):
    """Files and folders that `ls` does not show."""
    return [str(path) for path in folder.rglob(".*")]


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_killed_again_and_again_the_result_is_the_same_and_nothing_else_stays(name, inputs, tmp_path_factory):
    program, place = PROGRAMS[name], inputs.corpus.parents[1]  # beside the model that they name relatively
    log, rng = tmp_path_factory.mktemp("log") / "log", random.Random(f"{name} {os.environ.get('SEED', 0)}")

    def fresh(number):
        folder = place / f"{name.replace(' ', '_')}-{number}"
        folder.mkdir()
        program.prepare(folder)
        return folder

    def work(folder):
        def run():
            os.chdir(folder)
            program.run(inputs)

        return run

    def finished(folder):
        old = folder / "out" / "model.safetensors"
        return any(folder.glob(program.out)) and not (old.is_file() and old.read_bytes() == b"old")

    unbroken = fresh("unbroken")
    status, seconds, steps = to_the_end(work(unbroken), log)
    assert status == 0, log.read_text()
    expected = program.result(unbroken)
    assert expected and not leftovers(unbroken, program)

    kills = number = 0
    while kills < KILLS:
        folder, number = fresh(number), number + 1
        for _ in range(2):  # at most two in one run
            if rng.random() < 0.5:
                kills += killed_before(rng.randrange(steps), work(folder), log)
            else:
                kills += killed_after(rng.uniform(0, seconds), work(folder), log)
            assert not hidden(folder)
            if program.out and finished(folder):
                assert program.result(folder) == expected, "it looks finished, and is not"
            if "--overwrite" in name:
                assert finished(folder) or (folder / "out" / "model.safetensors").read_bytes() == b"old"
        whole = program.out and finished(folder)
        status, *_ = to_the_end(work(folder), log)
        assert status == 0 or (whole and status == REFUSED), log.read_text()[-3000:]
        assert program.result(folder) == expected, "another result"
        assert not leftovers(folder, program)
        shutil.rmtree(folder)
