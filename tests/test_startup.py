"""Commands answer before torch is imported, and importing the package imports nothing."""

import importlib
import pickle
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path

import fresh
import pytest

import xvlm2vec_st
from recipes.distill.installed_source import Source, source_of, training_fields
from recipes.distill.options import DistillArguments, DistillTrainingArguments
from recipes.distill.parser import build_parser, check_words, parse_values
from recipes.translate import names
from recipes.translate.checks import CHECKS
from xvlm2vec_st.__main__ import DTYPES
from xvlm2vec_st.phi3v import Phi3VConfig
from xvlm2vec_st.utils import import_hook

ROOT = Path(__file__).parents[1]
# What takes from 0.1 to 5 seconds to import.
HEAVY = {"accelerate", "datasets", "huggingface_hub", "matplotlib", "mteb", "numpy", "pandas", "peft", "pyarrow"}
HEAVY |= {"sentence_transformers", "sklearn", "torch", "transformers"}
# Command lines that end without work, and the status that each ends with.
ANSWERED = [
    *((f"recipes {name} --help", 0) for name in ("build", "check", "demo", "distill", "evaluate", "translate")),
    *((f"recipes.{name} --help", 0) for name in ("add_language", "demo", "distill", "evaluate", "translate")),
    ("recipes add-language --help", 0),
    *((f"recipes {name} --help", 0) for name in ("index", "search", "serve")),
    ("recipes --help", 0),
    ("xvlm2vec_st --help", 0),
    ("mmmeb_tasks --help", 0),
    ("recipes build", 2),
    ("recipes distill --student s", 2),
    ("recipes distill --student ./none --corpus c --languages it --output-dir o", 2),
    ("recipes distill --student s --corpus c --languages it --output-dir o --eval-strategy often", 2),
    ("recipes distill --student s --corpus c --languages it --output-dir o --learning-rate -1", 2),
    ("recipes distill --config none.yaml", 2),
    ("recipes translate --languages it --out o --dtype fp8", 2),
    ("recipes evaluate m --batch-size 0", 2),
    ("recipes add-language m", 2),
    ("recipes demo --queries 0", 2),
    ("mmmeb_tasks check", 2),
]


def python(code: str) -> str:
    """What a fresh Python prints."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_help_and_refusals_import_none_of_the_large_libraries():
    printed = python(f"""
        import contextlib, io, runpy, sys, xvlm2vec_st
        for line, status in {ANSWERED}:
            name, *words = line.split()
            sys.argv, out = [name, *words], io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                try:
                    runpy.run_module(name, run_name="__main__", alter_sys=True)
                except SystemExit as end:
                    found = end.code
            heavy = sorted({HEAVY} & set(sys.modules))
            assert found == status and not heavy and len(out.getvalue()) > 40, (line, found, heavy, out.getvalue())
            print(line)
    """)
    assert printed.splitlines() == [line for line, _ in ANSWERED]


def test_the_library_registers_with_auto_classes_that_are_there_already():
    code = (
        "import sys\nfrom transformers import AutoConfig\n"
        "assert 'phi3_v' not in AutoConfig.for_model.__globals__['CONFIG_MAPPING']\n"
        "import xvlm2vec_st\n"
        "print(AutoConfig.for_model('phi3_v').model_type, 'xvlm2vec_st.phi3v' in sys.modules)"
    )
    done = fresh.python(code, forget=["transformers"])
    assert done.stdout.split() == ["phi3_v", "True"], done.stderr


def test_all_public_names_by_a_star():
    found = {}
    exec("from xvlm2vec_st import *", found)
    assert found.keys() - {"__builtins__"} == set(xvlm2vec_st.__all__) == set(xvlm2vec_st._MODULES)
    assert set(xvlm2vec_st.__all__) < set(dir(xvlm2vec_st))
    for name, module in xvlm2vec_st._MODULES.items():
        assert found[name].__module__ == module or name == "LVLM"
        assert pickle.loads(pickle.dumps(found[name])) is found[name]
    assert pickle.loads(pickle.dumps(Phi3VConfig())).model_type == "phi3_v"


def test_the_help_of_distill_is_that_of_the_classes_themselves():
    light = build_parser((DistillArguments, training_fields()), "d")
    real = build_parser((DistillArguments, DistillTrainingArguments), "d")
    assert light.format_help() == real.format_help()
    assert "--save-strategy {no,steps,epoch,best}" in light.format_help()
    for mine, theirs in zip(light._actions, real._actions, strict=True):
        for key in ("option_strings", "dest", "nargs", "const", "required"):
            assert getattr(mine, key) == getattr(theirs, key), (mine.dest, key)
        assert list(mine.choices or ()) == list(theirs.choices or ()), mine.dest
    names_of = [[each.name for each in fields(kind)] for kind in (training_fields(), DistillTrainingArguments)]
    assert names_of[0] == names_of[1] and len(names_of[0]) > 100


def test_the_first_check_accepts_what_the_classes_accept(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("student: s\nlanguages: [it]\nlr_scheduler_kwargs: {num_cycles: 2}\nbf16: true\n")
    words = ["--config", str(config), "--corpus", "c", "--output-dir", "o", "--eval-strategy", "steps", "--fsdp"]
    words += "--debug underflow_overflow --log-level info --optim sgd --batch-sampler no_duplicates".split()
    words += ["--gradient-checkpointing", "--report-to", "none", "--parallelism-config", "x"]
    check_words(words, None)
    words = words[:-2]  # accelerate has a say in that
    own, light = parse_values(words, None, training_fields())
    mine, real = parse_values(words, None, DistillTrainingArguments)
    assert own == mine and light.keys() == real.keys()
    differ = {key for key in light if str(light[key]) != str(real[key])}
    assert not differ, differ


def test_without_a_source_that_can_be_read_the_check_is_left_to_the_classes(monkeypatch):
    monkeypatch.setattr("recipes.distill.installed_source.source_of", lambda module: Source(module, Path(__file__)))
    training_fields.cache_clear()
    try:
        assert training_fields() is None
        check_words(["--nonsense"], None)
    finally:
        training_fields.cache_clear()


def test_names_in_branches_and_of_large_packages_are_stand_ins(tmp_path):
    file = tmp_path / "m.py"
    lines = ["import torch", "import json as j", "if 1: A = 2", "B = j.dumps(1)", "class C(torch):", "    x: int = 1"]
    file.write_text("\n".join(lines))
    source = Source("m", file)
    assert source.B == "1" and source.C.x == 1 and source.C.__bases__ == (source.torch,)
    assert source.A.__name__ == "A" and isinstance(source.A("any", "value"), source.A)
    with pytest.raises(AttributeError, match="binds no D"):
        source.D  # noqa: B018
    with pytest.raises(ImportError, match="transformers.none has no file"):
        source_of("transformers.none")


def test_names_that_stand_twice_are_the_same():
    from xvlm2vec_st.families.dtypes import DTYPES as TORCH_DTYPES

    assert tuple(CHECKS) == names.CHECKS
    assert DTYPES == tuple(TORCH_DTYPES)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `halves`: `outer` imports `awaited`, then sets `after`."""
    folder = tmp_path / "halves"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "awaited.py").write_text("")
    (folder / "outer.py").write_text("import halves.awaited\nafter = 1\n")
    (folder / "broken.py").write_text("import halves.awaited\nraise RuntimeError('broken')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    yield "halves"
    for name in [name for name in sys.modules if name.partition(".")[0] == "halves"]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["outer", "awaited"])
def test_a_call_waits_until_the_outermost_import_is_whole(package, name):
    seen = []

    def call():
        from halves.outer import after

        seen.append(after)

    import_hook.call_after_import("halves.awaited", call, packages=[package])
    importlib.import_module("halves")
    assert seen == []
    importlib.import_module(f"halves.{name}")
    assert seen == [1]
    module = sys.modules["halves.outer"]
    assert type(module.__loader__) is type(module.__spec__.loader) is not import_hook.Loader
    import_hook.call_after_import("halves.awaited", call, packages=[package])  # it is there: at once
    assert seen == [1, 1]


def test_a_call_that_was_prevented_comes_with_the_next_import(package):
    seen = []
    import_hook.call_after_import("halves.awaited", lambda: seen.append(1), packages=[package])
    with pytest.raises(RuntimeError, match="broken"):
        importlib.import_module("halves.broken")
    assert seen == []
    importlib.import_module("halves.outer")
    assert seen == [1]


def test_what_a_call_raises_ends_the_import(package):
    def fail():
        raise RuntimeError("no torch")

    import_hook.call_after_import("halves.awaited", fail, packages=[package])
    with pytest.raises(RuntimeError, match="no torch"):
        importlib.import_module("halves.outer")
