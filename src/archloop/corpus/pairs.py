"""Prompt-code pairs, and reading and writing a corpus of them: chat rows in JSONL."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from archloop.code.chat import code_sha256, extract_code, render_code
from archloop.errors import UsageError
from archloop.files import replacing
from archloop.types import ChatPair, Message

T = TypeVar("T")


def make_pair(prompt: Sequence[Message], code: str, meta: Mapping[str, Any]) -> ChatPair:
    """A corpus row; its id is a hash of its content, so the same input gives the same row."""
    system, user = prompt
    answer: Message = {"role": "assistant", "content": render_code(code)}
    key = "\0".join((system["content"], user["content"], answer["content"]))
    return ChatPair(
        hashlib.sha256(key.encode()).hexdigest()[:32], (system, user, answer), dict(meta)
    )


def pair_from_json(row: Mapping[str, Any]) -> ChatPair:
    """Read a corpus row.

    Raises:
        ValueError: The row is not system, user and assistant messages with text, or its meta is no
            object.
    """
    messages: Any = row.get("messages")
    roles = [m.get("role") for m in messages] if isinstance(messages, list) else None
    if roles != ["system", "user", "assistant"]:
        raise ValueError(f"expected messages of system, user, assistant; got {roles}")
    if not all(isinstance(m.get("content"), str) for m in messages):
        raise ValueError("a message's content is not text")
    meta: Any = row.get("meta") or {}
    if not isinstance(meta, Mapping):
        raise ValueError(f"meta is no object but {meta!r}")
    system, user, assistant = messages
    fallback = hashlib.sha256("\0".join(m["content"] for m in messages).encode()).hexdigest()[:32]
    return ChatPair(str(row.get("id") or fallback), (system, user, assistant), dict(meta))


def distinct_codes(pairs: Iterable[ChatPair]) -> Iterator[tuple[str, str]]:
    """(id, code) of every network in a corpus, once, even if it has several prompts.

    Different networks with the same id, for example of two runs, get a number appended.
    """
    seen: set[str] = set()
    ids: Counter[str] = Counter()
    for pair in pairs:
        code = extract_code(pair.code)
        if code is not None and (digest := code_sha256(code)) not in seen:
            seen.add(digest)
            id_ = str(pair.meta.get("source") or pair.meta.get("candidate") or pair.id)
            ids[id_] += 1
            yield id_ if ids[id_] == 1 else f"{id_}#{ids[id_]}", code


def seeds_to_judge(pairs: Iterable[ChatPair]) -> dict[str, str]:
    """Code of every seed network by an id that no candidate has: it may be another run's candidate.

    The novelty judge compares no network with the one of its own id.
    """
    return {f"seed:{id}": code for id, code in distinct_codes(pairs)}


def read_pairs(file: Path) -> list[ChatPair]:
    """A corpus file; see :func:`read_rows`."""
    return list(read_rows(file, pair_from_json))


def read_rows(file: Path, parse: Callable[[Any], T]) -> Iterator[T]:
    """The rows of a chat JSONL file, which may be compressed (``.gz``), one after the other.

    Args:
        file: One JSON value a line.
        parse: Makes a row of the value, or raises what a wrong one leads to.

    Raises:
        UsageError: Naming the file that cannot be read, or its line that is no chat row.
    """
    if not file.is_file():
        raise UsageError(f"{file}: no such corpus file")
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                yield _parsed(f"{file}:{number}", line, parse)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{file}: not a readable corpus file ({error})") from None


def _parsed(where: str, line: bytes, parse: Callable[[Any], T]) -> T:
    try:
        return parse(json.loads(line.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not a readable corpus file ({error})") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{where}: not a chat row ({error})") from None


def write_pairs(file: Path, pairs: Iterable[ChatPair]) -> None:
    """Write a corpus file, completely or not at all."""
    write_rows(file, (pair.to_json() for pair in pairs))


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write chat rows, of pairs or of lessons, completely or not at all."""
    with replacing(file) as sink:
        for row in rows:
            sink.write(json.dumps(row, ensure_ascii=False) + "\n")
