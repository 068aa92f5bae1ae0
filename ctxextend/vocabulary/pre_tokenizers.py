"""How text is cut into words before BPE merges them: llama.cpp's named pre-tokenizers, and tokenizer.json's steps.

Both cut a text by one regex after the other, each piece of the last on its own; so a pre-tokenizer is its list of
regexes here, with the settings that llama.cpp ties to the name. Source of the names, regexes and settings:
llama.cpp b11434, ``src/llama-vocab.cpp`` (``llm_tokenizer_bpe`` and ``llama_vocab::impl::load``); where it adapts a
regex, the one of tokenizer.json that it cites.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from msgspec import Struct

_CONTRACTIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#: The same in a form that some publishers write.
_SPELT_OUT: Final = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES: Final = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER: Final = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

#: GPT-2's own, which tokenizer.json's ByteLevel has built in.
GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
#: One digit at a time, and runs of them: tokenizer.json's Digits.
DIGIT: Final = r"\p{N}"
DIGITS: Final = r"\p{N}+"
_PUNCTUATION: Final = r"[\p{P}\$\+<=>\^~\|`]+"
_DEFAULT_PUNCTUATION: Final = r"[\p{P}\$\+<=>\^~\|]+"
#: tokenizer.json's Punctuation with the behaviour Contiguous, which is no regex there.
PUNCTUATION: Final = "punctuation"
_THREE_DIGITS: Final = r"[0-9][0-9][0-9]"

_LLAMA3: Final = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES
_QWEN2: Final = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES
_QWEN35: Final = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _SPACES
_TEKKEN: Final = f"{_UPPER}*{_LOWER}+|{_UPPER}+{_LOWER}*" + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES
_GPT4O: Final = (
    f"{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES
)
_SEED_CODER: Final = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK_V3: Final = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*" + _SPACES,
)
_HAN: Final = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
#: DeepSeek's list of letters that have cases: Latin, Greek, Cyrillic and further scripts.
_CASED: Final = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_LLM: Final = (
    r"[\r\n]",
    rf"\s?[{_CASED}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _HAN,
)


class PreTokenizer(Struct, frozen=True, kw_only=True):
    """One pre-tokenizer by its first name in llama.cpp; ``aliases`` behave alike.

    ``steps`` are the regexes, in order; ``variants`` are lists of them in tokenizer.json that mean the same.
    ``ignore_merges``: a word that is a token is taken whole. ``clean_spaces``: llama.cpp takes spaces before
    punctuation away from text that it puts together. ``adds_bos``: unless the file says otherwise.
    """

    name: str
    steps: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    variants: tuple[tuple[str, ...], ...] = ()
    ignore_merges: bool = False
    clean_spaces: bool = True
    adds_bos: bool = False


#: Of several that cut alike, the one that a tokenizer of unknown origin gets comes first.
PRE_TOKENIZERS: Final = (
    PreTokenizer(
        name="gpt-2",
        steps=(GPT2,),
        aliases=(
            *("phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum"),
            *("modern-bert", "jina-v1-en", "jina-v2-code", "roberta-bpe", "mpt", "olmo", "jais", "exaone4"),
        ),
    ),
    PreTokenizer(name="trillion", steps=(GPT2,), aliases=("granite-docling",), clean_spaces=False),
    PreTokenizer(
        name="starcoder",
        steps=(DIGIT, GPT2),
        aliases=("refact", "codeshell", "exaone", "minerva-7b", "mellum2"),
    ),
    PreTokenizer(name="smollm", steps=(DIGIT, GPT2), aliases=("command-r",), clean_spaces=False),
    PreTokenizer(
        name="llama-bpe",
        steps=(_LLAMA3,),
        aliases=("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        ignore_merges=True,
        adds_bos=True,
    ),
    PreTokenizer(name="glm4", steps=(_LLAMA3,), aliases=("glm5",), ignore_merges=True),
    PreTokenizer(name="smaug-bpe", steps=(_LLAMA3,), aliases=("dbrx", "chatglm-bpe")),
    PreTokenizer(
        name="qwen2",
        steps=(_QWEN2,),
        aliases=("deepseek-r1-qwen", "kormo", "f2llmv2", "hunyuan", "solar-open", "grok-2"),
        clean_spaces=False,
    ),
    PreTokenizer(name="stablelm2", steps=(_QWEN2,), aliases=("megrez",)),
    PreTokenizer(name="qwen35", steps=(_QWEN35,), clean_spaces=False),
    PreTokenizer(name="tekken", steps=(_TEKKEN,), ignore_merges=True, clean_spaces=False, adds_bos=True),
    PreTokenizer(
        name="gpt-4o",
        steps=(_GPT4O,),
        aliases=("llama4", "kanana2", "talkie", "minimax-m2"),
        clean_spaces=False,
    ),
    PreTokenizer(
        name="deepseek-llm",
        # The publisher cuts digit by digit, llama.cpp leaves that to the merges: there are none of digits.
        steps=(*_DEEPSEEK_LLM, DIGIT),
        clean_spaces=False,
    ),
    PreTokenizer(
        name="deepseek-coder",
        steps=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, DIGIT),
        clean_spaces=False,
    ),
    PreTokenizer(
        name="deepseek-v3",
        steps=_DEEPSEEK_V3,
        aliases=("hunyuan-dense", "joyai-llm", "hy_v4"),
        clean_spaces=False,
    ),
    PreTokenizer(name="seed-coder", steps=(_SEED_CODER,), clean_spaces=False),
    PreTokenizer(
        name="falcon",
        steps=(_PUNCTUATION, GPT2, _THREE_DIGITS),
        variants=((PUNCTUATION, GPT2, DIGITS, _THREE_DIGITS),),
    ),
    PreTokenizer(name="default", steps=(_DEFAULT_PUNCTUATION, GPT2, DIGITS, _THREE_DIGITS)),
)

BY_NAME: Final[Mapping[str, PreTokenizer]] = MappingProxyType(
    {name: row for row in PRE_TOKENIZERS for name in (row.name, *row.aliases)}
)


def by_structure(
    steps: tuple[str, ...], *, ignore_merges: bool, clean_spaces: bool | None = None
) -> PreTokenizer | None:
    """The first pre-tokenizer that cuts a text exactly so; None where llama.cpp has none.

    ``clean_spaces`` (None: not said) decides only between those that cut alike.
    """
    found = [
        row for row in PRE_TOKENIZERS if steps in (row.steps, *row.variants) and row.ignore_merges == ignore_merges
    ]
    alike = [row for row in found if row.clean_spaces == clean_spaces]
    return next(iter(alike or found), None)


def steps_of(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """The regexes of tokenizer.json's ``pre_tokenizer``; None for one that isn't a list of cuts over bytes."""
    try:
        steps = tuple(_steps(pre_tokenizer))
    except _UnknownError:
        return None
    # The mapping of bytes comes once, and no regex but one of digits reads its letters.
    places = [i for i, step in enumerate(steps) if step in (_BYTES, _BYTES_CUT)]
    if len(places) != 1 or not set(steps[places[0] + 1 :]) <= {DIGIT, DIGITS, _THREE_DIGITS}:
        return None
    return tuple(GPT2 if step == _BYTES_CUT else step for step in steps if step != _BYTES)


def structure_of(row: PreTokenizer) -> dict[str, Any]:
    """The ``pre_tokenizer`` of a tokenizer.json that cuts so."""
    last = row.steps[-1] == GPT2
    parts = [_part(step) for step in (row.steps[:-1] if last else row.steps)]
    parts.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": last})
    return parts[0] if len(parts) == 1 else {"type": "Sequence", "pretokenizers": parts}


class _UnknownError(Exception):
    """A step that llama.cpp has no equal of."""


_BYTES: Final = "bytes"
_BYTES_CUT: Final = "bytes, cut as GPT-2 does"


def _part(step: str) -> dict[str, Any]:
    if step == DIGIT:
        return {"type": "Digits", "individual_digits": True}
    return {"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated", "invert": False}


def _steps(part: Any) -> Iterator[str]:
    match part:
        case {"type": "Sequence", "pretokenizers": list(parts)}:
            for inner in parts:
                yield from _steps(inner)
        case {"type": "ByteLevel"} if not part.get("add_prefix_space", True):
            yield _BYTES_CUT if part.get("use_regex", True) else _BYTES
        case {"type": "Digits"}:
            yield DIGIT if part.get("individual_digits") else DIGITS
        case {"type": "Punctuation", "behavior": "Contiguous"}:
            yield PUNCTUATION
        case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": behaviour}:
            regex = regex.replace("\r", r"\r").replace("\n", r"\n").replace(_SPELT_OUT, _CONTRACTIONS)
            # What keeps the matches alone loses nothing where every character is in one.
            whole = regex.endswith(r"|\s+") and behaviour == "Removed" and part.get("invert")
            if not whole and (behaviour != "Isolated" or part.get("invert")):
                raise _UnknownError
            yield regex
        case _:
            raise _UnknownError
