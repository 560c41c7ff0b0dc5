"""Configuration files: the published one, and what is wrong in others."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

import xvlm2vec_st.phi3v  # noqa: F401
from mmmeb_tasks.mini.write import write_corpus
from recipes.distill import command as distill
from recipes.distill.parser import parse_arguments
from xvlm2vec_st import build

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "recipes" / "configs" / "xvlm2vec.yaml"
GOLDEN = ROOT / "tests" / "golden" / "phi3v"
NEEDED = ["--corpus", "c.jsonl", "--output-dir", "o"]


def parsed(*argv):
    """The options of both kinds in one namespace."""
    arguments, training = parse_arguments([*map(str, argv)], None)
    return SimpleNamespace(**vars(training) | vars(arguments), arguments=arguments, training=training)


def config(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_the_published_setting_is_that_of_the_paper_and_starts_from_the_names_of_the_readme():
    """The authors' setting."""
    args = parsed("--config", PUBLISHED, *NEEDED)
    readme = (ROOT / "README.md").read_text()
    assert args.student == "microsoft/Phi-3.5-vision-instruct" and args.student in readme
    assert args.adapter == "TIGER-Lab/VLM2Vec-LoRA" and args.adapter in readme
    assert args.languages == ["it", "es", "fr", "de"]
    assert (args.num_train_epochs, args.learning_rate, args.warmup_steps, args.weight_decay) == (1, 1e-5, 0, 0)
    assert args.max_grad_norm == 0.3
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (8, 4)
    assert args.bf16 and args.activation_checkpointing and args.train_vision and not args.lora_rank
    assert args.activation_checkpointing_kwargs == {"use_reentrant": False}
    assert (args.image_size, args.num_crops) == (1344, 4)
    assert (args.image_part, args.distance_metric, args.english_weight) == (False, "mse", 0.5)
    assert args.max_steps == -1 and args.similarity_weight == 0 and not args.matryoshka_dims
    assert args.lr_scheduler_type == "cosine"


def test_every_value_of_the_published_file_has_a_reason():
    """A comment on its line, or over its group."""
    blocks = PUBLISHED.read_text().split("\n\n")
    assert all(block.lstrip().startswith("#") or "#" in block for block in blocks)
    keys = [key for block in blocks for key in (yaml.safe_load(block) or {})]
    assert sorted(keys) == sorted(yaml.safe_load(PUBLISHED.read_text()))


def test_a_tiny_twin_runs_through_the_same_file(tmp_path):
    """The golden Phi-3.5-vision and its adapter; what is smaller is named here, all else is the file's."""
    corpus = write_corpus(tmp_path / "corpus", ["en", "it", "es", "fr", "de"], scenes=5) / "parallel.jsonl"
    smaller = ["--per-device-train-batch-size", "2", "--eval-rows", "2", "--image-size", "336"]
    smaller += [
        "--dataloader-num-workers",
        "0",
        "--logging-steps",
        "1",
        "--learning-rate",
        "1e-3",
        "--report-to",
        "none",
    ]
    where = ["--student", str(GOLDEN), "--adapter", str(GOLDEN / "adapter_lora"), "--corpus", str(corpus)]
    out = distill.main(["--config", str(PUBLISHED), *where, *smaller, "--output-dir", str(tmp_path / "out")])
    log = json.loads((out / "training_log.json").read_text())
    assert len([entry for entry in log if "error_de" in entry]) == 1  # 8 rows, 2 x 4 an update
    start = build(GOLDEN, tmp_path / "start", adapter=GOLDEN / "adapter_lora", num_crops=4)
    before, after = (load_file(folder / "model.safetensors") for folder in (start, out))
    assert before.keys() == after.keys() and {t.dtype for t in after.values()} == {t.dtype for t in before.values()}
    moved = {key for key in before if not before[key].equal(after[key])}
    assert any("img_processor" in key for key in moved) and any("layers" in key for key in moved)
    model = SentenceTransformer(str(out))
    assert model.encode("Ein Hund").shape == (64,)
    assert model[0].processor.image_processor.num_crops == 4


def test_the_command_line_overrides_the_file(tmp_path):
    path = config(
        tmp_path,
        "student: a\nlanguages: [it, pt-BR]\nbf16: true\nper-device-train-batch-size: 3\nlearning_rate: 1e-4\n",
    )
    args = parsed("--config", path, *NEEDED)
    assert (args.student, args.languages, args.bf16, args.per_device_train_batch_size) == (
        "a",
        ["it", "pt-BR"],
        True,
        3,
    )
    assert args.learning_rate == 1e-4, "YAML reads 1e-4 as a text"
    args = parsed("--config", path, *NEEDED, "--bf16", "false", "--per-device-train-batch-size", "5")
    assert (args.bf16, args.per_device_train_batch_size) == (False, 5)


def test_several_corpora_are_one(tmp_path):
    args = parsed(
        "--config", config(tmp_path, "student: a\nlanguages: it\ncorpus: [x.jsonl, y.jsonl]\n"), "--output-dir", "o"
    )
    assert args.corpus == ["x.jsonl", "y.jsonl"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learningrate: 1e-5", "no option 'learningrate'; the nearest one is 'learning_rate'"),
        ("per_device_train_batchsize: 3", "the nearest one is 'per_device_train_batch_size'"),
        ("config: other.yaml", "no option 'config'"),
        ("- a\n- b", "a mapping of options to values is needed, got list"),
        ("", "a mapping of options to values is needed, got NoneType"),
        ("languages: [it, no]", "languages: YAML reads no as False; quote it"),
        ("languages: no", "languages: YAML reads no as False; quote it"),
    ],
)
def test_a_bad_file_is_refused_with_the_nearest_name(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        parsed("--config", config(tmp_path, text), *NEEDED)


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match="none.yaml: no such configuration file"):
        parsed("--config", tmp_path / "none.yaml", *NEEDED)


def corpus_of(tmp_path, rows):
    path = tmp_path / "parallel.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "1", "en": "a"}, {"id": "2", "en": "b"}], "no row has language 'it'"),
        (
            [{"id": "1", "en": "a", "it": "x"}] * 2,
            "id '1' stands in two rows of the corpus; give each row its own",
        ),
    ],
)
def test_bad_corpora(tmp_path, rows, message):
    argv = ["--student", str(GOLDEN), "--corpus", corpus_of(tmp_path, rows), "--languages", "it"]
    with pytest.raises(ValueError, match=message):
        distill.main([*map(str, argv), "--output-dir", str(tmp_path / "out")])
    assert not (tmp_path / "out.partial").exists()


def test_fewer_rows_than_an_update_takes(tmp_path):
    rows = [{"id": str(n), "en": "a", "it": "x"} for n in range(7)]
    argv = ["--student", str(GOLDEN), "--corpus", corpus_of(tmp_path, rows), "--languages", "it"]
    more = [
        "--per-device-train-batch-size",
        "4",
        "--gradient-accumulation-steps",
        "2",
        "--eval-rows",
        "0",
        "--output-dir",
        str(tmp_path / "out"),
    ]
    with pytest.raises(
        ValueError, match="an update takes 4 rows x --gradient-accumulation-steps 2 x 1 processes, and .* 7 rows"
    ):
        distill.main([*map(str, argv), *more])


def test_best_needs_evaluations_that_fit(tmp_path):
    with pytest.raises(
        ValueError, match="--load_best_model_at_end requires the saving steps to be a .*multiple of the evaluation"
    ):
        distill.main(
            ["--student", "a", "--languages", "it", *NEEDED, "--load-best-model-at-end", "--eval-steps", "300"]
        )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lora-rank", "0"], "--lora-rank 0: pass 1 or more, or leave it out"),
        (["--max-steps", "0"], "--max-steps 0: pass 1 or more"),
        (["--tokens-per-batch", "0"], "--tokens-per-batch 0: pass 1 or more"),
        (["--muon-learning-rate", "0"], "--muon-learning-rate 0.0: pass a rate above 0"),
        (["--dora"], "--dora does nothing without --lora-rank; pass both"),
        (["--keep-adapter"], "--keep-adapter does nothing without --lora-rank"),
        (["--temperature", "0.1"], "--temperature does nothing without --similarity-weight"),
        (["--lora-rank", "4", "--keep-adapter", "--adapter", "b"], "build it first .*, and pass --student START"),
        (["--lora-rank", "4", "--keep-adapter", "--num-crops", "4"], "build it first"),
        (["--eval-steps", "1", "--eval-rows", "0"], "--eval-steps 1 with --eval-rows 0: no rows"),
        (["--student", "./none"], "./none: no such folder"),
        (["--teacher", "/none"], "/none: no such folder"),
        (["--adapter", "a/b/c"], "a/b/c: no such folder"),
    ],
)
def test_what_would_do_nothing_or_another_thing_is_refused(more, message):
    with pytest.raises(ValueError, match=message):
        parsed("--student", "a", "--languages", "it", *NEEDED, *more)


@pytest.mark.parametrize("words", [["it,no"], ["it", "no"], ["it, no"]])
def test_commas_or_spaces_between_languages(tmp_path, words):
    assert parsed("--student", "a", "--languages", *words, *NEEDED).languages == ["it", "no"]
    path = config(tmp_path, f"student: a\nlanguages: {json.dumps(words)}\n")
    assert parsed("--config", path, *NEEDED).languages == ["it", "no"]


def test_options_that_need_each_other_go_together():
    given = ["--student", "a", "--languages", "it", *NEEDED]
    assert parsed(*given, "--similarity-weight", "1", "--temperature", "0.1").temperature == 0.1
    assert parsed(*given, "--similarity-weight", "1").temperature is None
    assert parsed(*given, "--lora-rank", "4", "--dora", "--max-steps", "-1").dora
