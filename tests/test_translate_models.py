"""Translators of transformers: every family of the table in small, with random weights."""

import json

import pytest
import sentencepiece
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    LlamaConfig,
    LlamaForCausalLM,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from recipes.translate import command as translate
from recipes.translate.checks import broken
from recipes.translate.translators import load_translator

WORDS = ["a", "dog", "cat", "above", "red", "apple", "cane", "gatto", "sopra", "Translate", "into", "Italian"]
TEXTS = ["a dog", "a red apple above a cat", "cat", "dog above dog above dog"]
SPECIAL = ["<pad>", "</s>", "<unk>", "<s>"]  # pad 0, end 1, as T5 has them


def tokenizer(tokens=(), *, end=True):
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *tokens, *WORDS])}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if end:
        fast.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>"
    )


def small_t5(size):
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=size,
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            n_positions=64,
            decoder_start_token_id=0,
        )
    )


def bart_sizes(size):
    return {
        "vocab_size": size,
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 3,
        "decoder_start_token_id": 1,  # NLLB's and mBART's answers begin with the end token
        "forced_eos_token_id": None,
    }


FAMILIES = {
    "t5": (["<2it>", "<2pt>", "<2zh>"], small_t5),
    "m2m_100": (
        ["eng_Latn", "ita_Latn", "por_Latn"],
        lambda size: M2M100ForConditionalGeneration(M2M100Config(**bart_sizes(size))),
    ),
    "mbart": (
        ["en_XX", "it_IT", "pt_XX"],
        lambda size: MBartForConditionalGeneration(MBartConfig(**bart_sizes(size))),
    ),
}


def saved(folder, model, tokenizer, *, ends, seed=2):
    """`ends`: the answer's last token is made the end token, as a trained model's would be."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.forced_eos_token_id = 1 if ends else None
    model.generation_config.eos_token_id = 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def family(folder, name, *, ends=True, seed=2):
    tokens, make = FAMILIES[name]
    words = tokenizer(tokens)
    return load_translator(saved(folder, make(len(words)), words, ends=ends, seed=seed), device="cpu")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_says_what_each_text_says_alone(tmp_path, name):
    translator = family(tmp_path, name)
    for code in ("it", "pt"):
        together = translator.translate(TEXTS, code)
        assert all(isinstance(text, str) for text in together)
        alone = []
        for text in TEXTS:  # as long an answer as in the batch: it is cut by the longest text
            long = translator.translate([text, TEXTS[1]], code)
            alone.append(long[0])
        assert together == alone
    assert translator.translate(TEXTS, "it") != translator.translate(TEXTS, "pt")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_language_is_given_in_the_familys_format(tmp_path, name):
    translator = family(tmp_path, name)
    token = translator.token("it")
    assert token in FAMILIES[name][0] and "it" in token
    if name == "t5":
        assert translator.inputs(["a dog"], "it") == ["<2it> a dog"]
    else:
        seen = []
        generate = translator.model.generate

        def spy(**kwargs):
            seen.append(generate(**kwargs))
            return seen[-1]

        translator.model.generate = spy
        translator.translate(TEXTS, "it")
        wanted = translator.tokenizer.convert_tokens_to_ids(token)
        assert seen[0][:, 0].tolist() == [1] * 4  # the start is the end token, and says nothing
        assert seen[0][:, 1].tolist() == [wanted] * 4


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_without_an_end_is_none(tmp_path, name):
    translator = family(tmp_path, name, ends=False)
    translator.ends = torch.tensor([10_000])  # whatever a random model says, it never says this
    assert translator.translate(TEXTS, "it") == [None] * 4


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_with_an_unknown_token_is_refused_and_not_shortened(tmp_path, name):
    translator = family(tmp_path, name)
    cane, unknown, end = translator.tokenizer.convert_tokens_to_ids(["cane", "<unk>", "</s>"])
    whole, cut = translator.texts(torch.tensor([[cane, cane, end], [cane, unknown, end]]))
    assert whole == "cane cane" and broken("two dogs", whole, "it") is None
    assert "cane" not in cut and broken("two dogs", cut, "it")


@pytest.mark.parametrize("name", FAMILIES)
def test_an_unknown_language_names_the_nearest(tmp_path, name):
    translator = family(tmp_path, name)
    with pytest.raises(ValueError, match="does not know language 'ptt'; (nearest|known): "):
        translator.check_language("ptt")
    assert translator.token("pt-BR") == translator.token("pt")


def test_lengths_are_tokens_and_a_huge_text_is_not_tokenised(tmp_path):
    translator = family(tmp_path, "t5")
    assert translator.lengths(["a dog", "cat", "x" * 2_000_000], "it")[:2] == [4, 3]
    assert translator.lengths(["x y " * 500_000], "it")[0] > translator.max_tokens == 64


@pytest.mark.parametrize("multilingual", [True, False])
def test_opus_mt_by_its_own_tokenizer(tmp_path, multilingual, monkeypatch):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_prefix=str(tmp_path / "source"),
        vocab_size=24,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "source.model"))
    words = [*SPECIAL, *([">>ita<<", ">>por<<"] if multilingual else [])]
    words += [p for p in (pieces.id_to_piece(i) for i in range(pieces.vocab_size())) if p not in words]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    own = MarianTokenizer(str(tmp_path / "source.model"), str(tmp_path / "source.model"), str(tmp_path / "vocab.json"))
    model = MarianMTModel(MarianConfig(**bart_sizes(len(words)) | {"decoder_start_token_id": 0}))
    folder = saved(tmp_path / "opus-mt-en-it", model, own, ends=True)
    translator = load_translator(folder, device="cpu")
    assert translator.inputs(["a dog"], "it") == [">>ita<< a dog" if multilingual else "a dog"]
    assert len(translator.translate(TEXTS, "it")) == 4
    if not multilingual:
        with pytest.raises(ValueError, match="translates into 'it' only, not into 'de'"):
            translator.check_language("de")
    monkeypatch.chdir(tmp_path)
    for spelling in ("opus-mt-en-it", "./opus-mt-en-it/", "../" + tmp_path.name + "/opus-mt-en-it/."):
        same = load_translator(spelling, device="cpu")
        assert (same.only, same.name) == (translator.only, translator.name)


TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}</s> "


def chat(folder, template=TEMPLATE):
    words = tokenizer(end=False)
    words.chat_template = template
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(words), max_position_embeddings=256, pad_token_id=0, eos_token_id=1, **sizes)
    )
    return load_translator(saved(folder, model, words, ends=True), device="cpu")


def test_a_chat_models_prompt_has_the_languages_name_and_is_not_in_the_answer(tmp_path):
    translator = chat(tmp_path)
    (prompt,) = translator.inputs(["a red apple"], "it")
    assert "into Italian." in prompt and prompt.count("a red apple") == 1
    together = translator.translate(TEXTS, "it")
    assert [translator.translate([text, TEXTS[1]], "it")[0] for text in TEXTS] == together
    longest = max(translator.lengths(TEXTS, "it"))
    assert translator.generate(translator.inputs(TEXTS, "it")).shape[1] <= 2 * longest + 16
    with pytest.raises(ValueError, match="unknown language 'xx'"):
        translator.check_language("xx")


def test_a_model_without_a_chat_template_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no chat template"):
        chat(tmp_path, template=None)


def test_a_family_that_is_not_in_the_table_is_refused(tmp_path):
    words = tokenizer()
    tiny = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    config = EncoderDecoderConfig.from_encoder_decoder_configs(tiny, tiny)
    folder = saved(tmp_path, EncoderDecoderModel(config), words, ends=True)
    with pytest.raises(ValueError, match="unknown family 'encoder-decoder' of translators; known: t5"):
        load_translator(folder, device="cpu")
    plain = tokenizer()
    other = saved(tmp_path / "t5", small_t5(len(plain)), plain, ends=True)
    with pytest.raises(ValueError, match="no token for a language; is it a translator?"):
        load_translator(other, device="cpu")


def test_beams_and_types_are_passed_on_and_are_part_of_the_name(tmp_path):
    tokens, make = FAMILIES["t5"]
    words = tokenizer(tokens)
    folder = saved(tmp_path, make(len(words)), words, ends=True)
    translator = load_translator(folder, dtype="bf16", device="cpu", beams=2)
    assert translator.model.dtype == torch.bfloat16
    assert translator.name == f"{folder} bf16 beams=2"
    assert len(translator.translate(TEXTS, "it")) == 4


def test_a_random_madlad_type_model_goes_the_whole_way(tmp_path):
    """What it says is refused, row by row and for a reason; every row is accounted for."""
    family(tmp_path / "model", "t5")
    corpus = tmp_path / "english.jsonl"
    rows = [{"id": i, "en": text} for i, text in enumerate([*TEXTS, "a cat at 3", 'a "red apple"'])]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"
    arguments = ["--corpus", str(corpus), "--languages", "it", "pt", "--translator", str(tmp_path / "model")]
    try:
        translate.main([*arguments, "--device", "cpu", "--out", str(out)])
    except ValueError as error:
        assert "no translation was kept" in str(error)
    kept = [json.loads(line) for line in out.open()] if out.exists() else []
    refused = [json.loads(line) for line in (tmp_path / "out.refused.jsonl").open()]
    assert len(refused) + sum(len(row.keys() & {"it", "pt"}) for row in kept) == 2 * len(rows)
    assert all(entry["reason"] and entry["detail"] for entry in refused)
    said = [entry["translation"] for entry in refused if entry["translation"]]
    assert any('"red apple"' in text for text in said)  # protected, whatever the model says
    assert any("3" in text for text in said)
