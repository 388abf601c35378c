from __future__ import annotations

import pytest

from archloop.config import RunConfig, changed_keys, load_config, resolve
from archloop.errors import ConfigError

URL = "http://127.0.0.1:8000/v1"


def remote(*overrides: str) -> RunConfig:
    return load_config("openai", overrides)


def test_the_preset_is_whole() -> None:
    config = remote()
    assert config.generation.engine == "openai"
    assert not config.finetune.enabled


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["openai.base_url=none"], "openai.base_url: required"),
        (["finetune.enabled=true"], "cannot fine-tune.*set finetune.enabled=false"),
        (
            ["llm.warm_start=smollm2-135m-lemur", "loop.final_finetune=true"],
            "set llm.warm_start=none, loop.final_finetune=false",
        ),
        (["seeds.max_tokens=700"], "set seeds.max_tokens=none"),
        (["openai.base_url=localhost:8000"], "openai.base_url: allowed: a URL"),
        (["openai.base_url=http://me:secret@host/v1"], "no user name or password"),
        (["openai.cap_cost=1"], "openai: cap_cost needs input_price and output_price"),
        (["openai.input_price=1"], "input_price and output_price belong together"),
        (["openai.extra_body={n=2, max_tokens=9}"], "openai.extra_body: not max_tokens, n: arch"),
        (["openai.extra_body={top_k=5}"], "openai.extra_body: not top_k: .*generation"),
        (["openai.base_url=http://host/v1?key=secret"], r"without \? and #"),
        (["openai.extra_body={provider={api_key='secret'}}"], "not api_key: .*api_key_env"),
        (["openai.extra_body={headers=[{Authorization='secret'}]}"], "not Authorization: "),
        (["openai.concurrency=0"], "openai.concurrency"),
        (["openai.caps=0"], "openai.caps: unknown key; allowed here: .*cap_cost"),
    ],
)
def test_what_makes_no_sense_is_one_line(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        remote(*overrides)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("key", ["sk-4711", "gsk_aB4711", "hf_4711"])
def test_a_key_in_place_of_its_variable_is_not_repeated(key: str) -> None:
    with pytest.raises(ConfigError, match="the name of an environment variable") as error:
        remote(f"openai.api_key_env={key}")
    assert "4711" not in str(error.value)


@pytest.mark.parametrize(
    ("engine", "override", "key"),
    [
        ("openvino", f"openai.base_url={URL}", "openai.base_url: only with .* 'openai'"),
        ("transformers", "openai.cap_tokens=5", "openai.cap_tokens: only with .* 'openai'"),
        ("openvino", "vllm.tensor_parallel_size=2", "vllm.tensor_parallel_size: only .* 'vllm'"),
    ],
)
def test_keys_of_another_engine_are_refused(engine: str, override: str, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        load_config("embedded", [f"generation.engine={engine}", override])


def test_a_replay_keeps_the_section_of_the_run_it_repeats() -> None:
    config = remote("generation.engine=replay", "generation.replay_from=runs/a")
    assert config.openai.base_url == URL


def test_the_vllm_engine_takes_its_keys() -> None:
    config = load_config("paper", ["generation.engine=vllm", "vllm.gpu_memory_utilization=0.5"])
    assert config.vllm.gpu_memory_utilization == 0.5


def test_a_run_may_go_on_elsewhere_but_not_sample_otherwise() -> None:
    before = remote()
    after = remote("openai.cap_tokens=9", "openai.base_url=http://other/v1", "openai.retries=1")
    assert changed_keys(before, after) == []
    after = remote("openai.extra_body={min_p=0.1}", "openai.limit_field=max_completion_tokens")
    assert changed_keys(before, after) == [
        "openai.extra_body.min_p: None -> 0.1",
        "openai.limit_field: 'max_tokens' -> 'max_completion_tokens'",
    ]


def test_configurations_from_before_the_sections_are_read() -> None:
    tree = load_config("embedded").model_dump(mode="json")
    del tree["openai"], tree["vllm"]
    assert resolve(tree) == load_config("embedded")
