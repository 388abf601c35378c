"""Every hostile network ends in its expected outcome and leaves nothing behind."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from archloop.config import ProtocolConfig, SandboxConfig, TaskConfig
from archloop.doctor.attacks import self_test
from archloop.errors import IsolationError
from archloop.sandbox import Sandbox, available_isolation, why_not
from archloop.sandbox.confine import bwrap, confine
from archloop.sandbox.host import client
from archloop.tasks import load_task
from archloop.text import MAX_ERROR
from archloop.types import Isolation, Outcome, TaskData, Training
from conftest import HOSTILE, network

KEY = bytes(32)
"""What is asked for again is the same each time, so that a flag is."""
PROTOCOL = ProtocolConfig(batch_size=16, lr=0.05, augmentation="none")
LIMITS = SandboxConfig(
    workers=1, memory_mb=512, disk_mb=16, build_seconds=8, train_seconds=4, predict_seconds=20
)
MAX_PARAMS = 100_000

pytestmark = pytest.mark.skipif(
    why_not("confined") is not None, reason="needs Landlock and seccomp"
)


NEVER_BUILT = ("loop_at_import", "loop_in_init", "loop_in_forward")


def sandbox_at(task: TaskData, isolation: Isolation = "confined") -> Sandbox:
    config = LIMITS.model_copy(update={"isolation": isolation})
    return Sandbox(config, task=task, protocol=PROTOCOL, key=KEY)


@pytest.fixture(scope="module")
def sandbox(blobs: TaskData) -> Iterator[Sandbox]:
    os.environ["ARCHLOOP_SECRET"] = "secret"
    with sandbox_at(blobs) as made:
        yield made
    del os.environ["ARCHLOOP_SECRET"]


@pytest.fixture(scope="module")
def short_limits() -> Iterator[Sandbox]:
    """For networks that never get as far as the epoch."""
    with Sandbox(LIMITS.model_copy(update={"build_seconds": 2.0})) as made:
        yield made


@pytest.fixture(scope="module")
def honest_accuracy(sandbox: Sandbox) -> float:
    verdict = sandbox.evaluate(network(), seed=3, max_params=MAX_PARAMS)
    assert verdict.outcome is Outcome.VALID, verdict.error
    assert verdict.first_epoch_accuracy is not None
    assert verdict.first_epoch_accuracy > 0.9
    return verdict.first_epoch_accuracy


def header(file: Path, key: str) -> set[str]:
    """The values of ``# key: a,b`` at the top of a hostile file.

    ``perhaps`` are flags that depend on the machine and on what else it does.
    """
    for line in file.read_text().splitlines()[:2]:
        if line.startswith(f"# {key}: "):
            return set(line.partition(": ")[2].split(","))
    return set()


def _machines_own(flags: Iterable[str]) -> set[str]:
    """Flags on this machine: the C library makes other calls than on x86-64 elsewhere."""
    known = platform.machine() == "x86_64"
    return {flag if known else flag.partition(": ")[0] for flag in flags}


def leftovers(sandbox: Sandbox) -> list[str]:
    """Processes under the fork server and folders of its candidates."""
    server = psutil.Process(sandbox.server_pid)
    processes = [str(p) for p in server.children(recursive=True)]
    folders = [str(p) for p in sandbox.candidates_folder.iterdir()]
    return processes + folders


@pytest.mark.parametrize("file", sorted(HOSTILE.glob("*.py")), ids=lambda file: file.stem)
def test_a_hostile_network_is_an_outcome(
    file: Path, sandbox: Sandbox, short_limits: Sandbox, honest_accuracy: float
) -> None:
    if file.stem in NEVER_BUILT:
        verdict = short_limits.probe(file.read_text(), shape=(1, 8, 8), classes=4)
    else:
        verdict = sandbox.evaluate(file.read_text(), seed=3, max_params=MAX_PARAMS)
    assert verdict.outcome.value in header(file, "expected"), verdict
    perhaps = header(file, "perhaps")
    assert _machines_own(verdict.flags) - perhaps == _machines_own(header(file, "flags"))
    if verdict.outcome is Outcome.VALID:
        assert verdict.error is None
    else:
        assert verdict.error
        assert verdict.error.isprintable()
        assert len(verdict.error) <= MAX_ERROR
        assert verdict.first_epoch_accuracy is None
    assert leftovers(sandbox) == leftovers(short_limits) == []
    assert not Path("/tmp/archloop-hostile").exists()


def test_an_honest_network_scores_the_same_after_all_of_them(
    sandbox: Sandbox, honest_accuracy: float
) -> None:
    again = sandbox.evaluate(network(), seed=3, max_params=MAX_PARAMS)
    assert again.first_epoch_accuracy == honest_accuracy


def test_neighbours_and_threads_of_the_caller_do_not_change_the_score(
    sandbox: Sandbox, honest_accuracy: float
) -> None:
    poison = (HOSTILE / "poisons_globals.py").read_text()
    codes = [network(), poison] * 3
    with ThreadPoolExecutor(6) as pool:
        verdicts = list(pool.map(lambda c: sandbox.evaluate(c, seed=3), codes))
    assert {v.first_epoch_accuracy for v in verdicts[::2]} == {honest_accuracy}
    assert leftovers(sandbox) == []


def test_the_level_does_not_change_the_score(blobs: TaskData, honest_accuracy: float) -> None:
    with sandbox_at(blobs, "process") as weaker:
        assert weaker.isolation == "process"
        verdict = weaker.evaluate(network(), seed=3, max_params=MAX_PARAMS)
    assert verdict.first_epoch_accuracy == honest_accuracy


needs_bwrap = pytest.mark.skipif(why_not("bwrap") is not None, reason="needs bubblewrap")


@needs_bwrap
def test_the_strictest_level_does_not_change_the_score_either(
    blobs: TaskData, honest_accuracy: float
) -> None:
    with sandbox_at(blobs, "bwrap") as stricter:
        verdict = stricter.evaluate(network(), seed=3, max_params=MAX_PARAMS)
        assert verdict.first_epoch_accuracy == honest_accuracy
        for name in ("reads_home", "opens_socket", "fork_bomb", "memory_bomb", "writes_outside"):
            file = HOSTILE / f"{name}.py"
            found = stricter.evaluate(file.read_text(), seed=3)
            assert found.outcome.value in header(file, "expected"), found
        pid = stricter.server_pid
    assert not psutil.pid_exists(pid)


@needs_bwrap
def test_namespaces_hide_processes_and_temporary_files(tmp_path: Path) -> None:
    look = "import os; print(len([p for p in os.listdir('/proc') if p.isdigit()]))"
    other = Path(tempfile.gettempdir()) / "archloop-bwrap-test"
    other.touch()
    try:
        command = bwrap.wrap(
            [sys.executable, "-c", f"{look}; print(os.path.exists({str(other)!r}))"], tmp_path
        )
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    finally:
        other.unlink()
    processes, seen = done.stdout.split()
    assert int(processes) <= 3
    assert seen == "False"


def test_descendants_are_killed_without_seccomp_too(blobs: TaskData) -> None:
    orphan = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)"
    with sandbox_at(blobs, "process") as weaker:
        weaker.probe(network(top=orphan), shape=(1, 8, 8), classes=4)
        assert leftovers(weaker) == []


def test_chance_is_where_it_should_be(sandbox: Sandbox) -> None:
    for name in ("constant_logits", "forges_its_result"):
        verdict = sandbox.evaluate((HOSTILE / f"{name}.py").read_text(), seed=3)
        assert verdict.first_epoch_accuracy == 0.25
    digits = load_task(TaskConfig(name="digits"), PROTOCOL)
    shuffled = np.random.default_rng(0).permutation(digits.train_labels)
    with sandbox_at(replace(digits, train_labels=shuffled)) as untrue:
        verdict = untrue.evaluate(network(), seed=3)
    assert verdict.first_epoch_accuracy is not None
    assert verdict.first_epoch_accuracy < 0.2


def test_what_is_trained_outside_the_network_is_lost(sandbox: Sandbox) -> None:
    code = (HOSTILE / "weights_outside_are_lost.py").read_text()
    verdict = sandbox.evaluate(code, seed=3)
    assert verdict.first_epoch_accuracy == 0.25


def test_the_fixed_loop_trains_what_the_contract_trains(
    blobs: TaskData, honest_accuracy: float
) -> None:
    protocol = PROTOCOL.model_copy(update={"training": "both"})
    with Sandbox(LIMITS, task=blobs, protocol=protocol) as both:
        honest = both.evaluate(network(), seed=3)
        assert honest.first_epoch_accuracy == honest_accuracy
        assert honest.harness_accuracy is not None
        assert honest.harness_accuracy > 0.9
        assert honest.flags == ()
        gap = both.evaluate((HOSTILE / "learns_only_by_contract.py").read_text(), seed=3)
        assert "protocol_gap" in gap.flags
    only = protocol.model_copy(update={"training": "harness"})
    with Sandbox(LIMITS, task=blobs, protocol=only) as fixed:
        assert fixed.evaluate(network(), seed=3).first_epoch_accuracy == honest.harness_accuracy
        idle = fixed.evaluate(network(learn="raise RuntimeError"), seed=3)
        assert idle.first_epoch_accuracy == honest.harness_accuracy


@pytest.mark.parametrize("training", ["contract", "harness"])
def test_a_schedule_reaches_the_networks_optimiser(blobs: TaskData, training: Training) -> None:
    hook = """
        def look(optimizer, *_):
            self.rates = [*getattr(self, 'rates', []), optimizer.param_groups[0]['lr']]
        from torch.optim.optimizer import register_optimizer_step_post_hook
        register_optimizer_step_post_hook(look)
"""
    code = network(init=hook.strip(), forward="self.check()").replace(
        "    def train_setup",
        "    def check(self):\n"
        "        rates = getattr(self, 'rates', [1.0])\n"
        "        assert rates[-1] == rates[0], 'the rate has changed'\n\n"
        "    def train_setup",
    )
    outcomes = []
    for schedule in ("constant", "linear"):
        changed = {"training": training, "lr_schedule": schedule}
        with Sandbox(LIMITS, task=blobs, protocol=PROTOCOL.model_copy(update=changed)) as own:
            outcomes.append(own.evaluate(code, seed=3).error)
    assert outcomes[0] is None
    assert "the rate has changed" in (outcomes[1] or "")


def test_a_network_that_needs_contiguous_images_gets_them(blobs: TaskData) -> None:
    view = network(forward="x = x + 0 * x.view(x.size(0), -1).sum()")
    outcomes = [sandbox_at(blobs).evaluate(code, seed=3).outcome for code in (network(), view)]
    assert set(outcomes) == {Outcome.VALID}


def test_the_memory_layout_does_not_change_the_score(
    sandbox: Sandbox, blobs: TaskData, honest_accuracy: float
) -> None:
    protocol = PROTOCOL.model_copy(update={"channels_last": False})
    with Sandbox(LIMITS, task=blobs, protocol=protocol) as plain:
        verdict = plain.evaluate(network(), seed=3)
    assert verdict.first_epoch_accuracy == pytest.approx(honest_accuracy, abs=0.01)


def test_bf16_learns_and_is_measured_in_fp32(blobs: TaskData) -> None:
    protocol = PROTOCOL.model_copy(update={"precision": "bf16"})
    show = "print(self.training, self.conv(x).dtype)"
    with Sandbox(LIMITS, task=blobs, protocol=protocol) as fast:
        verdict = fast.evaluate(network(forward=show), seed=3)
        again = fast.evaluate(network(), seed=3)
    assert verdict.first_epoch_accuracy is not None
    # Chance is 0.25: autocast's cache of cast weights would keep it there.
    assert verdict.first_epoch_accuracy > 0.9
    assert again.first_epoch_accuracy == verdict.first_epoch_accuracy
    assert verdict.output is not None
    assert "True torch.bfloat16" in verdict.output


def test_lemurs_way_scales_every_batch_and_flips_validation_images(blobs: TaskData) -> None:
    way = {"resize": 16, "augmentation": "flip", "augment_validation": True}
    seen = network(forward="print(tuple(x.shape))", init="print(in_shape)")
    with Sandbox(LIMITS, task=blobs, protocol=PROTOCOL.model_copy(update=way)) as lemur:
        first, second = (lemur.evaluate(seen, seed=3) for _ in range(2))
    assert first.outcome is Outcome.VALID, first.error
    assert first.output is not None
    assert "(16, 1, 16, 16)" in first.output
    assert "(16, 1, 8, 8)" not in first.output
    assert first.first_epoch_accuracy == second.first_epoch_accuracy
    # A flip moves the corner that says which class it is, so half of the images mislead.
    assert first.first_epoch_accuracy is not None
    assert first.first_epoch_accuracy < 0.8


@pytest.mark.parametrize(
    "picky",
    [
        network(forward="assert not torch.is_autocast_enabled('cpu')"),
        network(learn="assert not torch.is_autocast_enabled('cpu')"),
        network(learn="assert next(iter(train_data))[0].is_contiguous()"),
    ],
)
def test_speed_never_decides_validity(picky: str, blobs: TaskData) -> None:
    protocol = PROTOCOL.model_copy(update={"precision": "bf16"})
    with Sandbox(LIMITS, task=blobs, protocol=protocol) as fast:
        assert fast.evaluate(picky, seed=3).outcome is Outcome.VALID


def test_the_end_of_the_output_is_kept(sandbox: Sandbox) -> None:
    code = network(learn="print('first'); [print('x' * 99) for _ in range(20_000)]; print('last')")
    verdict = sandbox.evaluate(code, seed=3)
    assert verdict.outcome is Outcome.VALID
    assert verdict.output is not None
    assert "last\n" in verdict.output  # a warning of torch may follow
    assert "first" not in verdict.output
    assert len(verdict.output) == 4000


def test_errors_name_the_line(sandbox: Sandbox) -> None:
    code = network(learn="raise ValueError('bad')")
    line = code.splitlines().index("        raise ValueError('bad')") + 1
    assert sandbox.evaluate(code, seed=3).error == f"ValueError: bad (line {line}, in learn)"


def test_errors_name_no_place_of_this_machine(sandbox: Sandbox) -> None:
    verdict = sandbox.probe("from torch import nothing", shape=(1, 8, 8), classes=4)
    wanted = "cannot import name 'nothing' from 'torch' (torch/__init__.py) (line 1)"
    assert verdict.error == f"ImportError: {wanted}"


def test_another_seed_gives_another_network(sandbox: Sandbox) -> None:
    hard = network(learn="self.optimizer = torch.optim.SGD(self.parameters(), lr=1e-5)")
    scores = {sandbox.evaluate(hard, seed=s).first_epoch_accuracy for s in range(4)}
    assert len(scores) > 1


def test_the_meta_device_counts_without_allocating(sandbox: Sandbox) -> None:
    huge = network(init="self.more = nn.Linear(100_000, 100_000)")
    verdict = sandbox.probe(huge, shape=(1, 8, 8), classes=4, max_params=500_000, meta=True)
    assert verdict.outcome is Outcome.OVER_BUDGET
    assert verdict.n_params is not None
    assert verdict.n_params > 10_000_000_000
    assert verdict.error is not None
    assert "500,000" in verdict.error


def test_lazy_layers_are_counted_once_they_exist(sandbox: Sandbox) -> None:
    lazy = network(init="self.head = nn.LazyLinear(out_shape[0])")
    counts = {sandbox.evaluate(code, seed=3).n_params for code in (network(), lazy)}
    assert counts == {1 * 8 * 9 + 8 + 16 + 128 * 4 + 4}
    verdict = sandbox.evaluate(lazy, seed=3, max_params=300)
    assert verdict.outcome is Outcome.OVER_BUDGET


def test_buffers_are_no_parameters(sandbox: Sandbox) -> None:
    verdict = sandbox.probe(
        network(init="self.register_buffer('mask', torch.ones(50))"), shape=(1, 8, 8), classes=4
    )
    assert verdict.n_params == 612


def test_what_compiles_trains_uncompiled(sandbox: Sandbox, honest_accuracy: float) -> None:
    compiled = network(learn="self.forward = torch.compile(self.forward)")
    assert sandbox.evaluate(compiled, seed=3).first_epoch_accuracy == honest_accuracy


@pytest.mark.parametrize("when", ["before", "while running"])
def test_a_lost_fork_server_is_replaced(when: str, blobs: TaskData, honest_accuracy: float) -> None:
    waits = network(learn="import time; time.sleep(1)")
    with sandbox_at(blobs) as fragile, ThreadPoolExecutor(1) as pool:
        if when == "before":
            psutil.Process(fragile.server_pid).kill()
        running = pool.submit(fragile.evaluate, waits, seed=3)
        if when == "while running":
            while not leftovers(fragile):
                time.sleep(0.01)
            time.sleep(0.5)
            psutil.Process(fragile.server_pid).kill()
        assert running.result().first_epoch_accuracy == honest_accuracy
        assert leftovers(fragile) == []


def test_a_network_is_measured_again_where_the_fork_server_was_lost(
    blobs: TaskData, honest_accuracy: float
) -> None:
    slow = network(forward="import time; time.sleep(0.0 if self.training else 0.4)")
    with sandbox_at(blobs) as fragile, ThreadPoolExecutor(1) as pool:
        server = psutil.Process(fragile.server_pid)
        running = pool.submit(fragile.evaluate, slow, seed=3)
        while len(training := {child.pid for child in server.children()}) < 2:  # and what feeds it
            time.sleep(0.01)
        while {child.pid for child in server.children()} <= training:  # until it is measured
            time.sleep(0.01)
        time.sleep(0.8)  # by now it has read its weights
        server.kill()
        assert running.result().first_epoch_accuracy == honest_accuracy, running.result()


def test_a_network_that_ends_the_fork_server_is_found_out(
    blobs: TaskData, honest_accuracy: float
) -> None:
    with sandbox_at(blobs, "process") as weaker:
        killer = network(init="import os; os.kill(os.getppid(), 9)")
        verdict = weaker.evaluate(killer, seed=3)
        assert verdict.outcome is Outcome.SANDBOX_VIOLATION
        assert weaker.evaluate(network(), seed=3).first_epoch_accuracy == honest_accuracy


@pytest.mark.parametrize("when", ["starting", "running"])
def test_the_end_of_the_main_process_is_the_end_of_everything(when: str, tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        "import os, threading, time\n"
        "from archloop.config import SandboxConfig\n"
        "from archloop.sandbox import Sandbox\n"
        "from archloop.sandbox.host import server\n"
        "def end(pid, folder):\n"
        "    print(pid, folder, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "class Popen(server.subprocess.Popen):\n"
        "    def __init__(self, *args, **kwargs):\n"
        "        super().__init__(*args, **kwargs)\n"
        f"        if {when!r} == 'starting':\n"
        "            threading.Timer(0.2, end, (self.pid, kwargs['cwd'])).start()\n"
        "server.subprocess.Popen = Popen\n"
        "sandbox = Sandbox(SandboxConfig())\n"
        "loop = dict(shape=(1, 8, 8), classes=4)\n"
        "threading.Thread(target=lambda: sandbox.probe('while True: pass', **loop)).start()\n"
        "while not list(sandbox.candidates_folder.iterdir()): time.sleep(0.01)\n"
        "time.sleep(0.5)\n"
        "end(sandbox.server_pid, sandbox.candidates_folder.parent)\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, env=environment
    )
    pid, folder = done.stdout.split()
    deadline = time.monotonic() + 60
    while psutil.pid_exists(int(pid)) or Path(folder).exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not [p for p in psutil.process_iter() if p.ppid() == int(pid)]


def test_nothing_outlives_the_fork_server_and_the_main_process(tmp_path: Path) -> None:
    """Processes that take back their parent-death signal, where no filter of calls forbids that."""
    stays = (
        "import ctypes, os, time\n"
        "for _ in range(2):\n"
        "    if os.fork() == 0: os.setsid()\n"
        "    ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\n"
        "open('there', 'w').close()\n"
        "while True: time.sleep(1)\n"
    )
    script = tmp_path / "main.py"
    script.write_text(
        "import os, threading, time, psutil\n"
        "from archloop.config import SandboxConfig\n"
        "from archloop.sandbox import Sandbox\n"
        "sandbox = Sandbox(SandboxConfig(isolation='process'))\n"
        f"probe = lambda: sandbox.probe({stays!r}, shape=(1, 8, 8), classes=4)\n"
        "threading.Thread(target=probe).start()\n"
        "while not list(sandbox.candidates_folder.glob('*/there')): time.sleep(0.01)\n"
        "time.sleep(0.2)\n"
        "found = [p.pid for p in psutil.Process().children(recursive=True)]\n"
        "print(sandbox.candidates_folder.parent, *found, flush=True)\n"
        "os.kill(sandbox.server_pid, 9)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, env=environment
    )
    folder, *pids = done.stdout.split()
    assert len(pids) >= 6, "its parent, the fork server, and four of the network"
    deadline = time.monotonic() + 60
    while any(psutil.pid_exists(int(pid)) for pid in pids) or Path(folder).exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_graph_made_to_be_dear_is_no_work_of_the_main_process(sandbox: Sandbox) -> None:
    code = (HOSTILE / "draws_an_endless_graph.py").read_text()
    verdict, found = sandbox.sketch(code, shape=(1, 8, 8), classes=4)
    assert verdict.outcome is Outcome.VALID
    assert found is None
    assert verdict.error is not None
    assert verdict.error.startswith("no graph: operators with several outputs")


def test_an_honest_network_is_refused_nothing_and_has_a_user_of_its_own(sandbox: Sandbox) -> None:
    """Threads, files, chance, clocks, signals to itself: what a network may use."""
    uses = """import os, random, signal, tempfile, threading, time
        torch.save(self.state_dict(), 'weights.pth')
        self.load_state_dict(torch.load('weights.pth', mmap=True))
        with tempfile.NamedTemporaryFile() as file: file.write(b'x')
        os.makedirs('a/b', exist_ok=True); os.rename('a/b', 'a/c'); os.rmdir('a/c')
        thread = threading.Thread(target=time.sleep, args=(0.01,)); thread.start(); thread.join()
        torch.set_num_threads(2); torch.ones(50, 50) @ torch.ones(50, 50)
        random.SystemRandom().random(); os.cpu_count(); time.process_time()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN); os.kill(os.getpid(), signal.SIGUSR1)
        print('user', os.getuid())"""
    verdict = sandbox.evaluate(network(learn=uses), seed=3)
    assert verdict.outcome is Outcome.VALID, verdict.error
    assert set(verdict.flags) <= {"extra_work"}, "all this takes longer than so short an epoch"
    assert verdict.output is not None
    user = int(verdict.output.split("user ")[1].split()[0])
    assert (user == os.getuid()) is (os.getuid() != 0)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_an_unprivileged_user_needs_nothing_more(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "os.setgroups([]); os.setresgid(*[65534] * 3); os.setresuid(*[65534] * 3)\n"
        "from archloop.config import SandboxConfig\n"
        "from archloop.sandbox import Sandbox\n"
        "with Sandbox(SandboxConfig()) as sandbox:\n"
        "    verdict = sandbox.probe(sys.argv[1], shape=(1, 8, 8), classes=4)\n"
        "print(verdict.outcome.value, verdict.flags, verdict.output.split())\n"
    )
    interpreter = Path(sys.base_prefix).resolve()
    if not all(folder.stat().st_mode & 0o001 for folder in (interpreter, *interpreter.parents)):
        pytest.skip("Python lies where only root can look")
    for folder in tmp_path.parents[:2]:
        folder.chmod(0o755)
    tmp_path.chmod(0o777)
    done = subprocess.run(
        [sys.executable, "-c", script, network(init="import os; print(os.getuid())")],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"TMPDIR": str(tmp_path), "HOME": str(tmp_path)},
    )
    assert done.stdout.split("\n")[0] == "valid () ['65534']", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_closing_leaves_nothing(blobs: TaskData) -> None:
    made = sandbox_at(blobs)
    pid, folder = made.server_pid, made.candidates_folder.parent
    assert folder.exists()
    made.close()
    made.close()
    assert not psutil.pid_exists(pid)
    assert not folder.exists()


def test_a_closed_sandbox_is_gone_with_its_images(blobs: TaskData) -> None:
    """At once, without the garbage collector, whatever its networks ended in."""
    codes = (
        network(),
        "import nothing_of_this_name",
        network(learn="import os; os._exit(3)"),
        network(learn="while True: pass"),
        network(forward="assert self.conv.weight.is_contiguous()"),
    )
    gc.disable()
    try:
        with sandbox_at(blobs) as opened:
            outcomes = {opened.evaluate(code, seed=3).outcome.value for code in codes}
            reference = weakref.ref(opened)
            del opened
        kept = reference()
    finally:
        gc.enable()
    assert outcomes == {"valid", "import_error", "train_error", "timeout"}
    assert kept is None


def test_the_self_test_passes() -> None:
    results = self_test(SandboxConfig())
    assert len(results) == 14
    assert [r for r in results if not r.ok] == []


def test_what_nobody_foresaw_is_an_outcome_and_a_warning(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By a fake, as what is known to happen is mended."""
    with monkeypatch.context() as faulty:
        faulty.setattr(client, "predict", lambda *_: {}["nothing"])
        verdict = sandbox.evaluate(network(), seed=3)
    assert verdict.outcome is Outcome.PROTOCOL_VIOLATION
    assert verdict.error == "could not be judged: KeyError: 'nothing'"
    assert "could not be judged" in caplog.text
    assert leftovers(sandbox) == []
    assert sandbox.evaluate(network(), seed=3).outcome is Outcome.VALID


def test_a_missing_level_names_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine.landlock, "abi", lambda: 1)
    assert available_isolation() == "process"
    with pytest.raises(IsolationError, match=r"--set sandbox\.isolation=process"):
        Sandbox(SandboxConfig())


def test_another_key_asks_otherwise_and_an_honest_accuracy_stays(
    blobs: TaskData, honest_accuracy: float
) -> None:
    with Sandbox(LIMITS, task=blobs, protocol=PROTOCOL, key=bytes(range(32))) as other:
        verdict = other.evaluate(network(), seed=3, max_params=MAX_PARAMS)
    assert verdict.first_epoch_accuracy == honest_accuracy
    assert verdict.flags == ()
