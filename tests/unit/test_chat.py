from __future__ import annotations

import ast
import gc
import random
import time
from pathlib import Path

import pytest

from archloop.code.chat import extract, extract_code, render_code
from archloop.corpus.pairs import make_pair, pair_from_json
from archloop.search.prompts import CIFAR10, PromptTemplate
from archloop.store.run_dir import Run
from conftest import network

CODE = """import torch
class Net:
    text = 'a ``` inside a line'

    def f(self):
        return 1"""
NET = "class Net:\n    pass"
ANSWERS = Path(__file__).parents[1] / "answers"
RUNS = Path(__file__).parents[2] / "docs" / "runs"


@pytest.mark.parametrize(
    "code",
    [
        CODE,
        "x = 1",
        f"{NET}\n# é \\n literal",
        f'"""Use:\n\n```python\nNet()\n```\n"""\n{NET}',
        f"'''\n~~~~\n````\n'''\n{NET}",
        f"{NET}\nx = '<think>'  # </think> <code>",
        "def broken(:\n```\n````python\nclass Net",
        "x = '" + "y" * 200_000 + "'",
    ],
)
def test_extract_undoes_render(code: str) -> None:
    assert extract_code(render_code(code)) == code


def test_extract_undoes_render_whatever_the_code_holds() -> None:
    pieces = ["```", "~~~", "\n", "\n", '"""', "'''", "#", " ", "    ", "<think>", "</think>"]
    pieces += ["x = 1", "> ", ">>> ", "\\n", "&lt;", "'", "<code>", "+", "class Net: pass", "`"]
    draw = random.Random(7)
    codes = {"".join(draw.choices(pieces, k=draw.randint(1, 12))).strip() for _ in range(3000)}
    python = [code for code in codes if code and _parses(code)]
    assert len(python) > 100
    for code in python:
        assert extract_code(render_code(code)) == code


def _parses(code: str) -> bool:
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


@pytest.mark.parametrize("answer", sorted(ANSWERS.glob("*.txt")), ids=lambda path: path.stem)
def test_a_recorded_style_of_answer(answer: Path) -> None:
    found = extract(answer.read_bytes().decode())
    reason = answer.with_suffix(".why")
    if reason.exists():
        assert (found.code, found.reason) == (None, reason.read_text().rstrip("\n"))
    else:
        assert found.code == answer.with_suffix(".py").read_text().rstrip("\n")
        assert found.reason is None


@pytest.mark.parametrize("fence", ["```", "````", "```````", "~~~", "~~~~~"])
@pytest.mark.parametrize(
    "info",
    ["", "python", "py", "Python3", "PYTHON", "pytorch", " python", "python3.12", "ipython"]
    + ['python title="net.py"', "{python}", "{.python .numberLines}", "python:net.py"]
    + ["src/net.py", "python,linenos", "{code-block} python", "python # net.py", "text", "code"],
)
def test_a_fence_may_be_of_any_length_and_say_anything(fence: str, info: str) -> None:
    assert extract_code(f"Hi.\n\n{fence}{info}\n{NET}\n{fence}\n\nBye.") == NET


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
        ("```python\nclass Net:\n    cut = (1,", "class Net:\n    cut = (1,"),
        ("```python\r\nclass Net: pass\r\n```", "class Net: pass"),
        ("```python\nx = 1\n```\n```python\ny = 2\n```", "x = 1"),
        ("```class Net: pass```", "class Net: pass"),
        ("a ```class Net: pass``` b", "class Net: pass"),
        ("````python\nclass Net: pass\n```\n", "class Net: pass"),
        ("```python\nclass Net: pass\n~~~\n```", "class Net: pass"),
        ("class Net: pass", "class Net: pass"),
        ("```python\nclass Net: pass\n``", "class Net: pass"),
        (
            "<think></pre>```\nclass Net: draft\n```</think>```\nclass Net: pass\n```",
            "class Net: pass",
        ),
        ("\ufeffclass Net: pass\n", "class Net: pass"),
        ("net = Net()", None),
    ],
)
def test_extract_takes_what_is_code(answer: str, expected: str | None) -> None:
    assert extract_code(answer) == expected


def test_the_last_complete_net_wins() -> None:
    first, last = network(init="self.first = 1"), network(init="self.last = 1")
    part = "class Net:\n    ..."
    blocks = [first, last, part, last[: len(last) // 2]]
    assert extract_code("\n".join(map(render_code, blocks))) == last.strip()
    assert extract_code("\n".join(map(render_code, [first, part[:-3]]))) == first.strip()


def test_helpers_come_before_what_needs_them_and_only_those() -> None:
    uses, helper = "class Net(Base):\n    size = WIDTH", "class Base:\n    size = WIDTH"
    blocks = ["print(Net())", uses, helper, "WIDTH = 3", "UNUSED = 4"]
    answer = "\n".join(map(render_code, blocks))
    assert extract_code(answer) == f"WIDTH = 3\n\n{helper}\n\n{uses}"


def test_modules_of_the_answer_itself_are_not_imported() -> None:
    helper = "from __future__ import annotations\nclass Flat:\n    pass"
    uses = "from .layers import Flat\nimport torch\nclass Net(Flat):\n    pass"
    expected = (
        "from __future__ import annotations\n\nclass Flat:\n    pass\n\n"
        "import torch\nclass Net(Flat):\n    pass"
    )
    assert extract_code(f"{render_code(uses)}\n{render_code(helper)}") == expected


@pytest.mark.parametrize(
    "hostile",
    [
        "`",
        "```\n",
        "```python\n",
        "a ```b``` ",
        '```python\n\\"""\n```\n',
        "```python\n'''\n```\n~~~python\n\"\"\"\n~~~\n",
        "> ```python\n",
        "<think>",
        "</think>",
        "<pre ",
        "[",
        "class Net\\n",
        "```python\nclass Net: x = " + "-" * 3000 + "1\n```\n",
        "```python\nclass Net(Net): pass\n```\n",
    ],
)
def test_a_hostile_answer_takes_time_in_proportion_to_its_length(hostile: str) -> None:
    def seconds(size: int) -> float:
        answer = hostile * (size // len(hostile))
        began = time.process_time()
        extract(answer)
        return time.process_time() - began

    gc.collect()
    gc.disable()  # it would look at all that other tests have left
    try:
        assert seconds(120_000) < 8 * seconds(30_000) + 0.3
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["embedded-22", "embedded-capped"])
def test_answers_of_a_published_run_have_the_code_that_was_judged(name: str) -> None:
    with Run.open(RUNS / name) as run:
        codes = {(c.cycle, c.index): c.code for c in run.store.candidates()}
        texts = [c for s in run.cycles() for c in run.store.completions(s.cycle)]
    assert texts
    for completion in texts:
        assert extract_code(completion.text) == codes[completion.cycle, completion.index]


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
