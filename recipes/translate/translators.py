"""Translators: English texts in, texts of a language out. Any transformers seq2seq or chat model.

The interface is `Translator`; `load_translator` picks the kind by the model's config. How a family
gets the language is a table: MADLAD-400 and other T5 by a token before the text, NLLB, M2M-100
and mBART by the first token of the answer, Opus-MT by a token or by the model itself.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .languages import LANGUAGES, common, language, nearest
from .names import DTYPES

MAX_TOKENS = 512  # of one text, where the model's config names no length
PROMPT = "Translate the following English text into {name}. Reply with the translation only.\n\n{text}"
BROKEN = "\ufffd"  # instead of an answer with an unknown token: the checks refuse it


class Translator(Protocol):
    """What the pipeline needs of a translator."""

    name: str  # and settings: what decides the translations
    max_tokens: int  # of one text

    def check_language(self, code: str) -> None:
        """Raise `ValueError`, with the nearest codes, for a language that it does not know."""

    def lengths(self, texts: Sequence[str], code: str) -> list[int]:
        """How many tokens each text is."""

    def translate(self, texts: Sequence[str], code: str) -> list[str | None]:
        """One translation a text, in order; None where the answer did not come to an end."""


@dataclass(frozen=True)
class Family:
    """How a family of seq2seq models names languages: what finds a code in a token of its vocabulary.

    `prefix`: the token stands before the text; otherwise decoding is forced to begin with it.
    """

    token: re.Pattern
    prefix: bool


FAMILIES = {
    "t5": Family(re.compile(r"<2([A-Za-z_]+)>"), prefix=True),
    "mt5": Family(re.compile(r"<2([A-Za-z_]+)>"), prefix=True),
    "umt5": Family(re.compile(r"<2([A-Za-z_]+)>"), prefix=True),
    "marian": Family(re.compile(r">>([A-Za-z_]+)<<"), prefix=True),
    "m2m_100": Family(re.compile(r"__([a-z]+)__|([a-z]{3}_[A-Z][a-z]{3})"), prefix=False),
    "nllb-moe": Family(re.compile(r"([a-z]{3}_[A-Z][a-z]{3})"), prefix=False),
    "mbart": Family(re.compile(r"([a-z]{2}_[A-Z]{2})"), prefix=False),
}
# English as `src_lang`, and the token that it stands for: NLLB, mBART, M2M-100.
ENGLISH = (("eng_Latn", "eng_Latn"), ("en_XX", "en_XX"), ("en", "__en__"))
# An Opus-MT model of one language pair: Helsinki-NLP/opus-mt-en-it.
PAIR = re.compile(r"opus-mt-(?:tc-\w+-)?en-([a-z]{2,3})/?$")
# What translators call a language by, where it is another code: former ISO codes, countries, macrolanguages.
ALIASES = {
    "he": ("iw",),
    "ind": ("in",),
    "yi": ("ji",),
    "ja": ("jap", "jp"),
    "jv": ("jw",),
    "no": ("nb", "nob"),
    "nb": ("no", "nor"),
    "fil": ("tl",),
    "tl": ("fil",),
    "ar": ("ara",),
    "zh": ("zh_Hans", "zh_CN", "cmn_Hans", "cmn"),
    "zh-Hans": ("zh", "zh_CN", "cmn_Hans"),
    "zh-Hant": ("zh_TW", "cmn_Hant"),
    "zh-TW": ("zh_Hant", "zho_Hant", "cmn_Hant"),
    "zh-CN": ("zh", "zh_Hans", "zho_Hans", "cmn_Hans"),
}


def load_translator(
    model: str,
    *,
    dtype: str = "fp32",
    device: str | None = None,
    beams: int = 1,
    device_map: str | None = None,
) -> "Seq2Seq | Chat":
    """A translator of a model's folder or Hub id.

    Args:
        model: an encoder-decoder of a known family, or a chat model.
        dtype: fp32, bf16, fp16.
        device: where it runs; by default a GPU where there is one. `device_map` spreads it instead.
        beams: 1 is greedy.
        device_map: "auto" spreads the layers over several devices through accelerate.

    Raises:
        ValueError: a family that is not in the table; a model without a chat template.
    """
    model = str(Path(model).resolve()) if Path(model).is_dir() else model
    config = AutoConfig.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    seq2seq = config.is_encoder_decoder
    load = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    options = {"device_map": device_map} if device_map else {}
    loaded = load.from_pretrained(model, dtype=getattr(torch, DTYPES[dtype]), **options).eval()
    if not device_map:
        loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name = f"{model} {dtype} beams={beams}"
    return (Seq2Seq if seq2seq else Chat)(loaded, tokenizer, name=name, beams=beams)


class _Generator:
    """What both kinds share: lengths, generation, and whether an answer came to its end."""

    add_special_tokens = True

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str, beams: int = 1
    ) -> None:
        self.model, self.tokenizer, self.name, self.beams = model, tokenizer, name, beams
        config = model.config.get_text_config()
        known = (getattr(config, key, None) for key in ("max_position_embeddings", "n_positions"))
        self.max_tokens = min(next((n for n in known if n), MAX_TOKENS), MAX_TOKENS)
        ends = model.generation_config.eos_token_id or tokenizer.eos_token_id
        self.ends = torch.tensor(ends if isinstance(ends, list) else [ends])

    def inputs(self, texts: Sequence[str], code: str) -> list[str]:
        """What the model reads for each text."""
        raise NotImplementedError

    def lengths(self, texts: Sequence[str], code: str) -> list[int]:
        """Tokens a text; a text far beyond the limit is not tokenised, only reported as too long."""
        far = 20 * self.max_tokens
        short = [text if len(text) <= far else "" for text in texts]
        counted = self.tokenizer(self.inputs(short, code))["input_ids"] if short else []
        return [far if len(text) > far else len(ids) for text, ids in zip(texts, counted, strict=True)]

    @torch.inference_mode()
    def generate(self, texts: list[str], **options: Any) -> torch.Tensor:
        """Answers as token ids, (texts, tokens), without the prompt of a chat model."""
        batch = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=self.add_special_tokens).to(
            self.model.device
        )
        batch.pop("token_type_ids", None)
        longest = batch["input_ids"].shape[1]
        out = self.model.generate(
            **batch,
            num_beams=self.beams,
            do_sample=False,
            # Twice as long and a little more: what goes on beyond that repeats itself.
            max_new_tokens=2 * longest + 16,
            **options,
        )
        # NLLB's and mBART's answers begin with an end token: it says nothing of their end.
        return out[:, 1 if self.model.config.is_encoder_decoder else longest :]

    def texts(self, answers: torch.Tensor) -> list[str | None]:
        """Answers as texts; None for one that was cut off before its end."""
        ended = torch.isin(answers.cpu(), self.ends).any(-1).tolist()
        decoded = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        unknown = self.tokenizer.unk_token_id
        # Decoding leaves <unk> out: the answer lacks a word, and nothing shows it.
        broken = [unknown is not None and unknown in row for row in answers.tolist()]
        return [
            None if not end else BROKEN if lost else text.strip()
            for text, end, lost in zip(decoded, ended, broken, strict=True)
        ]


def set_source(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Make a tokenizer that marks the source's language mark English, whatever it was saved with.

    Raises:
        ValueError: it has no token of English.
    """
    if getattr(tokenizer, "src_lang", None) is None:
        return
    vocabulary = tokenizer.get_vocab()
    known = [code for code, token in ENGLISH if token in vocabulary]
    if not known:
        raise ValueError(f"{name}: it marks the source's language, and has no token of English")
    tokenizer.src_lang = known[0]


class Seq2Seq(_Generator):
    """An encoder-decoder of the table: MADLAD-400, NLLB, M2M-100, mBART, Opus-MT."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str, beams: int = 1
    ) -> None:
        super().__init__(model, tokenizer, name=name, beams=beams)
        kind = model.config.model_type
        if kind not in FAMILIES:
            raise ValueError(f"{name}: unknown family {kind!r} of translators; known: {', '.join(FAMILIES)}")
        self.family = FAMILIES[kind]
        set_source(tokenizer, name)
        vocabulary = tokenizer.get_vocab()
        matches = ((self.family.token.fullmatch(token), token) for token in vocabulary)
        self.tokens = {next(filter(None, m.groups())): token for m, token in matches if m}
        pair = PAIR.search(name.split(" ")[0])
        self.only = pair.group(1) if pair and not self.tokens else None
        if not self.tokens and not self.only:
            raise ValueError(f"{name}: its vocabulary has no token for a language; is it a translator?")

    def token(self, code: str) -> str | None:
        """The token of a language, None for a model of one language.

        Raises:
            ValueError: a language that the model does not know, with the nearest that it does.
        """
        if self.only:
            if self.only in (code, common(code), *ALIASES.get(code, ())):
                return None
            raise ValueError(f"{self.name}: translates into {self.only!r} only, not into {code!r}")
        known = LANGUAGES.get(code)
        tries = [code, common(code), code.replace("-", "_")]
        if known:
            tries += [f"{known.iso3}_{known.script}", known.iso3]
        tries += ALIASES.get(code, ())
        base = common(code).split("-")[0].split("_")[0]
        # The plain token of zh is simplified Chinese: another script is another language to a reader.
        if known is None or language(base).script == known.script or code == base:
            regions = [token for token in self.tokens if token.split("_")[0] == base]  # mBART's pt_XX
            tries += [base, *ALIASES.get(base, ()), *regions]
        for spelling in tries:
            if spelling in self.tokens:
                return self.tokens[spelling]
        raise ValueError(f"{self.name}: does not know language {code!r}; {nearest(code, self.tokens)}")

    def check_language(self, code: str) -> None:
        """Raise `ValueError`, with the nearest codes, for a language that it does not know."""
        self.token(code)

    def inputs(self, texts: Sequence[str], code: str) -> list[str]:
        """The texts, behind the language's token where the family has it there."""
        token = self.token(code)
        return [f"{token} {text}" for text in texts] if token and self.family.prefix else list(texts)

    def translate(self, texts: Sequence[str], code: str) -> list[str | None]:
        """One translation a text."""
        token, options = self.token(code), {}
        if token and not self.family.prefix:
            options["forced_bos_token_id"] = self.tokenizer.convert_tokens_to_ids(token)
        return self.texts(self.generate(self.inputs(texts, code), **options))


class Chat(_Generator):
    """A chat model, asked for each text on its own."""

    add_special_tokens = False  # the template has them

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str, beams: int = 1
    ) -> None:
        super().__init__(model, tokenizer, name=name, beams=beams)
        if not tokenizer.chat_template:
            raise ValueError(f"{name}: no chat template; give a chat model, or a seq2seq translator")
        tokenizer.padding_side = "left"  # the answers begin where the prompts end
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    def check_language(self, code: str) -> None:
        """Raise `ValueError`, with the nearest codes, for a language without a name."""
        language(code)

    def inputs(self, texts: Sequence[str], code: str) -> list[str]:
        """The prompts."""
        name = language(code).name
        messages = [[{"role": "user", "content": PROMPT.format(name=name, text=text)}] for text in texts]
        # Switch a thinking model's reasoning off; templates without that switch ignore it.
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )

    def translate(self, texts: Sequence[str], code: str) -> list[str | None]:
        """One translation a text."""
        translations = self.texts(self.generate(self.inputs(texts, code)))
        return [text and re.sub(r"^<think>.*?</think>\s*", "", text, flags=re.DOTALL) for text in translations]
