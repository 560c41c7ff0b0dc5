"""The pure functions on texts: fields, protection, repair, checks; each trap by its words."""

import pytest

from mmmeb_tasks.instructions import PUBLISHED, STYLES, render_query
from mmmeb_tasks.mini.world import load_world
from recipes.translate.checks import CHECKS, refusal, similarities
from recipes.translate.fields import MMEB_INSTRUCTIONS, fields_of, instruction_table, join_fields, split_text
from recipes.translate.languages import LANGUAGES, SCRIPTS, language, nearest
from recipes.translate.merge import merge
from recipes.translate.misaligned import instruction_of
from recipes.translate.placeholders import mask, numbers, pieces, unmask
from recipes.translate.repair import repair
from xvlm2vec_st.data.corpus import ParallelRow

TEXTS = [
    "a dog",
    " a dog.\n",
    "Represent the given image.\n",
    "Find me an everyday image that matches the given caption: a dog, 3 cats.\n",
    'Select the portion of the image that isolates the object labeled as "red dog".',
    "Q:is it day\nA:yes\n\n- 12 -\nB) three",
    "Question: what?\r\nAnswer: that",
    "Find a Wikipedia image that answers this question: who?",
    "12\n\n34",
    "\t",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_joined_from_its_own_fields_is_the_text(text):
    """English "translated" by itself, through every part of a split: nothing is lost or moved."""
    split = split_text(text)
    own = "".join(piece for piece, _ in split.pieces)
    filled = (split.instruction or "{x}").replace("{x}", own)
    assert split.head + filled + split.ending + split.tail == text


@pytest.mark.parametrize("kind", PUBLISHED)
@pytest.mark.parametrize("code", ["it", "es", "fr", "de"])
@pytest.mark.parametrize("style", STYLES)
def test_instructions_come_from_the_table_in_every_style(kind, code, style):
    text = None if kind in ("i2t", "c") else "red dog"
    english = render_query(kind, "en", text, style=style)
    translated = {"red dog": "X", "red dog.": "X.", "red dog?": "X?"}
    own = render_query(kind, code, text and "X", style=style)
    assert join_fields(english, code, translated.get) == own
    assert instruction_of(own, code) == split_text(english).instruction


def test_an_instruction_without_a_table_is_one_field_and_is_translated_once():
    english = "Find me an everyday image that matches the given caption: "
    head = english.strip()
    assert fields_of(f"{english}a dog.", "pt") == ["a dog.", head]
    said = {"a dog.": "um cachorro.", head: "Encontre uma imagem que corresponda à legenda."}
    joined = join_fields(f"{english}a dog.", "pt", said.get)
    assert joined == "Encontre uma imagem que corresponda à legenda: um cachorro."
    labelled = 'Select the portion of the image that isolates the object labeled as "{x}"'
    assert fields_of(labelled.replace("{x}", "dog") + ".", "pt") == ["dog", labelled]
    said = {"dog": "cachorro", labelled: 'Selecione a parte da imagem com o objeto "{x}".'}
    assert join_fields(labelled.replace("{x}", "dog"), "pt", said.get).endswith('objeto "cachorro"')


def test_every_instruction_of_mmeb_is_known():
    for text in (*MMEB_INSTRUCTIONS, *instruction_table()):
        assert split_text(text.replace("{x}", "something else")).instruction == text


@pytest.mark.parametrize(
    "text",
    [
        'see <|image_1|> and {x} at "EXIT 5"',
        "100 % of %s, [SEP] https://a.b/c?d=1",
        "« chien » and 「犬」",
        "no",
    ],
)
def test_what_is_masked_comes_back(text):
    masked, kept = mask(text)
    assert unmask(masked, kept) == text
    assert "".join(piece for piece, _ in pieces(text)) == text
    if kept:
        assert kept[0] not in masked
        assert unmask(masked.replace("<0>", ""), kept) is None
        assert unmask(masked + "<0>", kept) is None


def test_numbers_are_the_same_whatever_the_script_and_separators():
    assert numbers("1,000.5 and ٣") == numbers("1.000,5 e 3") != numbers("1000 e 3")


@pytest.mark.parametrize(
    ("english", "translation", "code", "wanted"),
    [
        ("A dog.", "un cane", "it", "un cane."),
        ("A dog!", "un cane.", "it", "un cane!"),
        ("a dog", "un cane...", "it", "un cane"),
        ("Wait...", "aspetta", "it", "aspetta"),
        ("a dog", "¡un perro!", "es", "un perro"),
        ("Is it?", "Ist es?", "de", "Ist es?"),
        ("Is it?", "C'est ça ?", "fr", "C'est ça ?"),
        ("What is it?", "Τι είναι;", "el", "Τι είναι;"),
        ("A dog.", "Τι είναι;", "el", "Τι είναι."),
        ("What is it?", "Τι είναι.", "el", "Τι είναι;"),
        ("A dog.", "สุนัข", "th", "สุนัข"),
        ('It says "stop".', 'Es sagt „halt"', "de", 'Es sagt „halt".'),
        ('He said "yes."', 'Er sagte "ja".', "de", 'Er sagte "ja".'),
        ("the U.S.", "die USA", "de", "die USA."),
        ("and so on", "usw.", "de", "usw."),
        (" a dog.\n\n", "un cane\n", "it", " un cane.\n\n"),
        ("caption:", "字幕:", "zh", "字幕:"),
        ("caption:", "字幕", "zh", "字幕："),
        ("dog", "", "it", ""),
        ("#1 - dog", "#1 - cane", "it", "#1 - cane"),
    ],
)
def test_ends_are_those_of_the_english_in_the_languages_script(english, translation, code, wanted):
    assert repair(english, translation, code) == wanted
    assert repair(english, wanted, code) == wanted


REFUSED = [
    ("empty", "a dog", "  ", "it"),
    ("artefact", "a dog", "un #30 - cane", "it"),
    ("broken", "a dog", "un <unk> cane", "it"),
    ("broken", "a red dog", "un cane ⁇", "it"),
    ("broken", "a red dog", "un cane \ufffd", "it"),
    (
        "sentence",
        "The missing mobster was at your wedding? The whole town is looking for him.",
        "Der vermisste Gangster war bei Ihrer Hochzeit?",
        "de",
    ),
    ("placeholder", "a {x} dog", "un cane", "it"),
    ("placeholder", "a dog", "<|image_1|> un cane", "it"),
    ("number", "3 dogs, 12 cats", "3 cani, dodici gatti", "it"),
    ("quote", 'a sign with "STOP"', "un cartello con STOP", "it"),
    ("newline", "a\nb c", "a b c", "it"),
    ("copy", "a brown dog", "A brown dog", "it"),
    ("copy", "Represent the given image.", "Represent the given image.", "pt"),
    ("copy", "dog", "dog", "ru"),
    ("repeats", "a dog", "un cane cane cane cane cane", "it"),
    ("repeats", "a dog", "小狗小狗小狗小狗", "zh"),
    ("script", "a dog", "un кане", "it"),
    ("script", "a brown dog runs", "brauner Hund läuft", "ru"),
    ("length", "a dog", "un cane che corre dietro a un gatto che corre dietro a un topo", "it"),
    ("length", "a dog that runs after a cat and a mouse in the garden", "cane", "it"),
    ("language", "a man rides a wave", "Ein Mann reitet auf einer hohen Welle im Meer", "it"),
    ("language", "a man rides a wave", "A man is riding a big wave on his surfboard", "it"),
    ("pairing", "Represent the given image.", "Trova una didascalia che descriva l'immagine data", "it"),
]


@pytest.mark.parametrize(("reason", "english", "translation", "code"), REFUSED)
def test_a_bad_translation_is_refused_for_its_reason(reason, english, translation, code):
    assert refusal(english, translation, code)[0] == reason
    assert refusal(english, translation, code, skip=[reason]) != refusal(english, translation, code)


def test_there_is_a_case_for_every_check():
    assert {reason for reason, *_ in REFUSED} == set(CHECKS)


@pytest.mark.parametrize(
    ("english", "translation", "code"),
    [
        ("pizza", "pizza", "it"),
        ("New York", "New York", "it"),
        ("NASA", "NASA", "ja"),
        ("12", "12", "ru"),
        ("an iPad and 2 dogs", "一台 iPad 和 2 只狗", "zh"),
        ("a dog", "犬", "ja"),
        ("a white dog to the left of a cat", "ένας λευκός σκύλος αριστερά από μια γάτα", "el"),
        ("A man is riding a wave.", "Um homem está surfando uma onda.", "pt"),
        ("ha ha ha ha ha", "ha ha ha ha ha!", "it"),
        ('a sign with "STOP"', "un panneau « STOP »", "fr"),
        ("a dog runs on the green grass", "en hund løper på det grønne gresset", "no"),
        ("a dog", "Ein Hund", "de"),
        ("Represent the given image.", "Rappresenta l'immagine data.", "it"),
    ],
)
def test_a_good_translation_is_kept(english, translation, code):
    assert refusal(english, translation, code) is None


@pytest.mark.parametrize("code", ["it", "es", "fr", "de", "pt", "nl", "ja", "zh", "ru", "el", "ar", "hi", "ko"])
def test_few_true_names_are_refused(code):
    """CLDR's names are true translations: what is refused of them is the checks' error."""
    world = load_world(["en", code])
    wrong = [c.names for c in world.concepts if refusal(c.names["en"], c.names[code], code)]
    assert len(wrong) <= 0.02 * len(world.concepts), wrong


def test_every_language_has_a_script_and_every_script_marks():
    assert len(LANGUAGES) > 100
    for code, entry in LANGUAGES.items():
        assert entry.script in SCRIPTS, code
        assert set(entry.marks) == {"stop", "question", "exclamation", "colon"}
    assert language("pt-XX").code == "pt"


def test_a_wrong_code_names_the_nearest():
    with pytest.raises(ValueError, match="unknown language 'portugese'; nearest: .*"):
        language("portugese")
    assert nearest("por", LANGUAGES).startswith("nearest: pt")
    assert nearest("Portuguese", LANGUAGES) == "nearest: pt"


def test_a_cross_lingual_embedder_gives_each_pair_its_cosine(teacher):
    same, other = similarities(teacher, [("dog above cat", "dog above cat"), ("dog above cat", "pizza")])
    assert same == pytest.approx(1, abs=1e-4) and other < 0.9


def test_a_copied_content_is_refused_behind_an_instruction_in_the_translators_own_words():
    head = "Find me an everyday image that matches the given caption:"
    row = ParallelRow("1", None, f"{head} a brown dog runs", {})
    known = {("pt", head): "Encontre-me uma imagem do dia a dia que corresponda à legenda dada:"}
    (refused,) = merge([row], ["pt"], known | {("pt", "a brown dog runs"): "a brown dog runs"}).refused
    assert (refused.reason, refused.detail) == ("copy", "a brown dog runs")
    (kept,) = merge([row], ["pt"], known | {("pt", "a brown dog runs"): "um cão castanho corre"}).kept
    assert kept.translations["pt"].endswith("legenda dada: um cão castanho corre")
