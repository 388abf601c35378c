"""The pieces of an answer that may be code: fenced blocks and, where none fits, other markup.

LLMs fence code in more ways than CommonMark knows: within a line, with a title behind the language,
indented, quoted, unclosed, or around a docstring that holds fences of its own. So a block ends
where its text is Python, if there is such a place. What a reasoning model drafts inside ``<think>``
is left out. Answers are hostile too: the time is bounded by their length.
"""

from __future__ import annotations

import ast
import contextlib
import html
import json
import re
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from archloop.code.policy import MAX_SOURCE_BYTES

Label = Literal["python", "none", "other"]
"""What the line of the opening fence says about the language."""

_WINDOW = 2 * MAX_SOURCE_BYTES
"""Characters in which the end of a block is looked for; longer sources are refused anyway."""
_INFO = 500
"""Characters behind a fence that are looked at; no title is longer."""
_DEPTH = 4
"""Quotes within quotes that are followed."""

_THINK_TAG = "(?:think|thinking|thoughts?|reasoning|scratchpad|seed:think)"
_THINK = (
    (f"<{_THINK_TAG}>", f"</{_THINK_TAG}>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    (r"◁think▷", r"◁/think▷"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|channel\|>(?:analysis|commentary)", r"<\|channel\|>final|<\|(?:end|return|call)\|>"),
)
_THOUGHT = rf"</{_THINK_TAG}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|channel\|>final"
"""The end of reasoning; some chat templates begin it in the prompt, so that it stands alone."""
_EVENT = re.compile(
    r"(?P<fence>`{3,}|~{3,})|(?<!`)(?:"
    + "|".join(f"(?P<draft{i}>{begin})" for i, (begin, _) in enumerate(_THINK))
    + f"|(?P<drafted>{_THOUGHT}))",
    re.IGNORECASE,
)
_END_OF_DRAFT = [re.compile(end, re.IGNORECASE) for _, end in _THINK]

_QUOTED = re.compile(r"(?:[ \t]*+>[^\n]*+(?:\n|\Z))++")
_QUOTE = re.compile(r"^[ \t]*> ?", re.MULTILINE)
_PYTHON_NAME = re.compile(r"(?:i?python|py)[\d.]*|py?torch|pycon|[\w.-]*\.py", re.IGNORECASE)
_CODE_ON_FENCE = re.compile(r"(?:import|from|class|def)\s+\w|@\w|[rRbBuU]?(?:\"\"\"|''')")
_LEXEME = re.compile(
    r"#[^\n]*+"
    r'|"""(?:[^"\\]|\\.|"(?!""))*+(?:"""|\Z)'
    r"|'''(?:[^'\\]|\\.|'(?!''))*+(?:'''|\Z)"
    r'|"(?:[^"\\\n]|\\.)*+"?'
    r"|'(?:[^'\\\n]|\\.)*+'?"
    r"|(?P<fence>`{3,}|~{3,})",
    re.DOTALL,
)
"""Comments and strings of Python, in which a fence is none."""

_TAGS = (
    r"pre|code|python|py|nn|net|network|model|answer|solution|final|output|response|result|file"
    r"|content|artifact|antartifact|document|textarea|script|div|p|tool_call"
)
_MARKUP = re.compile(
    rf"</?(?:{_TAGS})(?:\s[^<>\n]{{0,200}})?>"
    r"|<\|[^|<>\n]{1,40}\|>|</?s>|\[/?(?:PYTHON|CODE|ANSWER|INST)\]"
    r"|\\(?:begin|end)\{\w{1,20}\}(?:\[[^\]\n]{0,100}\]|\{\w{0,20}\}){0,2}"
    r"|<!\[CDATA\[|\]\]>"
    r"|^[ \t]*+(?:`+|~{3,}|'''|\"\"\")[\w.]{0,20}[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
"""What else stands around code: HTML, tags of prompts, special tokens, LaTeX, half a fence."""
_INDENTED = re.compile(r"(?:(?:[ ]{2}|\t)[^\n]*+(?:\n|\Z)|[ \t]*+\n)++")


@dataclass(frozen=True)
class Block:
    """A piece of an answer."""

    text: str
    label: Label
    tree: ast.Module | None
    """``None``: it is not Python."""

    @property
    def defines_net(self) -> bool:
        """Whether it is Python that defines ``Net`` at module level."""
        return self.tree is not None and any("Net" in _bound(node) for node in self.tree.body)


@dataclass
class Pieces:
    """What an answer consists of."""

    blocks: list[Block] = field(default_factory=list)
    """Fenced blocks that are not blank, in the order of the answer."""
    prose: list[str] = field(default_factory=list)
    """The answer without drafts and without the blocks that are Python."""
    drafts: bool = False
    """Whether reasoning was left out."""
    cut: bool = False
    """Whether the answer ends within its reasoning."""
    labels: list[str] = field(default_factory=list)
    """Languages of the blocks that are not marked as Python."""


def fenced(answer: str) -> Pieces:
    """The fenced blocks of an answer, and what is left without its drafts."""
    pieces = Pieces()
    _Reader(answer, pieces, 64 * len(answer) + _WINDOW, _DEPTH).read()
    return pieces


def unfenced(text: str, *, escaped: bool = True) -> Iterator[list[Block]]:
    """Other readings of an answer without drafts, most likely first: blocks that may be code."""
    if (whole := _block(text, "other")).tree is not None:
        yield [whole]
    yield (segments := [_block(part, "other") for part in _MARKUP.split(text) if part.strip()])
    yield [_block(run[0], "other") for run in _INDENTED.finditer(text) if run[0].strip()]
    strings = [s for segment in segments for s in _json_strings(segment.text)]
    for string in strings:
        yield fenced(string).blocks
    yield [_block(string, "other") for string in strings]
    if escaped and text.count("\n") < text.count("\\n"):
        plain = _unescape(text)
        yield fenced(plain).blocks
        yield from unfenced(plain, escaped=False)


def repaired(block: Block) -> Block:
    """The block without what chats add to code, if it is Python with a ``Net`` then."""
    if block.tree is None and "Net" in block.text:
        for repair in _REPAIRS:
            text = repair(block.text)
            if text != block.text and (found := _block(text, block.label)).defines_net:
                return found
    return block


def parse_python(text: str) -> ast.Module | None:
    """The syntax tree, or ``None`` if this is not Python of a size that may be run."""
    if len(text) > MAX_SOURCE_BYTES:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _bound(node: ast.stmt) -> set[str]:
    """The names that a statement of a module defines or assigns."""
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
            return {name}
        case ast.Assign(targets=targets):
            return {target.id for target in targets if isinstance(target, ast.Name)}
        case _:
            return set()


class _Reader:
    """Reads the blocks of a text into pieces, from the first character to the last.

    Args:
        text: The text; its lines end in a newline alone.
        pieces: Where the blocks go.
        budget: How many characters may be looked at in search of the ends of blocks. Only a hostile
            text, in which the same end is looked for again and again, comes near the limit.
        depth: Quotes in quotes that are followed.
    """

    def __init__(self, text: str, pieces: Pieces, budget: int, depth: int) -> None:
        self._text, self._pieces, self._depth = text, pieces, depth
        self.budget = budget
        self._line_end = -1

    def read(self) -> None:
        """Read the whole text."""
        text, prose, position = self._text, self._pieces.prose, 0
        while self.budget > 0 and (event := _EVENT.search(text, position)):
            begin = position
            if event["fence"]:
                n = len(self._pieces.blocks)
                position = self._open(event, begin)
                if all(b.label == "other" or b.tree is None for b in self._pieces.blocks[n:]):
                    prose.append(text[begin:position])
                continue
            self._pieces.drafts = True
            if event["drafted"]:  # all before it was a draft, which began in the prompt
                for found in (self._pieces.blocks, self._pieces.labels, prose):
                    found.clear()
                position = event.end()
                continue
            prose.append(text[begin : event.start()])
            kind = next(i for i in range(len(_THINK)) if event[f"draft{i}"])
            end = _END_OF_DRAFT[kind].search(text, event.end())
            position = len(text) if end is None else end.end()
            self._pieces.cut = end is None
        prose.append(text[position:])

    def _open(self, fence: re.Match[str], begin: int) -> int:
        """Read the block that a fence opens, if it does; returns where to go on."""
        text, char = self._text, fence[0][0]
        line = text.rfind("\n", begin, fence.start()) + 1 or begin
        before = text[line : fence.start()].lstrip()
        if before.startswith(">") and not before.startswith(">>>"):
            return self._quote(line, fence)
        if before and char == "~":
            return fence.end()
        if self._line_end < fence.end():
            end = text.find("\n", fence.end())
            self._line_end = len(text) if end < 0 else end
        rest = text[fence.end() : min(self._line_end, fence.end() + _INFO)]
        if (closing := rest.find(char * 3)) >= 0:
            self._add(_block(_info(rest[:closing])[1], "other"), only_net=True)
            after = fence.end() + closing
            return after + len(rest[closing:]) - len(rest[closing:].lstrip(char))
        label, code = _info(rest)
        if rest.strip().lower() in ("markdown", "md"):
            return self._line_end
        if before and label == "other" and len(rest.split()) > 1:
            return fence.end()  # a fence in a sentence
        if label == "other":
            self._pieces.labels.append(rest.split()[0])
        start = fence.end() + rest.index(code) if code else min(self._line_end + 1, len(text))
        block, after = self._close(start, fence[0], label)
        self._add(block)
        return after

    def _quote(self, line: int, fence: re.Match[str]) -> int:
        """Read the quoted lines from this one on."""
        quoted = _QUOTED.match(self._text, line)
        if quoted is None or self._depth == 0:
            return fence.end()
        inner = _QUOTE.sub("", quoted[0])
        reader = _Reader(inner, self._pieces, self.budget - len(inner), self._depth - 1)
        reader.read()
        self.budget = reader.budget
        return quoted.end()

    def _add(self, block: Block, *, only_net: bool = False) -> None:
        if block.text.strip() and (block.defines_net or not only_net):
            self._pieces.blocks.append(block)

    def _close(self, start: int, fence: str, label: Label) -> tuple[Block, int]:
        """The block that starts here, and where to go on: the first end that makes it Python.

        A block of another language is taken as CommonMark would.
        """
        text = self._text
        closing = re.compile(rf"^[ \t]*+{_at_least(fence)}[ \t]*$", re.MULTILINE)
        found = closing.search(text, start)
        strict = (found.start(), found.end()) if found else (len(text), len(text))
        self.budget -= strict[1] - start + 1
        reopened = _reopening(fence).search(text, start, strict[0])
        outside = self._end_outside_strings(start, fence) if label != "other" else None
        if reopened:  # the block before it was never closed
            last = (reopened.start(), reopened.start())
        else:
            last = strict if found or outside is None else outside
        ends = [outside or last, strict, last] if label != "other" else [last]
        for end, after in dict.fromkeys(ends):
            block = _block(text[start:end], label)
            if block.tree is not None:
                return block, after
        return _block(text[start : last[0]], label), last[1]

    def _end_outside_strings(self, start: int, fence: str) -> tuple[int, int] | None:
        """The first fence outside strings and comments: where a block ends, where to go on."""
        text, stop = self._text, min(len(self._text), start + _WINDOW)
        for lexeme in _LEXEME.finditer(text, start, stop):
            found = lexeme["fence"]
            if found and found.startswith(fence):
                self.budget -= lexeme.end() - start
                line = text.rfind("\n", start, lexeme.start()) + 1 or start
                if _reopening(fence).match(text, line):
                    return line, line
                blank = not text[line : lexeme.start()].strip()
                if fence[0] == "`" or blank:
                    return line if blank else lexeme.start(), lexeme.end()
        self.budget -= stop - start
        return None


def _reopening(fence: str) -> re.Pattern[str]:
    """A line that opens a Python block, though one with this fence is still open."""
    return re.compile(rf"^[ \t]*+{_at_least(fence)}[ \t]*[{{.]*(?:i?python|py\b)", re.M | re.I)


def _at_least(fence: str) -> str:
    """The expression of a fence of this length or longer."""
    return f"{fence[0]}{{{len(fence)},}}"


def _info(rest: str) -> tuple[Label, str]:
    """The language that the text behind an opening fence names, and the code that begins there."""
    said = rest.strip()
    said, _, glued = said.partition("\\n")  # an escaped newline between the language and the code
    if glued:
        return _info(said)[0], glued
    if _CODE_ON_FENCE.match(said):
        return "none", said
    first, _, more = said.partition(" ")
    names = re.findall(r"[\w.+#-]+", said)
    if not names:
        return "none", ""
    if not any(_PYTHON_NAME.fullmatch(name.strip(".")) for name in names):
        return "other", ""
    more = more.strip()
    return "python", more if _PYTHON_NAME.fullmatch(first) and _CODE_ON_FENCE.match(more) else ""


def _block(text: str, label: Label) -> Block:
    """A block of this text; an indented one is moved to the margin."""
    text = text.strip("\r\n")
    tree = parse_python(text)
    if tree is None and text[:1] in (" ", "\t") and len(text) <= _WINDOW:
        moved = textwrap.dedent(text)
        if (tree := parse_python(moved)) is not None:
            text = moved
    return Block(text, label, tree)


def _json_strings(text: str) -> list[str]:
    """The strings of a JSON value that may hold code; arguments of a tool call are JSON again."""
    values, strings = list(_json(text)), []
    while values:
        value = values.pop()
        if isinstance(value, dict):
            values += reversed(value.values())
        elif isinstance(value, list):
            values += reversed(value)
        elif isinstance(value, str) and len(value) > len("class Net"):
            inner = list(_json(value))
            values += inner
            strings += [] if inner else [value]
    return strings


def _json(text: str) -> Iterator[Any]:
    """The JSON value that the text is, if it is one."""
    if text.lstrip()[:1] in ("{", "[", '"'):
        with contextlib.suppress(ValueError, RecursionError):
            yield json.loads(text, strict=False)


_DIFF_HEADS = ("+++ ", "--- ", "@@", "diff ", "index ")
_NUMBERED = re.compile(r"[ \t]*\d{1,5}(?:[|:│.][ \t]?|[ \t][|:│][ \t]?|[ \t]|$)(.*)|[ \t]*")
_ESCAPES = {"n": "\n", "t": "\t", "r": ""}


def _unescape(text: str) -> str:
    return re.sub(r"\\([ntr\"'\\/])", lambda m: _ESCAPES.get(m[1], m[1]), text)


def _visible(text: str) -> str:
    """Without characters that only look like a space or like nothing."""
    return re.sub("[\u200b-\u200d\u2060\ufeff]", "", text).replace("\xa0", " ")


def _without_prompts(text: str) -> str:
    """The input of a Python session; lines without a prompt are output."""
    prompts = re.findall(r"^[ \t]*(?:>>>|\.\.\.)(?: |$)(.*)$", text, re.MULTILINE)
    return "\n".join(prompts) or text


def _without_diff(text: str) -> str:
    """What a unified diff leads to."""
    lines = [line for line in text.split("\n") if line and not line.startswith(_DIFF_HEADS)]
    if not any(line[0] == "+" for line in lines) or any(line[0] not in "+- \\" for line in lines):
        return text
    return "\n".join(line[1:] for line in lines if line[0] in "+ ")


def _without_numbers(text: str) -> str:
    """Without line numbers, if every line has one."""
    lines = [_NUMBERED.fullmatch(line) for line in text.split("\n")]
    return "\n".join(line[1] or "" for line in lines if line) if all(lines) else text


def _without_magics(text: str) -> str:
    """Without the lines of a notebook that are not Python."""
    return re.sub(r"^[ \t]*[!%].*\n?", "", text, flags=re.MULTILINE)


def _without_markup(text: str) -> str:
    return html.unescape(re.sub(r"<[^<>\n]{0,200}>", "", text))


def _without_escaped_ends(text: str) -> str:
    return text.removesuffix("\\n").removeprefix("\\n")


def _without_cut_fence(text: str) -> str:
    """Without the part of a closing fence that an answer ends with at the token limit."""
    return text.rstrip().rstrip("`~")


_REPAIRS = (
    _without_cut_fence,
    _visible,
    _without_prompts,
    _without_diff,
    _without_numbers,
    _without_magics,
    _without_markup,
    _without_escaped_ends,
    html.unescape,
    _unescape,
)
