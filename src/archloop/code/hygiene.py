"""Finds text in a network that no LLM must learn: secrets, chat markup, instructions to an LLM.

The comments of a source are dropped before it is trained on (:mod:`archloop.code.clean`); string
constants and names stay. A network needs few of them, so one with suspect text is left out: at
acceptance, and where a seed corpus is built. Only messages to a human (of ``raise``, ``assert``,
``print`` and ``warnings.warn``) are emptied instead, as they do not influence the network.

Strings are looked at as they are, put together (``"a" + "b"``, lists, f-strings), decoded (base64,
hexadecimal, character codes) and backwards. The patterns are advice, not proof: a text that
nobody thought of passes.
"""

from __future__ import annotations

import ast
import base64
import binascii
import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from types import UnionType
from typing import Any

from archloop.code.clean import clean_source
from archloop.code.noise import without_noise

SECRET, PROMPT, MARKUP, PROSE = "a secret", "prompt-like text", "chat markup", "prose"
SECRET_VALUE = "a value for a secret's name"
UNREADABLE = "text that cannot be looked at: the source does not parse"

_SECRETS = re.compile(
    r"""
    \b(?: sk-[\w-]{20,} | [sr]k_(?:live|test)_\w{16,} | gh[pousr]_\w{30,} | github_pat_\w{20,}
      | hf_[A-Za-z]{30,} | (?:AKIA|ASIA)[0-9A-Z]{16} | AIza[\w-]{30,} | ya29\.[\w-]{20,}
      | xox[abeoprs]-[\w-]{10,} | glpat-[\w-]{20,} | npm_\w{30,} | pypi-\w[\w-]{30,}
      | SG\.[\w-]{16,}\.[\w-]{16,} | dop_v1_\w{30,} )
  | -----BEGIN\ [A-Z ]*PRIVATE\ KEY
  | \bssh-(?:rsa|ed25519)\ AAAA
  | \beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.
  | ://[^/\s:@'"]*:[^/\s:@'"]+@
  | \b[\w.+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b
  | \bBearer\ [\w.-]{16,}
  | (?i:\b(?:api[ _-]?key|secret|passw(?:or)?d|(?:access|auth)[ _-]?token)\s*[=:]\s*[^\s=]{8,})
    """,
    re.VERBOSE,
)
_KEY_LIKE = re.compile(r"[A-Za-z0-9+/=_-]{32,}")
_HEXADECIMAL = re.compile(r"(?=[0-9a-f]*[0-9])(?=[0-9a-f]*[a-f])[0-9a-f]{32,}")
_PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_MOST_PARTS = 0.44
"""Words and numbers a character: names of layers in a row have 0.41, 36 random letters and digits
0.53 with a standard deviation of 0.07."""
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:api_?key|secret(?:_?key)?|passw(?:or)?d|access_?token|auth_?token|private_?key)s?$",
    re.IGNORECASE,
)
_MARKUP = re.compile(
    r"""
    <\|\s*[\w .-]{1,40}\s*\|> | <\|?\s*(?:system|user|assistant)\s*\|?>
  | </?(?:s|bos|eos|pad|unk|think|tool\ call|start\ of\ turn|end\ of\ turn|im\ (?:start|end))>
  | <<\s*/?sys\s*>> | \[/?inst\] | \[/?(?:system|user|assistant)(?:\ prompt)?\]
  | \#\#\#?\ *(?:instruction|response|input|system|user|assistant|human)s?\b
  | ``` | ~~~
  | (?:^|[.!?]\ )(?:human|assistant|system|user)\ ?:\ 
    """,
    re.VERBOSE,
)
_PROMPT = re.compile(
    r"""
    \b(?:ignore|disregard|forget|override|bypass)\ (?:\w+\ ){0,4}?
      (?:previous|prior|above|earlier|preceding|your|all|any|these|those)\ (?:\w+\ ){0,3}?
      (?:instruction|prompt|message|context|rule|guideline|direction)s?\b
  | \b(?:system|developer)\ (?:prompt|message)\b
  | \byou\ are\ (?:now\ )?an?\ (?:\w+\ ){0,3}(?:ai|assistant|language\ model|llm|chatbot|expert)\b
  | \byou\ are\ (?:now\ )?(?:chatgpt|gpt|claude|dan)\b
  | \bas\ an\ (?:ai|llm)\b(?:\ (?:language\ )?model)? | \bas\ a\ (?:large\ )?language\ model\b
  | \b(?:pretend|act)\ (?:to\ be|as\ if|as\ an?\ (?:ai|assistant|expert))\b
  | \b(?:always|only|never)\ (?:answer|respond|reply|say|print|repeat|reveal)\b
  | \b(?:answer|respond|reply)\ (?:only|always|with|in)\b
  | \bin\ (?:every|each|all|your)\ (?:\w+\ )?(?:answer|response|reply|completion)s?\b
  | \byour\ (?:\w+\ )?(?:answer|response|reply|instructions|guidelines|system|training\ data)\b
  | \b(?:repeat|reveal|leak|print)\ (?:\w+\ ){0,2}(?:prompt|instructions|secrets?|api\ keys?)\b
  | \bjail\ ?break | \bprompt\ injection\b
    """,
    re.VERBOSE,
)
_MOST_WORDS = 16
"""A longer text is no label: none of LEMUR's networks has one outside messages to a human."""
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[,.;:!?]?\s+)(?=[^\W\d_])")
_ANYWHERE = (
    *("sk-", "k_live", "k_test", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat", "hf_"),
    *("akia", "asia", "aiza", "ya29", "xox", "glpat", "npm_", "pypi-", "sg.", "dop_v1"),
    *("private", "ssh-", "eyj", "bearer", "apikey", "api_key", "secret", "passw", "_token"),
    *("authtoken", "accesstoken", "instruction", "prompt", "message", "context", "rule", "guide"),
    *("direction", "you", "as an", "as_an", "asan", "as a l", "as_a_l", "language", "pretend"),
    *("act as", "act_as", "actas", "answer", "respond", "reply", "always", "only", "never"),
    *("response", "completion", "jail"),
)
_IN_STRINGS = (
    *_ANYWHERE,
    *("@", "://", "<", "inst]", "##", "```", "~~~", "system", "user", "assistant", "human"),
)
"""Every match of a pattern contains one of these in lower case; most networks contain none, which
makes the search quick."""
_PLAIN_WORD = re.compile(r"[A-Za-z_]+ | [A-Z][A-Za-z]+[123]d | [a-z_]+[0-9]{1,2}", re.VERBOSE)
"""Such as ``relu``, ``Conv2d`` and ``layer1``."""
_DIGIT = re.compile(r"[0-9]")
_STRING = re.compile(r"\"[^\"\n]*\"|'[^'\n]*'")
_CODES = re.compile(r"(?:\b(?:0x[0-9a-fA-F]{2}|\d{2,3})\s*,\s*){11,}")
_ENCODED = re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}")
_TOGETHER = ast.List | ast.Tuple | ast.BinOp | ast.JoinedStr
_GROUPS = _TOGETHER | ast.Set | ast.Dict | ast.Call
_SAID = frozenset({"print", "warn", "_assert"})
"""Functions and methods whose arguments are read by a human."""


def suspect_text(code: str, *, prose: bool = True) -> str | None:
    """What a network says that no LLM must learn, as one short line; ``None``: nothing was found.

    Args:
        code: The source as it would be trained on, so after cleaning.
        prose: Look for long texts too, as in docstrings.
    """
    if not _may_be_suspect(code):
        return None
    try:
        tree = ast.parse(code)
        strings, groups = list(_strings(tree)), list(_groups(tree))
    except (SyntaxError, ValueError, RecursionError):
        return UNREADABLE
    for text in (*strings, *groups, *_comments(code)):
        if found := _finding(text):
            return f"{found} in a string"
    if any(map(_is_key_like, strings)):
        return f"{SECRET} in a string"
    if _PROMPT.search(_plain(" ".join(strings))):
        return f"{PROMPT} in a string"
    if prose and any(_words_in(text) >= _MOST_WORDS for text in strings):
        return f"{PROSE} in a string"
    for name in set(_names(tree)):
        if found := _finding(name):
            return f"{found} in a name"
    return SECRET_VALUE if any(_secret_values(tree)) else None


def is_suspect(line: str) -> bool:
    """Whether a line of text, such as an error message, has something that no LLM must read."""
    return _finding(line) is not None


def as_trained(code: str) -> str:
    """The source of an accepted network as an LLM is trained on it: cleaned, without such messages.

    One that cannot be cleaned stays as it was written.
    """
    with suppress(SyntaxError):
        code = clean_source(without_noise(code))
    return without_messages(code)


def without_messages(code: str) -> str:
    """The source with suspect messages to a human emptied; unchanged where there are none."""
    if not _may_be_suspect(code):
        return code
    try:
        tree = ast.parse(code)
        emptier = _Emptier()
        emptier.visit(tree)
        return ast.unparse(tree) if emptier.emptied else code
    except (SyntaxError, ValueError, RecursionError):
        return code


class _Emptier(ast.NodeTransformer):
    """Empties the strings of messages that are suspect."""

    emptied = False
    _inside = False

    def visit_Raise(self, node: ast.Raise) -> Any:
        return self._message(node)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        if node.msg is not None:
            node.msg = self._message(node.msg)
        return node

    def visit_Expr(self, node: ast.Expr) -> Any:
        call = node.value
        if isinstance(call, ast.Call) and _last_name(call.func) in _SAID:
            return self._message(node)
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if self._inside and isinstance(node.value, str | bytes):
            node.value = type(node.value)()
        return node

    def _message(self, node: Any) -> Any:
        texts = [*_strings(node), " ".join(_strings(node))]
        if any(_finding(t) or _words_in(t) >= _MOST_WORDS for t in texts):
            self.emptied, self._inside = True, True
            node = self.visit(node) if isinstance(node, ast.expr) else self.generic_visit(node)
            self._inside = False
        return node


@lru_cache(maxsize=16)
def _may_be_suspect(code: str) -> bool:
    """A quick test that lets no text pass that the patterns find."""
    lower = code.lower()
    if not code.isascii() or "#" in code or '"""' in code or "'''" in code:
        return True
    found = [text[1:-1] for text in _STRING.findall(code)]
    joined = "".join(found).lower()
    backwards = joined[::-1]
    return (
        "\\" in joined
        or any(part in lower for part in _ANYWHERE)
        or any(part in joined or part in backwards for part in _IN_STRINGS)
        or any(text.count(" ") >= _MOST_WORDS - 1 for text in found)
        # A text that is encoded has capitals and digits all over.
        or any(map(_DIGIT.search, _ENCODED.findall("".join(filter(_is_odd, found)))))
        or bool(_CODES.search(code))
    )


def _is_odd(text: str) -> bool:
    return _PLAIN_WORD.fullmatch(text) is None


@lru_cache(maxsize=1 << 14)
def _finding(text: str) -> str | None:
    for read in _readings(text):
        if _SECRETS.search(read):
            return SECRET
        plain = _plain(read)
        if _MARKUP.search(plain):
            return MARKUP
        if _PROMPT.search(plain):
            return PROMPT
    return None


def _readings(text: str) -> Iterator[str]:
    """The text as it is, backwards, and as what it decodes to."""
    # Letters in another form, and characters that nobody sees.
    text = unicodedata.normalize("NFKC", text)
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    yield text
    yield text[::-1]
    packed = "".join(text.split())
    for found in _ENCODED.findall(packed):
        for decode in (_base64, bytes.fromhex):
            try:
                read = decode(found.strip("="))
            except (ValueError, binascii.Error):
                continue
            plain = read.decode("utf-8", "replace")
            if plain.isprintable():
                yield plain


def _is_key_like(text: str) -> bool:
    """Whether a part of it looks random."""
    return bool(_HEXADECIMAL.search(text)) or any(
        len(_PARTS.findall(part)) > _MOST_PARTS * len(part) for part in _KEY_LIKE.findall(text)
    )


def _base64(text: str) -> bytes:
    text = text.replace("-", "+").replace("_", "/")
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def _plain(text: str) -> str:
    """Lower-case words with single spaces: ``ignoreAll_rules`` -> ``ignore all rules``."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    return re.sub(r"[\s_]+", " ", spaced).lower()


def _words_in(text: str) -> int:
    return len(_WORDS.findall(text)) + 1


def _strings(root: ast.AST, within: type[ast.AST] | UnionType = ast.AST) -> Iterator[str]:
    """The string and bytes constants of a tree, in the order of the source.

    Only nodes of the type ``within`` are looked into.
    """
    if isinstance(root, ast.Constant):
        if isinstance(root.value, str):
            yield root.value
        elif isinstance(root.value, bytes):
            yield root.value.decode("utf-8", "replace")
        return
    for child in ast.iter_child_nodes(root):
        if isinstance(child, within | ast.Constant):
            yield from _strings(child, within)


def _groups(tree: ast.AST) -> Iterator[str]:
    """Strings that belong together, joined, and lists of character codes as text."""
    for node in ast.walk(tree):
        if not isinstance(node, _GROUPS):
            continue
        parts = list(_strings(node, _TOGETHER))
        if len(parts) > 1:
            yield "".join(parts)
            yield " ".join(parts)
        if isinstance(node, ast.List | ast.Tuple):
            values = [n.value for n in node.elts if isinstance(n, ast.Constant)]
            if len(values) > 8 and all(type(v) is int and 9 <= v < 127 for v in values):
                yield "".join(map(chr, values))  # type: ignore[arg-type]


def _comments(code: str) -> Iterable[str]:
    """Comments stay in a source that could not be cleaned."""
    return re.findall(r"#[^\n]*", code) if "#" in code else ()


def _names(tree: ast.AST) -> Iterator[str]:
    """Every name, and names that are read one after the other: ``a.b.c``, ``f(a, b)``."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.alias(name=name):
                yield name
            case ast.keyword(arg=str(name)) | ast.MatchAs(name=str(name)):
                yield name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Attribute():
                yield " ".join(reversed(list(_chain(node))))
            case ast.arguments():
                yield " ".join(a.arg for a in (*node.posonlyargs, *node.args, *node.kwonlyargs))
            case ast.Call(keywords=keywords):
                yield " ".join(k.arg for k in keywords if k.arg)
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                yield " ".join(e.id for e in elements if isinstance(e, ast.Name))
            case _:
                pass


def _chain(node: ast.expr) -> Iterator[str]:
    while isinstance(node, ast.Attribute):
        yield node.attr
        node = node.value
    if isinstance(node, ast.Name):
        yield node.id


def _secret_values(tree: ast.AST) -> Iterator[bool]:
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=targets, value=value):
                yield any(_is_secret(_last_name(target), value) for target in targets)
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                yield _is_secret(_last_name(target), value)
            case ast.keyword(arg=str(name), value=value):
                yield _is_secret(name, value)
            case ast.arguments():
                named = [*node.posonlyargs, *node.args][::-1]
                pairs = [*zip(named, node.defaults[::-1], strict=False)]
                only = [*zip(node.kwonlyargs, node.kw_defaults, strict=True)]
                yield any(_is_secret(a.arg, value) for a, value in (*pairs, *only))
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    if isinstance(key, ast.Constant) and isinstance(key.value, str):
                        yield _is_secret(key.value, value)
            case _:
                pass


def _is_secret(name: str, value: ast.expr | None) -> bool:
    if value is None or not _SECRET_NAME.search(name):
        return False
    return len("".join(_strings(value))) >= 8


def _last_name(node: ast.expr) -> str:
    """The name that a value is kept or called under: ``self.a`` and ``a["b"]`` have one too."""
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
        case ast.Subscript(slice=ast.Constant(value=str(name))):
            return name
        case _:
            return ""
