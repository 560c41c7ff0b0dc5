"""New tokens for other scripts: English stays bit by bit, other texts take fewer tokens, rows are means."""

import json

import pytest
import test_distillation_shared as shared
import tiny
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    PythonBackend,
)

import xvlm2vec_st
from mmmeb_tasks.mini import TEACHER
from mmmeb_tasks.mini.world import load_world
from mmmeb_tasks.mini.write import write_corpus
from recipes.distill import command as distill
from xvlm2vec_st import DistillationTrainer, MultilingualDistillationLoss, build
from xvlm2vec_st.__main__ import main
from xvlm2vec_st.building.pieces import count_tokens, tokens_per_word
from xvlm2vec_st.building.token_choice import Choice, NewToken, choose_tokens
from xvlm2vec_st.building.vocabulary import (
    Extension,
    check_tokenizer,
    extend_embeddings,
    extend_model,
    extend_tokenizer,
    new_token_ids,
    token_tables,
)
from xvlm2vec_st.data.dataset import load_parallel
from xvlm2vec_st.distillation.fingerprint import fingerprint

NEW = 150
# What the corpus does not hold: ASCII is cut as before, whatever it says.
UNSEEN = ["Find a caption: 3 x (7 + 2)?", "def f(x):\n    return x", "  spaces   and\ttabs\n", "zqxj " * 30]


@pytest.fixture(scope="module")
def names():
    """`{language: names}` of the mini world's things."""
    languages = ["en", "ru", "zh", "ja", "de"]
    concepts = load_world(languages).concepts
    return {language: [concept.names[language] for concept in concepts] for language in languages}


@pytest.fixture(scope="module")
def corpus(names, tmp_path_factory):
    """The names as a corpus; one English text has a letter of another script."""
    texts = names | {"en": ["dog (щ)", *names["en"][1:]]}
    file = tmp_path_factory.mktemp("vocabulary") / "parallel.jsonl"
    lines = [{"id": str(i)} | {code: own[i] for code, own in texts.items()} for i in range(len(names["en"]))]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return file


@pytest.fixture(scope="module")
def extended(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("extended") / "out"
    more = ["--extend-vocabulary", str(corpus), "--new-tokens", str(NEW), "--languages", "ru,ja"]
    assert main(["build", str(TEACHER), str(out), *more]) == 0
    return out


def english(corpus):
    return [json.loads(line)["en"] for line in corpus.read_text("utf-8").splitlines()]


def test_english_keeps_its_embeddings_and_others_take_fewer_tokens(extended, corpus, names, teacher):
    model, image = SentenceTransformer(str(extended)), tiny.random_image()
    inputs = [*english(corpus), *UNSEEN, {"image": image, "text": "What is left of the dog?"}]
    assert (model.encode(inputs) == teacher.encode(inputs)).all()
    assert not (model.encode("красное яблоко") == teacher.encode("красное яблоко")).all()
    before, after = (tokens_per_word(each.tokenizer, names) for each in (teacher, model))
    assert after["ru"].tokens_per_word < 0.5 * before["ru"].tokens_per_word
    assert after["ja"].tokens_per_character < 0.6 * before["ja"].tokens_per_character
    assert after["ru"].byte_share < 0.05 < 0.9 < before["ru"].byte_share
    assert before["en"] == after["en"] and before["de"].tokens >= after["de"].tokens
    listed = json.loads((extended / "new_tokens.json").read_text("utf-8"))["languages"]["ru"]
    assert listed["before"]["tokens_per_word"] == before["ru"].tokens_per_word
    assert listed["after"]["tokens_per_word"] == after["ru"].tokens_per_word


def test_a_new_row_is_the_mean_of_its_pieces_and_old_rows_stay(extended, teacher):
    model = SentenceTransformer(str(extended))
    old, new = (each[0].model.get_input_embeddings().weight for each in (teacher, model))
    tokens = json.loads((extended / "new_tokens.json").read_text("utf-8"))["tokens"]
    assert [token["id"] for token in tokens] == [*range(len(old), len(old) + NEW)] == new_token_ids(extended)
    assert torch.equal(new[: len(old)], old) and len(new) == len(old) + NEW
    pieces = {token["token"]: token["pieces"] for token in tokens}
    assert all(len(own) > 1 and max(own) < len(old) for own in pieces.values())
    for token in tokens:
        assert torch.allclose(new[token["id"]], old[token["pieces"]].mean(0), atol=1e-6)
    used = {number for number in model.tokenizer("красное яблоко, リンゴ")["input_ids"] if number >= len(old)}
    assert used
    for number in used:  # the pieces are those that the old tokenizer makes of the same text
        token = model.tokenizer.convert_ids_to_tokens(number)
        assert "".join(teacher.tokenizer.convert_ids_to_tokens(pieces[token])) == token


def test_pieces_that_meet_in_an_english_text_are_not_joined(corpus, tmp_path, teacher):
    text = english(corpus)[0]
    before = teacher.tokenizer(text)["input_ids"]
    for name, keeps in (("dog", False), (text, True)):
        file, model = tmp_path / "parallel.jsonl", SentenceTransformer(str(TEACHER))
        file.write_text(corpus.read_text("utf-8").replace(json.dumps(text), json.dumps(name)), "utf-8")
        extend_model(model, [file], ["ru"], 250)
        assert (model.tokenizer(text)["input_ids"] == before) is keeps


def test_join_ascii_saves_polish_pieces_and_keeps_the_corpus_english(tmp_path, teacher):
    concepts = load_world(["en", "pl", "nl"]).concepts
    names = {code: [concept.names[code] for concept in concepts] for code in ("en", "pl", "nl")}
    file = tmp_path / "parallel.jsonl"
    # Each thing twice: a token occurs twice or more.
    rows = [{"id": str(i)} | {code: names[code][i // 2] for code in names} for i in range(2 * len(concepts))]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    plain = SentenceTransformer(str(TEACHER))
    without = extend_model(plain, [file], ["pl", "nl"], 600)
    out = tmp_path / "out"
    more = ["--extend-vocabulary", str(file), "--new-tokens", "600", "--languages", "pl,nl", "--join-ascii"]
    assert main(["build", str(TEACHER), str(out), *more]) == 0
    model = SentenceTransformer(str(out))
    after = tokens_per_word(model.tokenizer, names)
    assert not any(token.token.lstrip("Ġ▁").isascii() for token in without.tokens)
    listed = json.loads((out / "new_tokens.json").read_text("utf-8"))["tokens"]
    assert sum(token["token"].lstrip("Ġ▁").isascii() for token in listed) > 200
    for code in ("pl", "nl"):
        assert after[code].tokens_per_word < 0.6 * without.after[code].tokens_per_word
    assert (model.encode(names["en"]) == teacher.encode(names["en"])).all()
    assert not (model.encode("paddenstoel") == teacher.encode("paddenstoel")).all()


def test_kept_languages_are_cut_as_before(tmp_path):
    concepts = load_world(["en", "nl", "pl"]).concepts
    rows = [{"id": str(i)} | concept.names for i, concept in enumerate(concepts * 2)]
    file = tmp_path / "parallel.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    tokens = {}
    for keep in ((), ("pl",)):
        model = SentenceTransformer(str(TEACHER))
        extend_model(model, [file], ["nl"], 600, join_ascii=True, keep=keep)
        tokens[keep] = {
            code: [model.tokenizer(concept.names[code])["input_ids"] for concept in concepts] for code in ("nl", "pl")
        }
    with pytest.raises(ValueError, match="keep: 'nl' is in languages too; a language gets new tokens or is kept"):
        extend_model(model, [file], ["nl"], 600, keep=["nl"])
    before = [SentenceTransformer(str(TEACHER)).tokenizer(concept.names["pl"])["input_ids"] for concept in concepts]
    assert tokens["pl",]["pl"] == before != tokens[()]["pl"]
    assert sum(map(len, tokens["pl",]["nl"])) < 1.1 * sum(map(len, tokens[()]["nl"]))


def sentencepiece():
    """A LLaMA's tokenizer: "▁", bytes for what it lacks, and no words of its own."""
    letters = [*"▁abcdefghijklmnopqrstuvwxyz()?,.2", "ab", "▁a"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "а", "о"]
    return LlamaTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[("a", "b"), ("▁", "a")])


def test_sentencepiece_gets_characters_then_words_and_no_token_over_two_words(tmp_path):
    tokenizer = sentencepiece()
    texts = {
        "en": ["a cab, a dog", "café é"],
        "ru": ["вода вода, нога", "нога é"] * 5,
        "zh": ["红苹果22", "绿苹果"] * 4,
    }
    before = {code: count_tokens(tokenizer, own) for code, own in texts.items()}
    cut = [tokenizer(text)["input_ids"] for text in texts["en"]]
    choice = choose_tokens(tokenizer, texts, 40, first=len(tokenizer))
    found = {token.token for token in choice.tokens}
    assert {"в", "д", "н", "г", "苹", "果", "▁вода", "▁нога", "苹果"} <= found
    assert not any("▁" in token[1:] or "," in token or "é" in token or "22" in token for token in found)
    assert all(len(token.pieces) > 1 for token in choice.tokens)
    assert not any(token.isascii() for token in found)
    more = {"pl": ["woda 22, woda 22,", "zupa, zupa"] * 5}
    joined = {token.token for token in choose_tokens(tokenizer, texts | more, 60, first=300, join_ascii=True).tokens}
    assert {"▁woda", "▁zupa", "▁вода"} <= joined and not any(set(token) & {*"2,"} for token in joined)
    extend_tokenizer(tokenizer, choice, texts["en"])
    tokenizer.save_pretrained(tmp_path)
    loaded = LlamaTokenizer.from_pretrained(tmp_path)
    for each in (tokenizer, loaded):
        assert [each(text)["input_ids"] for text in texts["en"]] == cut
        after = {code: count_tokens(each, own) for code, own in texts.items()}
        assert after["en"] == before["en"]
        assert after["ru"].tokens < 0.4 * before["ru"].tokens and after["zh"].tokens < 0.5 * before["zh"].tokens
        assert after["zh"].byte_share == 0 < before["zh"].byte_share
        assert each.decode(each("вода, нога 苹果")["input_ids"], skip_special_tokens=True) == "вода, нога 苹果"


def test_the_report_counts_parts_of_characters_and_unknown_words(teacher):
    count = count_tokens(teacher.tokenizer, ["dog", "жж"])
    assert (count.words, count.characters, count.tokens, count.byte_tokens) == (2, 5, 5, 4)
    word_pieces = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "dog": 5})
    count = count_tokens(word_pieces, ["dog dog", "жж dog"])
    assert (count.tokens, count.unknown_tokens, count.unknown_share, count.byte_share) == (4, 1, 0.25, 0)
    count = count_tokens(sentencepiece(), ["аж"])
    assert (count.tokens, count.byte_tokens, count.tokens_per_character) == (4, 2, 2)


def test_rows_beyond_the_vocabulary_are_used_first_and_a_head_of_its_own_grows_too(corpus):
    model = SentenceTransformer(str(tiny.embedder("llava")))
    rows, used = model[0].model.get_input_embeddings().num_embeddings, len(model.tokenizer)
    assert used < rows
    few = extend_model(model, [corpus], ["ru"], rows - used)
    assert [token.id for token in few.tokens] == [*range(used, rows)]
    assert model[0].model.get_input_embeddings().num_embeddings == rows
    more = extend_model(model, [corpus], ["ja"], 10)
    assert model[0].model.get_input_embeddings().num_embeddings == rows + 10 == len(model.tokenizer)
    assert model[0].model.config.get_text_config().vocab_size == rows + 10
    assert not {token.token for token in few.tokens} & {token.token for token in more.tokens}

    config = LlamaConfig(vocab_size=300, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    whole = LlamaForCausalLM(config).bfloat16()
    head, table = whole.lm_head.weight.detach().clone(), whole.model.embed_tokens.weight.detach().clone()
    assert len(token_tables(whole)) == 2
    extend_embeddings(whole, [few.tokens[0]._replace(id=300, pieces=(5, 7, 8))])
    for before, after in ((head, whole.lm_head.weight), (table, whole.model.embed_tokens.weight)):
        assert after.dtype == torch.bfloat16 and len(after) == 301 and torch.equal(after[:300], before)
        assert torch.equal(after[300], before[[5, 7, 8]].float().mean(0).bfloat16())


@tiny.every_family
def test_every_family_keeps_english_and_takes_new_tokens(family, corpus, tmp_path):
    out = build(tiny.checkpoint(family), tmp_path / "o", extend_vocabulary=[corpus], new_tokens=120, languages=["ru"])
    before, after = tiny.stock(family), SentenceTransformer(str(out))
    inputs = ["a dog", {"image": tiny.random_image(), "text": "what is it?"}]
    assert (before.encode(inputs) == after.encode(inputs)).all()
    ids = after.tokenizer("собака")["input_ids"]
    assert max(ids) >= len(before.tokenizer) and len(ids) < len(before.tokenizer("собака")["input_ids"])
    assert torch.isfinite(torch.as_tensor(after.encode("собака"))).all()


def test_shared_prefixes_equal_the_plain_route_with_new_tokens(tmp_path, monkeypatch):
    languages = ("ru", "ja", "zh")
    folder = write_corpus(tmp_path / "corpus", ["en", *languages], scenes=4)
    rows = [dict(row) for row in load_parallel(folder / "parallel.jsonl", languages, show_progress=False)][:6]
    files = [folder / "parallel.jsonl"]
    out = build(TEACHER, tmp_path / "o", extend_vocabulary=files, new_tokens=50, languages=languages)
    monkeypatch.setattr(shared, "LANGUAGES", languages)
    student, frozen = shared.shaken(out, 1), xvlm2vec_st.SentenceTransformer(str(out)).double()
    texts = [row[code] for row in rows for code in languages]
    assert {number for own in student.tokenizer(texts)["input_ids"] for number in own} & {*new_token_ids(out)}
    shared.assert_same(MultilingualDistillationLoss(student, frozen, image_part=True), rows)


# ---- distill ----


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "corpus"
    return write_corpus(folder, ["en", "ru", "ja"], scenes=12) / "parallel.jsonl"


def command(scenes, out, *more):
    base = ["--student", TEACHER, "--corpus", scenes, "--languages", "ru,ja", "--output-dir", out, "--new-tokens", 60]
    short = ["--per-device-train-batch-size", 4, "--max-steps", 4, "--learning-rate", 1e-3, "--eval-rows", 0]
    return [str(word) for word in (*base, *short, "--weight-decay", 0.1, "--report-to", "none", *more)]


def weights(folder):
    return SentenceTransformer(str(folder)).state_dict()


EMBEDDINGS = "0.model.language_model.embed_tokens.weight"


def changed(before, after):
    """The names of other parameters than the embeddings that differ; (old rows, new rows) of the embeddings."""
    names = {name for name in before if name != EMBEDDINGS and not torch.equal(before[name], after[name])}
    old = len(before[EMBEDDINGS])
    return names, torch.equal(before[EMBEDDINGS], after[EMBEDDINGS][:old]), after[EMBEDDINGS][old:]


@pytest.mark.parametrize("more", [[], ["--muon-learning-rate", "0.01"]], ids=["adamw", "muon"])
def test_first_the_new_rows_learn_alone_then_all(scenes, tmp_path, more, teacher):
    before = teacher.state_dict()
    begun = SentenceTransformer(str(TEACHER))
    start = extend_model(begun, [scenes], ["ru", "ja"], 60)
    first = begun.state_dict()[EMBEDDINGS][-60:]
    alone = distill.main(command(scenes, tmp_path / "a", "--embedding-steps", 2, "--max-steps", 2, *more))
    assert new_token_ids(alone) == [token.id for token in start.tokens]
    names, same, rows = changed(before, weights(alone))
    assert not names and same and rows.shape == first.shape
    used = {number for text in texts_of(scenes) for number in begun.tokenizer(text)["input_ids"]}
    assert used & {token.id for token in start.tokens}
    assert 0 < (rows != first).any(1).sum() <= 60
    assert (rows - first).abs().max() > 1e-4
    then = distill.main(command(scenes, tmp_path / "b", "--embedding-steps", 2, *more))
    names, same, _ = changed(before, weights(then))
    assert not same and any("language_model.layers" in name for name in names)
    assert not any("vision_tower" in name for name in names)


def texts_of(file):
    return [json.loads(line)["ru"] for line in file.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("steps", [1, 3], ids=["within", "after"])
def test_a_stopped_run_resumes_to_the_same_weights(scenes, tmp_path, monkeypatch, steps):
    more = ["--embedding-steps", 2, "--save-steps", 1]
    unbroken = weights(distill.main(command(scenes, tmp_path / "unbroken", *more)))
    original, done = DistillationTrainer.training_step, []

    def step(self, *args, **kwargs):
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "training_step", step)
    with pytest.raises(KeyboardInterrupt):
        distill.main(command(scenes, tmp_path / "out", *more))
    monkeypatch.setattr(DistillationTrainer, "training_step", original)
    assert (tmp_path / "out.partial" / f"checkpoint-{steps}").is_dir()
    states = torch.load(tmp_path / "out.partial" / f"checkpoint-{steps}" / "optimizer.pt")
    assert {group["weight_decay"] for group in states["param_groups"]} == {0.1, 0.0}
    resumed = weights(distill.main([*command(scenes, tmp_path / "out", *more), "--resume-from-checkpoint"]))
    assert resumed.keys() == unbroken.keys()
    assert all(torch.equal(resumed[name], unbroken[name]) for name in resumed)


def test_the_teacher_is_the_model_before_the_extension_and_its_targets_are_kept(scenes, tmp_path, teacher):
    out = distill.main(command(scenes, tmp_path / "out", "--max-steps", 1, "--cache", tmp_path / "cache"))
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.name == f"{fingerprint(teacher)}-sentence"
    assert sum(file.stat().st_size for file in folder.iterdir()) > 0
    assert len(SentenceTransformer(str(out)).tokenizer) == len(teacher.tokenizer) + 60


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lora-rank", "4"], "--lora-rank with --new-tokens: an adapter does not train embeddings.*--student START"),
        (["--image-part"], "--image-part with --new-tokens: the teacher keeps its own tokenizer"),
        (["--new-tokens-for", "ru,it"], "--new-tokens-for it: not among --languages ru ja; add it there"),
        (["--new-tokens", "0"], "--new-tokens 0: pass 1 or more, or leave it out"),
        (["--embedding-steps", "-1"], "--embedding-steps -1: pass 1 or more, or leave it out"),
    ],
)
def test_options_that_do_not_go_together_are_refused(scenes, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        distill.main(command(scenes, tmp_path / "out", *more))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [["--embedding-steps", "2"], ["--join-ascii"], ["--new-tokens-for", "ru"]])
def test_options_that_need_new_tokens(scenes, tmp_path, option):
    words = command(scenes, tmp_path / "out", *option)
    place = words.index("--new-tokens")
    with pytest.raises(ValueError, match=f"{option[0]} does nothing without --new-tokens"):
        distill.main([*words[:place], *words[place + 2 :]])


# ---- What is refused ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"new_tokens": 0}, "new_tokens is 0; pass a whole number of 1 or more"),
        ({"new_tokens": True}, "new_tokens is True; pass a whole number of 1 or more"),
        ({"new_tokens": None}, "extend_vocabulary and languages without new_tokens; a larger vocabulary needs all"),
        ({"languages": []}, "extend_vocabulary and new_tokens without languages"),
        ({"extend_vocabulary": ["none.jsonl"]}, "none.jsonl: no such corpus file"),
        ({"languages": ["fi"]}, "languages: no row of .* has 'fi'; add a column 'fi', or leave the language out"),
        ({"languages": ["en"]}, "English is the source of every row"),
        ({"keep_adapter": True}, "extend_vocabulary with keep_adapter: the embeddings stay in the base's files"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_written(corpus, tmp_path, arguments, message):
    given = {"extend_vocabulary": [corpus], "new_tokens": 5, "languages": ["ru"]} | arguments
    with pytest.raises(ValueError, match=message):
        build(TEACHER, tmp_path / "out", **given)
    assert list(tmp_path.iterdir()) == []


def test_join_ascii_needs_new_tokens(tmp_path):
    with pytest.raises(ValueError, match="join_ascii does nothing without new_tokens; pass both, or leave it out"):
        build(TEACHER, tmp_path / "out", join_ascii=True)
    assert list(tmp_path.iterdir()) == []


def test_distill_joins_ascii_if_asked(tmp_path):
    scenes = write_corpus(tmp_path / "corpus", ["en", "pl"], scenes=12) / "parallel.jsonl"
    texts = [json.loads(line)["pl"] for line in scenes.read_text("utf-8").splitlines()]
    tokens = []
    for more in ([], ["--join-ascii"]):
        words = command(scenes, tmp_path / f"out{len(more)}", "--max-steps", 1, "--new-tokens", 200, *more)
        words[words.index("--languages") + 1] = "pl"
        tokens.append(count_tokens(SentenceTransformer(str(distill.main(words))).tokenizer, texts).tokens)
    assert tokens[1] < 0.8 * tokens[0]


def test_a_corpus_without_candidates_is_refused(tmp_path):
    file = tmp_path / "ascii.jsonl"
    file.write_text('{"id": "1", "en": "dog", "it": "cane cane"}\n', "utf-8")
    problem = "new_tokens is 5, and no candidate is left in it: a new token occurs 2 times or more"
    with pytest.raises(ValueError, match=problem + ", holds a character outside ASCII, .* pass join_ascii=True, more"):
        build(TEACHER, tmp_path / "out", extend_vocabulary=[file], new_tokens=5, languages=["it"])
    file.write_text('{"id": "1", "en": "paddenstoel", "it": "paddenstoel paddenstoel"}\n', "utf-8")
    with pytest.raises(ValueError, match=problem + ", and joins no pieces that meet in a text of en; pass more"):
        build(TEACHER, tmp_path / "out", extend_vocabulary=[file], new_tokens=5, languages=["it"], join_ascii=True)


def test_other_tokenizers_are_refused_by_name():
    with pytest.raises(ValueError, match="the tokenizer is a PythonBackend, a slow tokenizer; only a fast one"):
        check_tokenizer(PythonBackend.__new__(PythonBackend))
    whole = Tokenizer(models.WordLevel({"dog": 0, "<unk>": 1}, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match="the tokenizer is a WordLevel; only a BPE can be extended; leave"):
        check_tokenizer(PreTrainedTokenizerFast(tokenizer_object=whole))


def test_a_change_of_english_is_refused_and_taken_back():
    model = SentenceTransformer(str(tiny.embedder("llava")))
    before = model.tokenizer.tokenize("dog")
    choice = Choice([NewToken("do", len(model.tokenizer), (1, 2))], [("d", "o")])
    with pytest.raises(ValueError, match="would cut the text 'a dog' otherwise; leave new_tokens out"):
        extend_tokenizer(model.tokenizer, choice, ["a cat", "a dog"])
    assert model.tokenizer.tokenize("dog") == before


def test_a_table_that_does_not_grow_is_refused(monkeypatch):
    model = SentenceTransformer(str(tiny.embedder("llava")))[0].model
    monkeypatch.setattr(model, "resize_token_embeddings", lambda *args, **kwargs: None)
    with pytest.raises(ValueError, match=r"a LlavaModel has a table of tokens of shape \(336, 32\) that does not grow"):
        extend_embeddings(model, [NewToken("x", 336, (1, 2))])


def test_a_list_of_tokens_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="new_tokens.json lists no new tokens .*; extend the vocabulary again"):
        new_token_ids(tmp_path)
    Extension([], {}, {}).write(tmp_path)
    assert new_token_ids(tmp_path) == []
