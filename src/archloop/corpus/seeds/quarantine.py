"""Detects text that must not be trained on: secrets, and instructions to an LLM.

String constants and names of a cleaned network are searched. A network with a match is dropped,
never repaired, as the rest of such a file cannot be trusted.
"""

from __future__ import annotations

import re

from archloop.novelty import CodeTokenError, tokens

_SECRETS = re.compile(
    r"""
    \b(?: sk-[\w-]{20,} | gh[pousr]_\w{30,} | github_pat_\w{20,} | hf_[A-Za-z]{30,}
      | AKIA[0-9A-Z]{16} | AIza[\w-]{30,} | xox[abprs]-[\w-]{10,} | glpat-[\w-]{20,} )
  | -----BEGIN\ [A-Z ]*PRIVATE\ KEY
  | \beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.
  | ://[^/\s:@'"]+:[^/\s:@'"]+@
    """,
    re.VERBOSE,
)
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:api_?key|secret(?:_?key)?|passw(?:or)?d|access_?token|auth_?token)s?$",
    re.IGNORECASE,
)
_PROMPT = re.compile(
    r"""
    \b(?:ignore|disregard|forget)\ (?:all\ |any\ |the\ |your\ )*(?:previous|prior|above|earlier)
      \ (?:instruction|prompt|message|context|rule)s?
  | \b(?:system|developer)\ (?:prompt|message)\b
  | \byou\ are\ (?:now\ )?an?\ (?:\w+\ )?(?:ai|assistant|language\ model|llm|chatbot)\b
  | \bas\ an\ ai\ (?:language\ )?model\b
  | <\|?\s*(?:im\ start|im\ end|endoftext|system|user|assistant)\s*\|?>
  | \[/?inst\] | \#\#\#\ *(?:instruction|response|system|user|assistant)\b
    """,
    re.VERBOSE,
)
_SUSPECT = (
    *("sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat", "hf_", "akia", "aiza", "xox"),
    *("glpat", "private key", "eyj", "://", "apikey", "api_key", "secret", "passw", "token"),
    *("ignore", "disregard", "forget", "system", "developer", "you", "as an", "as_an", "asan"),
    *("<", "inst]", "###"),
)
"""Every match of a rule contains one of these in lower case; most networks contain none, which
makes the search quick."""


def quarantine_reason(code: str) -> str | None:
    """The reason to quarantine a network, as one short line; ``None``: there is none."""
    lower = code.lower()
    if not any(part in lower for part in _SUSPECT):
        return None
    try:
        words = tokens(code)
    except CodeTokenError:
        return "not a sequence of tokens"
    for i, word in enumerate(words):
        is_text = word[-1] in "\"'"
        if is_text and _SECRETS.search(word):
            return "a secret in a string"
        if (is_text or word.isidentifier()) and _PROMPT.search(_plain(word)):
            return f"prompt-like text in {'a string' if is_text else 'a name'}"
        named = _SECRET_NAME.search(word.strip("\"'"))
        if named and words[i + 1 : i + 2] in (["="], [":"]) and _is_value(words[i + 2 : i + 3]):
            return "a value for a secret's name"
    return None


def _is_value(words: list[str]) -> bool:
    return bool(words) and words[0][-1] in "\"'" and len(words[0].strip("\"'")) >= 8


def _plain(word: str) -> str:
    """Lower-case words with single spaces: ``ignoreAll_rules`` -> ``ignore all rules``."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", word)
    return re.sub(r"(?:\s|_|\\n)+", " ", spaced).lower()
