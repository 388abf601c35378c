from __future__ import annotations

import ast
import io
import os
import random
import re
import sys
import tokenize
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from archloop.config import NoveltyConfig
from archloop.novelty import (
    CodeTokenError,
    NoveltyIndex,
    NoveltyJudge,
    deduplicate,
    jaccard,
    shingles,
    tokens,
    visit,
)
from archloop.novelty import bands as bands_module
from archloop.novelty import index as index_module
from archloop.novelty.bands import Bands
from archloop.novelty.index import RECALL_AT_THRESHOLD, band_shape
from archloop.types import GraphSketch

CONFIG = NoveltyConfig()


def network(widths: list[int], name: str = "Net") -> str:
    """A plain convolutional network; each width change touches about two lines of it."""
    layers, channels = [], 3
    for i, width in enumerate(widths):
        layers.append(f"        self.conv{i} = nn.Conv2d({channels}, {width}, 3, padding=1)")
        layers.append(f"        self.norm{i} = nn.BatchNorm2d({width})")
        channels = width
    body = "\n".join(layers)
    steps = "\n".join(
        f"        x = torch.relu(self.norm{i}(self.conv{i}(x)))" for i in range(len(widths))
    )
    return f"""import torch
import torch.nn as nn


class {name}(nn.Module):
    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()
        # the features
{body}
        self.head = nn.Linear({channels}, out_shape[0])

    def forward(self, x):
{steps}
        return self.head(x.mean((2, 3)))
"""


@cache
def windows(code: str, k: int = 10) -> frozenset[tuple[str, ...]]:
    words = tokens(code)
    return frozenset(tuple(words[i : i + k]) for i in range(len(words) - k + 1))


def plain_jaccard(a: str, b: str) -> float:
    """The definition, written out."""
    return len(windows(a) & windows(b)) / len(windows(a) | windows(b))


def test_tokens_are_those_of_the_paper() -> None:
    code = 'def f(x):  # a comment\n\n    """Doc."""\n    return x**2 + 1.5e3\n'
    expected = [
        "def",
        "f",
        "(",
        "x",
        ")",
        ":",
        '"""Doc."""',
        "return",
        "x",
        "**",
        "2",
        "+",
        "1.5e3",
    ]
    assert tokens(code) == expected


@pytest.mark.parametrize(
    "other",
    [
        "class A:\n  def f(self):\n    return [1,2,\n 3]  # comment\n",
        "class A:\n\n\tdef f(self):\n\t\treturn [1, 2, 3]",
        "class A:\r\n    def f(self): return [1, 2, 3]\r\n",
        "# first line\nclass A:\n    def f(self):\n        return \\\n            [1, 2, 3]\n",
    ],
)
def test_layout_and_comments_do_not_count(other: str) -> None:
    assert tokens(other) == tokens("class A:\n    def f(self):\n        return [1, 2, 3]\n")


@pytest.mark.parametrize(
    "text",
    ["x = 'abc\n", 'x = "abc\ny"\n', "a $ b\n", "a?", "`a`", "'''open\n", "€ = 2", "x\n\xa0y"],
)
def test_what_is_not_python_is_refused(text: str) -> None:
    with pytest.raises(CodeTokenError, match="not Python"):
        tokens(text)
    with pytest.raises(CodeTokenError):
        NoveltyIndex(CONFIG).query(text)


def standard_tokens(code: str) -> list[str]:
    layout = {"COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER"}
    stream = tokenize.generate_tokens(io.StringIO(code, newline=None).readline)
    return [token.string for token in stream if tokenize.tok_name[token.type] not in layout]


def test_tokens_are_those_of_the_standard_library() -> None:
    library = Path(os.__file__).parent
    files = sorted(library.glob("*.py"))[:60] + sorted(library.glob("test/test_[fgs]t*.py"))
    checked = 0
    for file in files:
        code = file.read_text("utf-8")
        if sys.version_info >= (3, 12) and re.search("\\b[rR]?[fF][rR]?[\"']", code):
            continue  # tokenize splits f-strings there
        assert tokens(code) == standard_tokens(code), file
        checked += 1
    assert checked > 20


@pytest.mark.parametrize(
    "code",
    [
        "a = 0x_fF + 0b1_0 + 0o17 + 1_000 + 1.5e-3 + .5E+2 + 1.j + 1e3J + 00 + 1..real",
        "a **= b // c >> d << e != f <= g >= h == i\na //= b; a >>= c; a <<= d; a |= e ** f",
        "x: int = -1\ny = (z := ~x) @ w\nf = lambda *a, **k: ...\n@d\ndef g() -> None: pass",
        'b = rb\'\\n\' + Br"\\\\" + u\'\' + R\'\'\'it\'s\'\'\' + """a"b""c\\""""',
        "s = 'one\\\ntwo'  # 'no string'\nt = '# no comment'\nu = \"\" ''",
        "π, Größe, 变量 = 1, 2, 3",
        "if a:\n\tb\n\x0c\nc;d",
    ],
)
def test_every_kind_of_token(code: str) -> None:
    assert tokens(code) == standard_tokens(code)
    ast.parse(code)


@pytest.mark.parametrize(
    "code",
    [
        "def f(x):\n\\\n\\\n    y = x\n",  # tokenize sees broken indentation
        "℘ = नि = 1",  # identifiers that tokenize does not know
        "",
    ],
)
def test_code_that_parses_has_tokens_even_where_tokenize_fails(code: str) -> None:
    ast.parse(code)
    assert "".join(tokens(code)) == re.sub(r"[\s\\]", "", code)
    assert tokens("\ufeff" + code) == tokens(code)


def test_shingles_are_a_set_of_windows() -> None:
    words = [f"w{i}" for i in range(30)]
    assert shingles(" ".join(words), 10).size == 21
    assert shingles("a " * 50, 10).size == 1
    assert shingles("a b c", 10).size == 1, "short code is one shingle"
    assert shingles("# nothing\n", 10).size == 0
    ordered = shingles(" ".join(words), 10)
    assert np.array_equal(ordered, np.unique(ordered))
    assert jaccard(shingles("a b c d", 2), shingles("d c b a", 2)) == 0.0, "order counts"


def test_shingle_hashes_never_change() -> None:
    # A changed value would silently make stored similarities incomparable.
    assert shingles("x = 1", 10).tolist() == [9125436559919203487]


def test_jaccard_is_exact() -> None:
    base = [16, 32, 32, 64, 64, 128, 128, 128]
    for change in ([16, 32, 32, 64, 64, 128, 128, 96], [16, 32], [8] * 8, base):
        a, b = network(base), network(change)
        found = jaccard(shingles(a), shingles(b))
        assert found == pytest.approx(plain_jaccard(a, b), abs=1e-12)
    assert jaccard(shingles(""), shingles("")) == 1.0


def test_signature_estimates_jaccard() -> None:
    rng = random.Random(1)
    index, errors = NoveltyIndex(CONFIG), []
    for _ in range(60):
        a = [rng.choice([8, 16, 32, 64]) for _ in range(10)]
        b = [w if rng.random() < 0.7 else rng.choice([8, 16, 32]) for w in a]
        one, two = index.sketch(network(a)), index.sketch(network(b))
        assert one.signature.shape == (256,)
        estimate = float((one.signature == two.signature).mean())
        errors.append(estimate - jaccard(one.shingles, two.shingles))
    # The standard deviation of one estimate is at most sqrt(0.25 / 256) = 0.031.
    assert np.abs(errors).mean() < 0.031
    assert abs(np.mean(errors)) < 0.02


@pytest.mark.parametrize("threshold", [0.5, 0.85, 0.95, 1.0])
def test_bands_retrieve_what_reaches_the_threshold(threshold: float) -> None:
    bands, rows = band_shape(256, threshold)
    assert bands * rows <= 256
    assert 1 - (1 - threshold**rows) ** bands >= RECALL_AT_THRESHOLD
    more = rows + 1
    assert more > 256 or 1 - (1 - threshold**more) ** (256 // more) < RECALL_AT_THRESHOLD
    assert band_shape(256, 0.0) == (256, 1)


def test_a_near_duplicate_below_the_retrieval_threshold_is_retrieved() -> None:
    index = NoveltyIndex(NoveltyConfig(near_duplicate_threshold=0.4))
    index.add("known", network([16] * 12))
    rng = random.Random(0)
    for _ in range(20):
        other = network([16] * 4 + [rng.randrange(100, 1000) for _ in range(8)])
        similarity, nearest = index.query(other)
        assert (nearest, index.is_near_duplicate(similarity)) == ("known", True)
        assert similarity < 0.6


def test_query_agrees_with_brute_force() -> None:
    rng = random.Random(2)
    codes = {
        f"n{i:03d}": network([rng.choice([16, 32, 64]) for _ in range(rng.randint(3, 9))])
        for i in range(150)
    }
    index = NoveltyIndex(CONFIG)
    for id, code in codes.items():
        index.add(id, code)
    checked = 0
    for id, code in list(codes.items())[:60]:
        brute = max(plain_jaccard(code, other) for name, other in codes.items() if name != id)
        similarity, nearest = index.query(code, exclude=id)
        if brute >= CONFIG.lsh_threshold:
            checked += 1
            assert similarity == pytest.approx(brute, abs=1e-12)
        assert similarity <= brute + 1e-12
        if nearest is not None:
            assert plain_jaccard(code, codes[nearest]) == pytest.approx(similarity, abs=1e-12)
    assert checked > 5


def test_query_without_hits_is_zero() -> None:
    index = NoveltyIndex(CONFIG)
    assert index.query(network([8])) == (0.0, None)
    index.add("other", "print('nothing like a network at all, just one line of text', 1, 2, 3)")
    assert index.query(network([8])) == (0.0, None)
    index.add("self", network([8]))
    assert index.query(network([8])) == (1.0, "self")
    assert index.query(network([8]), exclude="self") == (0.0, None)


def test_insertion_order_does_not_matter() -> None:
    rng = random.Random(3)
    items = [(f"n{i:02d}", network([rng.choice([16, 32]) for _ in range(6)])) for i in range(80)]
    queries = [network([rng.choice([16, 32]) for _ in range(6)]) for _ in range(20)]
    answers = []
    for _ in range(3):
        rng.shuffle(items)
        index = NoveltyIndex(CONFIG)
        for id, code in items:
            index.add(id, code)
        answers.append([index.query(code) for code in queries])
    assert answers[0] == answers[1] == answers[2]


def test_adding_twice() -> None:
    index = NoveltyIndex(CONFIG)
    index.add("a", network([8, 16]))
    index.add("a", network([8, 16]) + "# only a comment more\n")
    assert len(index) == 1
    assert "a" in index
    with pytest.raises(ValueError, match="a: already in the index"):
        index.add("a", network([8, 24]))


def test_near_duplicate_is_strictly_above_the_threshold() -> None:
    index = NoveltyIndex(CONFIG)
    assert not index.is_near_duplicate(0.90)
    assert index.is_near_duplicate(0.9001)


def test_deduplicate_keeps_the_best_then_the_first() -> None:
    one, twin = network([16, 32, 64]), network([16, 32, 64]).replace("the features", "layers")
    other = network([8, 8, 8, 8, 8, 8])
    items = [("b", one, 0.3), ("a", twin, 0.2), ("c", other, None), ("d", other, None)]
    assert deduplicate(items, CONFIG) == (["b", "c"], {"a": "b", "d": "c"})
    assert deduplicate(items[::-1], CONFIG) == (["b", "c"], {"a": "b", "d": "c"})
    tie = [("b", one, 0.3), ("a", twin, 0.3)]
    assert deduplicate(tie, CONFIG) == (["a"], {"b": "a"})
    with pytest.raises(ValueError, match="b: given twice"):
        deduplicate([("b", one, 0.3), ("b", one, 0.3)], CONFIG)
    with pytest.raises(CodeTokenError, match="bad: not Python"):
        deduplicate([("bad", "x = $", None)], CONFIG)


def test_deduplicate_leaves_no_near_duplicates_and_drops_nothing_else() -> None:
    rng = random.Random(4)
    items = []
    for i in range(120):
        widths = [rng.choice([16, 16, 16, 32]) for _ in range(12)]
        items.append((f"n{i:03d}", network(widths), rng.random()))
    kept, dropped = deduplicate(items, CONFIG)
    codes = {id: code for id, code, _ in items}
    assert sorted([*kept, *dropped]) == sorted(codes)
    assert dropped
    for i, a in enumerate(kept):
        for b in kept[:i]:
            assert plain_jaccard(codes[a], codes[b]) <= 0.90
    for id, of in dropped.items():
        assert of in kept
        assert plain_jaccard(codes[id], codes[of]) > 0.90


def test_judge_keeps_corpus_and_cycle_apart() -> None:
    judge = NoveltyJudge(CONFIG)
    seed, fresh = network([16, 32, 64]), network([8] * 6)
    judge.add_known("seed", seed)
    judge.start_cycle()
    scores = judge.judge("c01-0000", seed)
    assert (scores.nn_jaccard_train, scores.near_dup_text_train) == (1.0, True)
    assert (scores.nn_jaccard_gen, scores.near_dup_text_gen) == (0.0, False)
    assert scores.nearest == "seed"
    assert not judge.judge("c01-0001", fresh).is_near_duplicate

    judge.accept("c01-0001", fresh)
    scores = judge.judge("c01-0002", fresh)
    assert scores.nn_jaccard_train == 0.0, "not in the corpus before the cycle is over"
    assert (scores.nn_jaccard_gen, scores.near_dup_text_gen) == (1.0, True)
    assert scores.nearest == "c01-0001"
    assert judge.judge("c01-0001", fresh).nearest is None, "never compared with itself"

    judge.start_cycle()
    scores = judge.judge("c02-0000", fresh)
    assert (scores.nn_jaccard_train, scores.nn_jaccard_gen) == (1.0, 0.0)
    assert scores.nearest == "c01-0001"


@pytest.mark.parametrize("ids", ["ab", "ba"])
def test_the_first_id_wins_among_equals(ids: str) -> None:
    index = NoveltyIndex(CONFIG)
    for id in ids:
        index.add(id, network([8, 16]))
    assert index.query(network([8, 16])) == (1.0, "a")


def sketch(hash: str, *labels: int) -> GraphSketch:
    return GraphSketch(hash, np.array(sorted(labels), "<u8").tobytes())


def test_every_view_is_scored_and_the_configured_kinds_reject() -> None:
    labels = [n << 40 for n in range(1, 40)]
    code = "a = 1\n" * 40
    renamed = "b = 2\n" * 40
    other = "for x in y: z(x, 3)\n" * 40
    for kinds, rejected in (
        (("lexical",), ()),
        (("normalized",), ("normalized",)),
        (("graph",), ("graph",)),
        (("graph", "lexical", "normalized"), ("graph", "normalized")),
    ):
        judge = NoveltyJudge(CONFIG.model_copy(update={"kind": kinds}))
        judge.add_known("seed", code, sketch("same", *labels))
        judge.start_cycle()
        scores = judge.judge("1", renamed, sketch("same", *labels))
        assert scores.rejected_by == rejected
        assert scores.is_near_duplicate == bool(rejected)
        assert scores.nn_jaccard_train < 0.5
        assert scores.nn_normalized_train == 1.0
        assert (scores.nn_graph_train, scores.near_dup_graph_train) == (1.0, True)
        assert (scores.nn_graph_gen, scores.near_dup_graph_gen) == (0.0, False)
        near = judge.judge("2", other, sketch("else", *labels[:-1]))
        assert near.nn_graph_train == pytest.approx(38 / 39)
        assert near.near_dup_graph_train is False
        assert near.nearest_graph == "seed"
        assert near.rejected_by == ()
        untraced = judge.judge("3", other)
        assert (untraced.nn_graph_train, untraced.near_dup_graph_train) == (None, None)


def test_a_copy_without_a_graph_is_a_near_duplicate_by_graph() -> None:
    judge = NoveltyJudge(CONFIG.model_copy(update={"kind": ("graph",)}))
    judge.add_known("seed", "a = 1\n" * 40)
    judge.start_cycle()
    judge.accept("c01-0000", "b = 2\n" * 40)
    assert judge.judge("c01-0001", "a = 1\n" * 40).is_near_duplicate
    assert judge.judge("c01-0002", "b = 2\n" * 40).is_near_duplicate
    assert not judge.judge("c01-0003", "b = 2\n" * 40, sketch("h", 1 << 40)).is_near_duplicate
    assert not judge.judge("c01-0004", "for x in y: z()\n" * 40).is_near_duplicate


def test_what_a_cycle_accepted_counts_by_graph_too() -> None:
    judge = NoveltyJudge(CONFIG.model_copy(update={"kind": ("graph",)}))
    judge.start_cycle()
    judge.accept("c01-0000", "a = 1", sketch("h", 1 << 40))
    twin = judge.judge("c01-0001", "for x in y: z()", sketch("h", 1 << 40))
    assert (twin.near_dup_graph_gen, twin.near_dup_graph_train) == (True, False)
    judge.start_cycle()
    later = judge.judge("c02-0000", "for x in y: z()", sketch("h", 1 << 40))
    assert (later.near_dup_graph_gen, later.near_dup_graph_train) == (False, True)
    assert judge.judge("c01-0000", "a = 1", sketch("h", 1 << 40)).near_dup_graph_train is False


def test_the_normalized_view_folds_names_numbers_and_strings() -> None:
    code = "class Block(nn.Module):\n  def mix(self, x):\n    return self.conv1(x, 'same') * 0x1F"
    assert " ".join(tokens(code, "normalized")) == (
        "class Block ( ID . Module ) : def mix ( ID , ID ) : return ID . ID ( ID , STR ) * NUM"
    )
    words = tokens("x = .5 + nn.Conv2d(MyLayer, lambda: None)", "normalized")
    assert " ".join(words) == "ID = NUM + ID . Conv2d ( MyLayer , lambda : None )"


def test_renaming_and_resizing_show_in_the_lexical_view_only() -> None:
    one = network([16, 32, 64])
    other = re.sub(r"\bx\b", "out", network([24, 48, 96]).replace("conv", "c").replace("norm", "n"))
    assert jaccard(shingles(one), shingles(other)) < 0.3
    folded = [shingles(code, view="normalized") for code in (one, other)]
    assert jaccard(*folded) == 1.0
    index = NoveltyIndex(CONFIG, "normalized")
    index.add("one", one)
    assert index.query(other) == (1.0, "one")
    assert deduplicate([("a", one, None), ("b", other, None)], CONFIG, "normalized")[0] == ["a"]
    assert deduplicate([("a", one, None), ("b", other, None)], CONFIG)[0] == ["a", "b"]


@pytest.mark.parametrize(
    "code",
    [
        "x = 1\n" * 3 + "s = '''a\n# no comment\n'''\nx = 1\n",
        "x = 1\ns = 'one\\\ntwo'\nx = 1\n",
        "x = 1  # it's a comment with \"quotes\n" * 2,
        "\tx = 1\n\n\x0c\ny = 'a b'",
    ],
)
def test_remembered_lines_give_the_tokens_of_the_whole(code: str) -> None:
    whole = sys.modules[tokens.__module__]._words(code)
    for _ in range(2):
        assert tokens(code) == whole
        assert np.array_equal(shingles(code, 3), shingles("\n".join(whole), 3))


def test_a_line_that_is_not_python_is_refused_every_time() -> None:
    for _ in range(2):
        with pytest.raises(CodeTokenError, match="not Python: '\\$'"):
            shingles("x = 1\ny = $ + 1\n")


def test_bands_find_what_a_plain_comparison_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands_module, "_WAITING", 64)
    rng = np.random.default_rng(0)
    bands = Bands(25, 10)
    # Few values, so that many bands are shared; enough to settle and to merge.
    known = rng.integers(0, 2, ((16 + 4 + 1) * 64 + 50, 256), np.uint32)
    for signature in known:
        bands.add(bands.keys(signature))
    assert [block.size for block in bands._blocks] == [n * 64 * 25 for n in (16, 4, 1)]
    assert bands.nbytes == 21 * 64 * 25 * 8
    table = known[:, :250].reshape(len(known), 25, 10)
    for query in rng.integers(0, 2, (20, 256), np.uint32):
        expected = (table == query[:250].reshape(25, 10)).all(axis=2).sum(axis=1)
        positions, shared = bands.find(bands.keys(query))
        assert positions.tolist() == np.flatnonzero(expected).tolist()
        assert shared.tolist() == expected[expected > 0].tolist()
    assert Bands(25, 10).find(bands.keys(known[0]))[0].size == 0


def test_too_many_hits_keep_the_most_similar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "MOST_ESTIMATED", 5)
    rng = random.Random(5)
    index = NoveltyIndex(CONFIG)
    for i in range(60):
        index.add(f"n{i:02d}", network([16] * 12 + [rng.choice([16, 32, 64]) for _ in range(2)]))
    wanted = network([16] * 12 + [16, 24])
    found, _ = index.query(wanted)
    assert 0.85 < found < 1.0, "many share bands with it"
    # The last of them to come, and the only one that is the same.
    index.add("same", wanted)
    assert index.query(wanted) == (1.0, "same")


def test_neighbours_are_all_above_a_similarity() -> None:
    rng = random.Random(6)
    codes = {f"n{i}": network([rng.choice([16, 32]) for _ in range(12)]) for i in range(60)}
    index = NoveltyIndex(CONFIG)
    for id, code in codes.items():
        index.add(id, code)
    for code in list(codes.values())[:10]:
        expected = {id for id, other in codes.items() if plain_jaccard(code, other) > 0.90}
        assert set(index.neighbours(code, 0.90)) == expected


def test_a_visit_says_what_is_kept_before_the_rest_is_compared() -> None:
    one, other = network([16, 32, 64]), network([8] * 6)
    items = [("a", one, 0.5), ("b", one + "# more\n", 0.4), ("c", other, None)]
    assert list(visit(items, CONFIG)) == [("a", None), ("b", "a"), ("c", None)]
    assert next(visit([("a", one, 0.5), ("b", "x = $", 0.4)], CONFIG)) == ("a", None)
