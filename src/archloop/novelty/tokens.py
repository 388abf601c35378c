"""Python code as a set of hashed token shingles (paper, appendix A.1: lexer tokens, k = 10).

Kept are the token categories that the paper lists: identifiers, keywords, literals, operators and
delimiters, each as it is spelled. Comments, blank lines and layout (``NEWLINE``, ``INDENT``,
``DEDENT``) are dropped, so two layouts of one network are the same network; docstrings are
literals and stay. In the ``lexical`` view names are not normalised: a renamed network is a
different text. In the ``normalized`` view identifiers, numbers and strings are folded as LEMUR's
own duplicate removal does (nn-dup 2.2.4, ``textproc.py``), so a renamed or rescaled network is the
same text; unlike there, the whole module counts and not only its classes.

Building blocks of archloop (:mod:`archloop.blocks`) count as the import that they come from, so
that what networks share by it makes them no more alike.

The tokens are those of the standard library's ``tokenize`` (Python 3.11), found with one regular
expression: six times faster, the same under every Python version (``tokenize`` splits f-strings
from Python 3.12 on), and tolerant of broken indentation. Networks of a corpus share most of their
lines, so the tokens of a line are cached (another four times faster on LEMUR).
"""

from __future__ import annotations

import ast
import hashlib
import keyword
import re
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from archloop.code.linking import unlinked
from archloop.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TOKEN = re.compile(
    r"""
    [ ]*+(?:[ \t\f\n]++ | \\\n | \#[^\n]*+)*+   # blanks, continuations and comments come before it
    (
        [A-Za-z_]\w*+(?!["']) | [()\[\]{},;~]   # most tokens, first because it is faster
      |
        (?i:[rbfu]|br|rb|fr|rf)?                # literals: text
        (?: \"{3}[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*\"{3}
          | '{3}[^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*'{3}
          | "[^\n"\\]*(?:\\.[^\n"\\]*)*"
          | '[^\n'\\]*(?:\\.[^\n'\\]*)*'
        )
      | 0[xX](?:_?[0-9a-fA-F])+ | 0[bB](?:_?[01])+ | 0[oO](?:_?[0-7])+
      | (?: [0-9](?:_?[0-9])*(?:\.(?:[0-9](?:_?[0-9])*)?)? | \.[0-9](?:_?[0-9])* )
        (?:[eE][-+]?[0-9](?:_?[0-9])*)?[jJ]?    # literals: numbers
      | \w+                                     # keywords and identifiers
      | \*\*=? | //=? | >>=? | <<=? | \.\.\. | -> | := | [-+*/%@&|^=<>!]=
      | .                                       # operators and delimiters of one character
      | \Z
    )
    """,
    re.VERBOSE | re.DOTALL,
)

_BLANKS = " \t\f"
_SINGLE = frozenset("+-*/%@&|^~=<>()[]{},:.;_")

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""Base of the polynomial that combines the hashes of a shingle: odd, 2**64 / golden ratio."""


View = Literal["lexical", "normalized"]
"""Tokens as they are spelled, or with names, numbers and strings folded."""

_KEPT_PREFIXES = (
    *("Conv", "Batch", "Layer", "Group", "Instance", "Max", "Avg", "Adaptive", "Dropout", "Linear"),
    *("Flatten", "LSTM", "GRU", "Multihead", "Transformer", "Upsample", "SE", "Squeeze"),
    *("Sequential", "Module", "Fractal", "ResNet", "Dense", "VGG"),
)
"""Identifiers that name an operation, as camel case does (nn-dup, ``python_token_stream``)."""

_LINES_REMEMBERED = 1 << 16


class CodeTokenError(UsageError):
    """The text is not a sequence of Python tokens."""


def tokens(code: str, view: View = "lexical") -> list[str]:
    """The code's lexer tokens in order, without comments and layout; works on all code that parses.

    Args:
        code: Source text.
        view: ``lexical``: as spelled; ``normalized``: identifiers that neither name a layer nor are
            declared in the code become ``ID``, numbers ``NUM``, strings ``STR``.

    Raises:
        CodeTokenError: A character that starts no token, such as an opening quote without its end.
    """
    code = unlinked(_unix_lines(code))
    words = _words_by_line(code) or _words(code)
    return words if view == "lexical" else _normalized(words)


def _unix_lines(code: str) -> str:
    return code.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _words(text: str) -> list[str]:
    words: list[str] = _TOKEN.findall(text)
    while words and not words[-1]:
        words.pop()
    if (odd := _first_odd(words)) and not _parses(text):  # f-strings of Python 3.12 nest quotes
        raise CodeTokenError(f"not Python: {odd!r} starts no token")
    return words


def _words_by_line(code: str) -> list[str]:
    """The tokens from cached lines; empty where a token may cross lines, or is unusual."""
    words: list[str] = []
    if _crosses_lines(code):
        return words
    for line in code.split("\n"):
        found = _line_words(line)
        if found is None:
            return []
        words += found
    return words


def _crosses_lines(code: str) -> bool:
    return '"""' in code or "'''" in code or "\\\n" in code


def _words_of_line(line: str) -> tuple[str, ...] | None:
    words: list[str] = _TOKEN.findall(line)
    return None if _first_odd(words) else tuple(filter(None, words))


_line_words = lru_cache(maxsize=_LINES_REMEMBERED)(_words_of_line)


def _first_odd(words: list[str]) -> str | None:
    """The first character that is not a valid token."""
    single = [word for word in set(words) - _SINGLE if len(word) == 1]
    return min((c for c in single if not c.isalnum()), default=None)


def _normalized(words: list[str]) -> list[str]:
    declared = {b for a, b in pairwise(words) if a in ("def", "class")}
    return [word if word in declared else _fold(word) for word in words]


@lru_cache(maxsize=_LINES_REMEMBERED)
def _fold(word: str) -> str:
    if word[-1] in "\"'":
        return "STR"
    if word[0].isdecimal() or (word[0] == "." and word[1:2].isdecimal()):
        return "NUM"
    named = word.isidentifier() and not keyword.iskeyword(word)
    kept = word.startswith(_KEPT_PREFIXES) or any(char.isupper() for char in word[1:])
    return "ID" if named and not kept else word


def _parses(code: str) -> bool:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def shingles(code: str, size: int = 10, view: View = "lexical") -> NDArray[np.uint64]:
    """The set of the code's contiguous token ``size``-grams, each as a 64-bit hash.

    Code shorter than one shingle is one shingle of all its tokens; code without tokens has none.
    With 64 bits, the probability of a collision among the million shingles of a corpus is below
    1e-7.

    Returns:
        (S,) sorted and unique; the same on every machine.

    Raises:
        CodeTokenError: The code is not a sequence of Python tokens.
    """
    hashes = _hashes_by_line(unlinked(_unix_lines(code))) if view == "lexical" else None
    if hashes is None:
        words = tokens(code, view)
        hashes = np.frombuffer(b"".join(map(_token_digest, words)), "<u8")
    if not hashes.size:
        return np.empty(0, np.uint64)
    found = np.sort(_mix(_joined(hashes, min(size, hashes.size))))
    # np.unique would be four times slower.
    return found[np.concatenate(([True], found[1:] != found[:-1]))]


def _joined(hashes: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """The polynomial of each window of ``size`` hashes, modulo 2**64.

    Two adjacent windows combine into one of their total length, so 4 steps are enough for 10.
    """
    joined, length = hashes, 1
    for bit in bin(size)[3:]:
        joined = joined[:-length] * _power(length) + joined[length:]
        length *= 2
        if bit == "1":
            joined = joined[:-1] * _MULTIPLIER + hashes[length:]
            length += 1
    return joined


@lru_cache
def _power(exponent: int) -> np.uint64:
    return np.uint64(pow(int(_MULTIPLIER), exponent, 1 << 64))


def _hashes_by_line(code: str) -> NDArray[np.uint64] | None:
    if _crosses_lines(code):
        return None
    try:
        # Bytes, which are joined ten times as fast as arrays; indentation is no token.
        lines = code.split("\n")
        return np.frombuffer(b"".join([_line_hashes(x.strip(_BLANKS)) for x in lines]), "<u8")
    except CodeTokenError:  # decided on the whole text, which may be valid Python nevertheless
        return None


@lru_cache(maxsize=_LINES_REMEMBERED)
def _line_hashes(line: str) -> bytes:
    # Not from the cached words: a line is needed as words or as hashes, rarely as both.
    words = _words_of_line(line)
    if words is None:
        raise CodeTokenError
    return b"".join(map(_token_digest, words))


def jaccard(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> float:
    """Exact Jaccard similarity |A & B| / |A | B| of two shingle sets; 1.0 if both are empty."""
    # Two sorted runs: the stable sort only merges them, nine times faster than np.intersect1d.
    both = np.concatenate((a, b))
    both.sort(kind="stable")
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    union = a.size + b.size - shared
    return shared / union if union else 1.0


@lru_cache(maxsize=1 << 17)
def _token_digest(word: str) -> bytes:
    return hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the bits (finaliser of splitmix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
