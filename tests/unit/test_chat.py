from __future__ import annotations

import pytest

from archloop.code.chat import extract_code, render_code
from archloop.corpus.pairs import make_pair, pair_from_json
from archloop.search.prompts import CIFAR10, PromptTemplate

CODE = """import torch
class Net:
    text = 'a ``` inside a line'

    def f(self):
        return 1"""


@pytest.mark.parametrize("code", [CODE, "x = 1", "class Net: pass\n# é \\n literal"])
def test_extract_undoes_render(code: str) -> None:
    assert extract_code(render_code(code)) == code


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("no fence at all: class Net: pass", None),
        ("```python\n```", None),
        ("```js\nclass Net {}\n```", None),
        ("```\nclass Net: pass\n```", "class Net: pass"),
        ("Sure!\n```python\nclass Net: pass\n```\nHope it helps.", "class Net: pass"),
        ("```python\nimport torch\n```\n```python\nclass Net: pass\n```", "class Net: pass"),
        ("```python\nclass Net:\n    cut = 1", "class Net:\n    cut = 1"),
        ("```python\r\nclass Net: pass\r\n```", "class Net: pass"),
    ],
)
def test_extract_takes_the_block_that_defines_net(answer: str, expected: str | None) -> None:
    assert extract_code(answer) == expected


def test_a_pair_has_a_content_id_and_reads_back() -> None:
    prompt = PromptTemplate().render(CIFAR10, 500_000)
    pair = make_pair(prompt, CODE, {"family": "alt"})
    assert pair == make_pair(prompt, CODE, {"family": "alt"})
    assert pair.id != make_pair(prompt, CODE + "\n\ny = 2", {}).id
    assert pair_from_json(pair.to_json()) == pair
    assert [m["role"] for m in pair.messages] == ["system", "user", "assistant"]


@pytest.mark.parametrize(
    "row", [{}, {"messages": []}, {"messages": [{"role": "user", "content": "x"}]}]
)
def test_a_row_that_is_no_chat_is_refused(row: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected messages"):
        pair_from_json(row)
