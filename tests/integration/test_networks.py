"""Networks as people write them: what real training would take is taken, what is lost is named."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from archloop.config import ProtocolConfig, SandboxConfig
from archloop.evaluation.executor import Evaluate, Trace, build_executor
from archloop.evaluation.local import LocalExecutor
from archloop.evaluation.probing import seed_prober
from archloop.progress import Silent
from archloop.sandbox import why_not
from archloop.types import Outcome, TaskData, Verdict
from conftest import network

pytestmark = pytest.mark.skipif(
    why_not("confined") is not None, reason="needs Landlock and seccomp"
)

LAZY = network().replace("nn.Conv2d(in_shape[1], 8,", "nn.LazyConv2d(8,").replace(
    "nn.Linear(8 * 4 * 4, out_shape[0])", "nn.LazyLinear(out_shape[0])"
).replace("nn.BatchNorm2d(8)", "nn.LazyBatchNorm2d()")  # fmt: skip
SCRIPTED = network(
    top="""
@torch.jit.script
def scaled(x, times: int):
    for _ in range(times):
        x = x * torch.sigmoid(x)
    return x

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return torch.relu(self.inner(x))
""",
    init="self.block = torch.jit.script(Block(in_shape[1]))",
    forward="x = scaled(self.block(x), 1) + x",
)
HOOKED = network(
    top="SEEN = []",
    forward="""z = x + 0 * self.conv.weight.sum()
        if self.training:
            z.register_hook(lambda grad: 2 * grad)
            slope = torch.autograd.grad(z.sum(), self.conv.weight, create_graph=True)[0]
            x = x + 0 * slope.sum()""",
)
BY_VALUE = network(
    init="self.shift = torch.linspace(0, 1, 5).nonzero().float().mean().item()",
    forward="""mask = x > 0.5
        x = x.clone()
        x[mask] = x[mask] + self.shift * mask.nonzero().shape[1]""",
)
INHERITED = (
    network().replace("class Net(nn.Module)", "class Trained(nn.Module)")
    + """
def fit(net, train_data):
    Trained.learn(net, train_data)

class Net(Trained):
    def __init__(self, *given):
        super().__init__(*given)
        self.learn = lambda train_data: fit(self, train_data)
"""
)
NOISY = "import gc, time\nfrom tqdm import tqdm\n" + network(
    learn="start = time.time()"
).replace("in train_data:", "in tqdm(train_data):\n            gc.collect()") + (
    "        print('took', time.time() - start)\n"
)  # fmt: skip
SOUND = {
    "lazy": LAZY,
    "scripted": SCRIPTED,
    "hooked": HOOKED,
    "by_value": BY_VALUE,
    "inherited": INHERITED,
    "noisy": NOISY,
}

STEP = "            self.optimizer.step()\n"
FLAGGED = {
    "second_pass": (
        network(learn="seen = sum(len(labels) for _, labels in train_data)"),
        {"no_steps", "untrained"},
    ),
    "rate_of_zero": (network().replace("lr=prm['lr']", "lr=0.0"), {"untrained"}),
    "no_gradients": (network().replace("loss.backward()", "pass"), {"untrained"}),
    "other_parameters": (
        network(init="self.own = [nn.Parameter(torch.ones(3))]")
        .replace("SGD(self.parameters()", "SGD(self.own")
        .replace("loss.backward()", "(loss + self.own[0].square().sum()).backward()"),
        {"untrained"},
    ),
    "plain_attribute": (
        network(
            init="self.factor = torch.zeros(())",
            forward="x = x if self.training else x * self.factor",
        )
        + "        self.factor = torch.ones(())\n",
        {"state_lost"},
    ),
    "global_list": (
        network(top="SEEN = []", forward="x = x if self.training else x * len(SEEN)").replace(
            STEP, STEP + "            SEEN.append(1)\n"
        ),
        {"state_lost"},
    ),
    "buffer": (
        network(
            init="self.register_buffer('factor', torch.zeros(()))",
            forward="x = x if self.training else x * self.factor",
        )
        + "        self.factor.fill_(1.0)\n",
        set(),
    ),
}


@pytest.fixture(scope="module")
def executor(blobs: TaskData) -> Iterator[LocalExecutor]:
    limits = SandboxConfig(
        workers=2, memory_mb=768, build_seconds=20, train_seconds=20, predict_seconds=20
    )
    protocol = ProtocolConfig(batch_size=16, lr=0.05, augmentation="none")
    with build_executor(limits, blobs, protocol) as made:
        yield made


@pytest.fixture(scope="module")
def verdicts(executor: LocalExecutor) -> dict[str, Verdict]:
    codes = SOUND | {name: code for name, (code, _) in FLAGGED.items()}
    codes |= {
        "no_such_hyperparameter": network(top="").replace("prm['lr']", "prm['rate']"),
        "asks_for_the_dataset": network() + "        print(len(train_data), train_data.dataset)\n",
        "names_an_address": network(init="raise ValueError(f'odd: {object()}')"),
    }
    futures = {name: executor.submit(Evaluate(code, seed=3)) for name, code in codes.items()}
    return {name: future.result().verdict for name, future in futures.items()}


@pytest.mark.parametrize("name", SOUND)
def test_what_trains_elsewhere_trains_here(name: str, verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts[name]
    assert verdict.outcome is Outcome.VALID, verdict.error
    assert verdict.flags == ()
    assert (verdict.first_epoch_accuracy or 0) > 0.9
    assert verdict.graph is not None, "it is traced too"


@pytest.mark.parametrize("name", FLAGGED)
def test_training_that_is_lost_is_flagged(name: str, verdicts: dict[str, Verdict]) -> None:
    assert verdicts[name].outcome is Outcome.VALID, verdicts[name].error
    assert set(verdicts[name].flags) == FLAGGED[name][1]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (
            "no_such_hyperparameter",
            "UnknownHyperparameterError: no hyperparameter 'rate': supported_hyperparameters() "
            "does not name it, and given are only batch, dropout, epoch, lr, momentum, transform",
        ),
        ("asks_for_the_dataset", "AttributeError: 'TrainData' object has no attribute 'dataset'"),
        ("names_an_address", "ValueError: odd: <object object>"),
    ],
)
def test_an_error_says_what_there_is(name: str, error: str, verdicts: dict[str, Verdict]) -> None:
    found = verdicts[name].error or ""
    assert found.startswith(error + " (line ")


def test_seeds_are_built_like_candidates(executor: LocalExecutor) -> None:
    """Where the meta device has no values, on the processor; an error is that of the latter."""
    broken = BY_VALUE.replace("self.pool(", "self.pools(")
    found = seed_prober(executor, Silent())([*SOUND.values(), broken])
    assert [v.outcome for v in found[:-1]] == [Outcome.VALID] * len(SOUND)
    assert found[-1].outcome is Outcome.FORWARD_ERROR
    assert "'pools'" in (found[-1].error or "")


def test_a_lazy_network_has_the_graph_of_its_twin(
    executor: LocalExecutor, verdicts: dict[str, Verdict]
) -> None:
    graph = executor.submit(Trace(network(), (1, 8, 8), 4)).result().graph
    lazy = verdicts["lazy"].graph
    assert graph is not None
    assert lazy is not None
    assert (lazy.hash, lazy.shingles) == (graph.hash, graph.shingles)
