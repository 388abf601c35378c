"""Networks that import the building blocks, as a single file and back."""

from __future__ import annotations

import ast
import importlib
import random

import pytest

from archloop import blocks
from archloop.code.chat import extract_code, render_code
from archloop.code.hygiene import as_trained
from archloop.code.linking import linked, unlinked
from archloop.code.policy import check
from archloop.code.reading import decode_source
from archloop.novelty import jaccard, shingles, tokens
from archloop.search.designs import design

SHORT = """from archloop.blocks import *

class Net(Design):

    def layers(self, classes):
        return [
            conv(32),
            nn.MaxPool2d(2),
            Skip(conv(), conv()),
            head(classes),
        ]
"""


def names(source: str) -> list[str]:
    body = ast.parse(source).body
    return [n.name for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef)]


def test_what_a_network_uses_is_defined_in_it_and_nothing_else() -> None:
    found = linked(SHORT)
    assert names(found) == [
        "supported_hyperparameters",
        "LazyConv",
        "conv",
        "head",
        "Skip",
        "Design",
        "Net",
    ]
    assert found.startswith("import torch\nimport torch.nn as nn\n")
    assert "archloop" not in found
    assert check(found) is None


def test_names_can_be_imported_one_by_one() -> None:
    source = SHORT.replace("*", "Design, Skip, conv, head, nn")
    assert sorted(names(linked(source))) == sorted(names(linked(SHORT)))


def test_a_definition_of_the_network_s_own_is_kept() -> None:
    own = "def conv(width=None):\n    return nn.LazyConv2d(width or 32, 3, padding=1)\n\n"
    found = linked(SHORT.replace("class Net", own + "class Net"))
    assert names(found).count("conv") == 1
    assert "padding=1)" in found


def test_an_unknown_name_stays_an_import_that_the_policy_names() -> None:
    source = SHORT.replace("*", "Design, Transformer, head").replace("conv(32)", "Transformer()")
    fault = check(linked(source))
    assert fault is not None
    assert "archloop.blocks.Transformer" in (fault.error or "")


@pytest.mark.parametrize(
    "source", ["x = 1\n", "import torch\n", "class Net(:\n", "# archloop.blocks\nx = (\n"]
)
def test_other_sources_stay_as_they_are(source: str) -> None:
    assert linked(source) == source
    assert unlinked(source) == source


def test_a_network_is_written_as_short_as_it_was() -> None:
    assert unlinked(linked(SHORT)) == SHORT


def test_cleaning_changes_nothing_that_was_linked() -> None:
    found = linked(SHORT)
    assert ast.dump(ast.parse(as_trained(found))) == ast.dump(ast.parse(found))
    assert unlinked(as_trained(found)) == SHORT.strip()


def test_a_changed_block_is_not_taken_for_the_library_s() -> None:
    found = linked(SHORT).replace("x + super().forward(x)", "x - super().forward(x)")
    assert linked(unlinked(found)).count("x - super().forward(x)") == 1


def test_designs_make_a_round_trip_through_an_answer() -> None:
    for number in range(40):
        code, _ = design(random.Random(number))
        answer = render_code(code)
        assert len(answer) < 1_200
        answered = extract_code(answer)
        assert answered is not None
        assert ast.dump(ast.parse(answered)) == ast.dump(ast.parse(code))
        assert render_code(answered) == answer
        assert check(code) is None


def test_a_file_that_imports_the_blocks_is_read_with_them() -> None:
    text, fault = decode_source(SHORT.encode())
    assert fault is None
    assert text == linked(SHORT)


def test_the_blocks_make_networks_no_more_alike() -> None:
    other = SHORT.replace("Skip(conv(), conv())", "conv(64, 5), Gate(depthwise(7), mix(1))")
    assert tokens(linked(SHORT)) == tokens(SHORT)
    assert tokens(as_trained(linked(SHORT))) == tokens(SHORT)
    similarity = jaccard(shingles(linked(SHORT)), shingles(linked(other)))
    assert similarity == jaccard(shingles(SHORT), shingles(other)) < 0.7


def test_the_module_defines_what_its_source_says() -> None:
    importlib.reload(blocks)
    for name in names(linked(SHORT)):
        assert name == "Net" or hasattr(blocks, name)
