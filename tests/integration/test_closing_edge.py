"""The closing edge of the loop: a cycle generates with what the cycle before has taught the LLM.

Three cycles with real fine-tunes of a real LLM, small enough to be trained here in seconds. What a
run says of itself is not believed: plain PEFT tells which adapter on disk a stored completion was
sampled with, and how well an adapter knows the networks that a cycle accepted.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import psutil
import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

import archloop
from archloop.config import resolve
from archloop.progress import Progress
from tiny_llm import make_tokenizer

CYCLES, COMPLETIONS, STEPS, N_SEEDS = 3, 12, 60, 6
KILLED = 3
"""The cycle whose fine-tune is killed: its corpus and parent come out of the loop itself."""
PRETRAINING, LONGEST = 250, 120
SYSTEM, USER = "You design networks.", "{dataset} {shape} {classes} {max_params}"
CODE = Template("""import torch
import torch.nn as nn

def supported_hyperparameters():
    return {'lr', 'momentum'}

class Net(nn.Module):

    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()
        self.device = device
        width = $width
        self.first = nn.Conv2d(in_shape[1], width, 3, padding=1)
        after = $after
        self.second = nn.Conv2d(width, after, $kernel, padding='same')
        self.norm = nn.BatchNorm2d(after)
        side = $side
        self.pool = nn.AdaptiveAvgPool2d((side, side))
        self.head = nn.Linear(after * side * side, out_shape[0])

    def forward(self, x):
        x = torch.$act(self.norm(self.second(self.first(x))))
        return self.head(self.pool(x).flatten(1))

    def train_setup(self, prm):
        self.to(self.device)
        self.criteria = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(self.parameters(), lr=prm['lr'], momentum=prm['momentum'])

    def learn(self, train_data):
        for inputs, labels in train_data:
            self.optimizer.zero_grad()
            loss = self.criteria(self(inputs.to(self.device)), labels.to(self.device))
            loss.backward()
            self.optimizer.step()""")
WIDTHS, KERNELS, SIDES = (4, 6, 9, 12, 14, 16), (1, 3, 5), (2, 3, 4)
ACTS = ("relu", "tanh", "sigmoid")
FAMILY = [
    CODE.substitute(width=width, after=after, kernel=kernel, side=side, act=act)
    for width, after, kernel, side, act in product(WIDTHS, WIDTHS, KERNELS, SIDES, ACTS)
]
"""What the LLM can write before it is fine-tuned."""


def chat(code: str) -> list[dict[str, str]]:
    user = USER.format(dataset="Digits", shape="(N, 1, 16, 16)", classes=10, max_params="50,000")
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": user},
        {"role": "assistant", "content": f"```python\n{code}\n```"},
    ]


def encode(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """Prompt and answer apart, as an LLM that goes on from the prompt sees them."""
    start = tokenizer.apply_chat_template(
        messages[:-1], add_generation_prompt=True, return_dict=True
    )
    return start["input_ids"], tokenizer(messages[-1]["content"] + "<|im_end|>")["input_ids"]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two narrow layers that writes networks of the family, each about as likely."""
    rng = random.Random(0)
    codes = rng.sample(FAMILY, 200)
    tokenizer = make_tokenizer(
        [m["content"] for code in codes[:60] for m in chat(code)], words=False
    )
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small are slower on more
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
        initializer_range=0.05,
    )
    model = LlamaForCausalLM(config)
    rows = [torch.tensor(sum(encode(tokenizer, chat(code)), [])) for code in codes]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(PRETRAINING):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1.0, (step + 1) / 20) * (1 - step / PRETRAINING)
        batch = torch.nn.utils.rnn.pad_sequence(rng.sample(rows, 8), True, -100)
        loss = model(input_ids=batch.clamp(min=0), labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    folder = tmp_path_factory.mktemp("llm")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with (folder / "seeds.jsonl").open("w") as seeds:
        for code in rng.sample(FAMILY, N_SEEDS):
            seeds.write(json.dumps({"messages": chat(code)}) + "\n")
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of this module's own, for its seeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARCHLOOP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


class Done(NamedTuple):
    """A finished run, one of whose fine-tunes was killed."""

    init: str
    root: Path
    llm: Path
    resumed_at: list[int]
    """Steps of that fine-tune that it told of when it went on."""

    def adapter(self, cycle: int) -> Path:
        return self.root / "adapters" / f"cycle_{cycle:02d}"

    def corpus(self, cycle: int) -> list[dict[str, Any]]:
        file = self.root / "corpus" / f"cycle_{cycle:02d}.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()]

    def lineage(self, cycle: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.adapter(cycle) / "lineage.json").read_text())
        return found


def settings(init: str, llm: Path) -> dict[str, Any]:
    return {
        "llm": {"model": str(llm), "dtype": "float32"},
        "seeds": {"source": "jsonl", "path": str(llm / "seeds.jsonl"), "variant": "one_prompt"},
        "prompt": {"system": SYSTEM, "user": USER},
        "generation": {
            "engine": "transformers",
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "max_new_tokens": LONGEST,
            "batch_size": COMPLETIONS,
        },
        "task": {"name": "digits", "image_size": 16, "max_params": 50_000},
        "protocol": {"augmentation": "none", "lr": 0.05},
        "selection": {"min_accuracy": 0.01},
        "finetune": {
            "init": init,
            "lora_r": 4,
            "lora_alpha": 8,
            "lora_dropout": 0.1,
            "lr": 2e-3,
            "scheduler": "constant_with_warmup",
            "warmup_steps": 0,
            "batch_size": 2,
            "grad_accumulation": 1,
            "epochs": 10_000,
            "max_steps": STEPS,
            "max_length": 256,
        },
        "loop": {"cycles": CYCLES, "completions": COMPLETIONS},
    }


class Watch:
    """Keeps the steps of the killed cycle's fine-tune that a run tells of."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def update(self, progress: Progress) -> None:
        cycle = progress.run.cycle if progress.run else None
        if (progress.stage, cycle) == ("fine-tune", KILLED) and progress.done:
            self.steps.append(progress.done)

    def message(self, text: str) -> None:
        pass


def kill_in_fine_tune(tree: dict[str, Any], root: Path) -> None:
    """Start a run, and kill it once a fine-tune has a checkpoint on disk and goes on."""
    code = (
        "import json, sys, archloop; from archloop.config import resolve; "
        "archloop.run(resolve(json.loads(sys.argv[1])), sys.argv[2])"
    )
    run = subprocess.Popen([sys.executable, "-c", code, json.dumps(tree), str(root)])
    adapter = root / "adapters" / f"cycle_{KILLED:02d}"
    kept = adapter.with_name(f"{adapter.name}.checkpoints")
    try:
        while not list(kept.glob("checkpoint-*/trainer_state.json")):
            assert run.poll() is None, "the run ended before it could be killed"
            time.sleep(0.005)
        started = psutil.Process(run.pid).children(recursive=True)
    finally:
        run.kill()
        run.wait()
    assert psutil.wait_procs(started, timeout=30)[1] == [], "a process outlives its run"
    assert not adapter.exists()


@pytest.fixture(scope="module", params=["base", "previous"])
def done(
    request: pytest.FixtureRequest, llm: Path, tmp_path_factory: pytest.TempPathFactory
) -> Done:
    root, watch = tmp_path_factory.mktemp("runs") / "run", Watch()
    tree = settings(request.param, llm)
    kill_in_fine_tune(tree, root)
    archloop.run(resolve(tree), root, watch).close()
    return Done(request.param, root, llm, watch.steps)


def adapted(done: Done, cycle: int) -> Any:
    """The LLM with the adapter that lies on disk for a cycle, as plain PEFT loads it."""
    base = AutoModelForCausalLM.from_pretrained(done.llm, dtype=torch.float32)
    return PeftModel.from_pretrained(base, done.adapter(cycle)).eval()


@torch.inference_mode()
def write(model: Any, tokenizer: Any, prompt: list[dict[str, str]], seeds: list[int]) -> list[str]:
    """Sample from a model: each token by one uniform draw of a sequence's own random stream."""
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    draws = torch.stack([torch.rand(LONGEST, generator=g, dtype=torch.float64) for g in streams])
    start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
    tokens = torch.tensor([start["input_ids"]] * len(seeds))
    cache, chosen = None, []
    for step in range(LONGEST):
        out = model(input_ids=tokens, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        shares, order = out.logits[:, -1].double().softmax(-1).sort(-1, descending=True)
        sums = shares.cumsum(-1)
        places = torch.searchsorted(sums, draws[:, step : step + 1] * sums[:, -1:], right=True)
        tokens = order.gather(-1, places.clamp(max=sums.shape[1] - 1))
        chosen.append(tokens)
    texts = []
    for row in torch.cat(chosen, 1).tolist():
        end = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else LONGEST
        texts.append(tokenizer.decode(row[:end]))
    return texts


@torch.inference_mode()
def nats(model: Any, tokenizer: Any, rows: list[list[dict[str, str]]]) -> float:
    """Mean negative log-likelihood of an answer, in nats."""
    total = 0.0
    for messages in rows:
        prompt, answer = encode(tokenizer, messages)
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum")
        total += float(loss)
    return total / len(rows)


def prompt_of(done: Done) -> list[dict[str, str]]:
    """The run's prompt, as it stands before an accepted network."""
    row = next(r for r in done.corpus(CYCLES + 1) if r["meta"].get("generated"))
    found: list[dict[str, str]] = row["messages"][:2]
    return found


def accepted(done: Done, cycle: int) -> list[dict[str, Any]]:
    """The corpus rows of what a cycle accepted, as the corpus of the next one has them."""
    return [r for r in done.corpus(cycle + 1) if r["meta"].get("cycle") == cycle]


def test_every_completion_was_sampled_with_the_adapter_of_its_cycle(done: Done) -> None:
    tokenizer = AutoTokenizer.from_pretrained(done.llm)
    llms = {cycle: adapted(done, cycle) for cycle in range(1, CYCLES + 1)}
    prompt = prompt_of(done)
    with archloop.Run.open(done.root) as run:
        for cycle, other in product(llms, llms):
            stored = run.store.completions(cycle)
            assert len(stored) == COMPLETIONS
            seeds = [r.seed for r in run.store.requests(cycle)]
            again = write(llms[other], tokenizer, prompt, seeds)
            same = sum(a == c.text for a, c in zip(again, stored, strict=True))
            # Another adapter may come to a text as well, where the draws decide alike.
            assert same == COMPLETIONS if other == cycle else same < COMPLETIONS / 2


def test_every_adapter_has_learnt_what_the_cycle_before_accepted(done: Done) -> None:
    tokenizer = AutoTokenizer.from_pretrained(done.llm)
    with archloop.Run.open(done.root) as run:
        kept = {c.id: c.code for c in run.store.candidates() if c.outcome.value == "accepted"}
    seeds = done.corpus(1)
    assert len(seeds) == N_SEEDS
    for cycle in range(1, CYCLES + 1):
        rows = accepted(done, cycle)
        known = [r for c in range(1, cycle + 1) for r in accepted(done, c)]
        assert rows, "without an accepted network there is nothing to see"
        assert done.corpus(cycle + 1) == seeds + known
        assert {r["meta"]["candidate"] for r in known} == {i for i in kept if int(i[1:3]) <= cycle}
        for row in rows:
            code = kept[row["meta"]["candidate"]]
            assert row["messages"][2]["content"] == f"```python\n{code}\n```"
    # Likelier than with the adapter before: plain PEFT's word for it.
    for cycle in range(1, CYCLES):
        before, after = adapted(done, cycle), adapted(done, cycle + 1)
        new = [r["messages"] for r in accepted(done, cycle)]
        learnt = nats(before, tokenizer, new) - nats(after, tokenizer, new)
        assert learnt > 0.1, f"cycle {cycle + 1}"


def test_a_fine_tune_outside_the_loop_makes_the_same_adapters(done: Done, tmp_path: Path) -> None:
    """So nothing else was learnt from, and going on after the kill has changed nothing."""
    for cycle in range(2, CYCLES + 1):
        going_on = done.init == "previous"
        rows = accepted(done, cycle - 1) if going_on else done.corpus(cycle)
        folder = tmp_path / str(cycle)
        folder.mkdir()
        (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        tree = settings(done.init, done.llm)
        lines = [f"seed = {done.lineage(cycle)['seed']}"]
        for section in ("llm", "finetune"):
            lines += [f"[{section}]", *(f"{k} = {json.dumps(v)}" for k, v in tree[section].items())]
        (folder / "config.toml").write_text("\n".join(lines))
        command = [sys.executable, "-m", "archloop", "finetune", "--config", folder / "config.toml"]
        parent = ["--adapter", done.adapter(cycle - 1)] if going_on else []
        files = ["--corpus", folder / "corpus.jsonl", "--out", folder / "adapter"]
        subprocess.run([*command, *files, *parent], check=True)
        assert weights(folder / "adapter") == weights(done.adapter(cycle)), f"cycle {cycle}"


def test_a_killed_fine_tune_went_on_from_its_checkpoint(done: Done) -> None:
    first = done.resumed_at[0]
    assert first > 1, "it began anew"
    assert done.resumed_at == list(range(first, STEPS + 1))


def test_the_lineage_tells_parent_and_corpus(done: Done) -> None:
    assert len({weights(done.adapter(cycle)) for cycle in range(1, CYCLES + 1)}) == CYCLES
    for cycle in range(1, CYCLES + 1):
        found = done.lineage(cycle)
        first = cycle == 1 or done.init == "base"
        assert found["parent"] == (None if first else f"cycle_{cycle - 1:02d}")
        assert found["parent_sha256"] == (None if first else weights(done.adapter(cycle - 1)))
        assert found["n_pairs"] == len(done.corpus(cycle) if first else accepted(done, cycle - 1))
        assert found["steps"] == STEPS


def weights(adapter: Path) -> str:
    return hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
