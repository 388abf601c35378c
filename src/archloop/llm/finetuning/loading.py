"""Loading the base LLM with a trainable adapter."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AttentionInterface, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from archloop.config import FinetuneConfig
from archloop.errors import ConfigError, MissingExtraError, UsageError
from archloop.llm.adapter_files import adapter_mismatch, check_warm_start
from archloop.llm.finetuning.job import FinetuneJob
from archloop.llm.finetuning.linear import patch_lora_forward
from archloop.llm.finetuning.loss import check_head, give_loss
from archloop.llm.finetuning.packing import ATTENTION, attend
from archloop.llm.models import check_adapter, loading, require_plain_weights

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Adapted:
    """The layers of an LLM that an adapter applies to."""

    modules: int
    layers: int
    of_layers: int
    parameters: int

    def __str__(self) -> str:
        return (
            f"LoRA on {self.modules} modules in {self.layers} of {self.of_layers} layers, "
            f"{self.parameters:,} trainable parameters"
        )


def load(job: FinetuneJob) -> Any:
    """The base LLM of a job with the parent's or a new adapter; its forward pass returns the loss.

    Raises:
        UsageError: A LoRA target does not exist in this LLM, or its loss cannot be computed here.
        ConfigError: The parent's adapter has other LoRA settings.
        MissingExtraError: bitsandbytes is needed but not installed.
    """
    _check_bitsandbytes(job.config)
    # As in generation: cuDNN's attention makes a new plan for every sequence length.
    torch.backends.cuda.enable_cudnn_sdp(False)
    base = _base(job)
    check_targets(base, job.config)
    check_head(base)
    if job.config.packing:
        use_packing(base)
    model = _with_adapter(base, job)
    give_loss(base)
    if not torch.cuda.is_available():
        patch_lora_forward(model)
    return in_autocast(model)


def _check_bitsandbytes(config: FinetuneConfig) -> None:
    eight_bit = config.optimizer == "paged_adamw_8bit" and torch.cuda.is_available()
    key = "optimizer" if eight_bit else "quantization"
    needed = eight_bit or config.quantization == "nf4"
    if needed and importlib.util.find_spec("bitsandbytes") is None:
        value = getattr(config, key)
        raise MissingExtraError(f"finetune.{key} = {value!r} needs: pip install 'archloop[cuda]'")


def _base(job: FinetuneJob) -> Any:
    require_plain_weights(job.model_dir)
    options: dict[str, Any] = {"dtype": getattr(torch, job.dtype)}
    if job.config.quantization == "nf4":
        if job.config.dev_share and not torch.cuda.is_available():
            # In evaluation mode bitsandbytes packs the weights for inference, without gradients.
            raise UsageError("finetune.quantization: nf4 with finetune.dev_share needs a CUDA GPU")
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=options["dtype"],
        )
    with loading(job.model_dir):
        base = AutoModelForCausalLM.from_pretrained(job.model_dir, **options)
    base.config.use_cache = False
    if job.config.quantization == "nf4":
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
        # In evaluation mode bitsandbytes packs weights for inference on a CPU, which stops
        # gradients.
        base.train()
    return base


def _with_adapter(base: Any, job: FinetuneJob) -> Any:
    config = job.config
    wanted = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.target_modules),
        layers_to_transform=None if config.layers is None else list(range(config.layers)),
        task_type="CAUSAL_LM",
    )
    if job.parent is None:
        return get_peft_model(base, wanted)
    check_adapter(job.parent)
    check_warm_start(job.parent, job.model_dir)
    if mismatch := adapter_mismatch(job.parent, config):
        raise ConfigError(mismatch)
    with loading(job.parent):
        kept = LoraConfig.from_pretrained(job.parent)
        kept.lora_dropout = config.lora_dropout  # the dropout of this fine-tune, not the parent's
        return PeftModel.from_pretrained(base, job.parent, is_trainable=True, config=kept)


def check_targets(base: Any, config: FinetuneConfig) -> None:
    """Check that every LoRA target is a linear layer and that the LLM has enough layers.

    GPT-2's ``Conv1D`` is one too, with its weights transposed.

    Raises:
        UsageError: Naming the wrong key, and the allowed values.
    """
    head = base.get_output_embeddings()
    linear = {
        name: module
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }
    there = sorted({name.rpartition(".")[2] for name in linear})
    missing = [t for t in config.target_modules if t not in there]
    if missing:
        raise UsageError(
            f"finetune.target_modules: {', '.join(missing)}: no such layer in "
            f"{type(base).__name__}; set finetune.target_modules to some of {json.dumps(there)}"
        )
    layers = base.config.get_text_config().num_hidden_layers
    if config.layers is not None and config.layers > layers:
        raise UsageError(f"finetune.layers: {config.layers}, but the LLM has {layers}")


def adapted(model: Any) -> Adapted:
    """The trainable parameters of a PEFT model."""
    names = [n for n, module in model.named_modules() if hasattr(module, "lora_A")]
    layers = {found[1] for n in names if (found := _LAYER.search(n))}
    return Adapted(
        modules=len(names),
        layers=len(layers),
        of_layers=model.config.get_text_config().num_hidden_layers,
        parameters=model.get_nb_trainable_parameters()[0],
    )


@torch.no_grad()
def use_packing(base: Any) -> None:
    """Give an LLM the attention of packed rows; documents must get the states they have alone.

    Raises:
        UsageError: They do not: this LLM has an attention that packing does not support.
    """
    device = base.get_output_embeddings().weight.device
    first, second = torch.arange(6, device=device)[None], torch.arange(9, 14, device=device)[None]
    run: Callable[..., Any] = base.get_decoder()
    apart = run(input_ids=second).last_hidden_state  # by its own attention
    AttentionInterface.register(ATTENTION, attend)
    base.set_attn_implementation(ATTENTION)
    positions = torch.cat([torch.arange(6), torch.arange(5)])[None].to(device)
    packed = run(
        input_ids=torch.cat([first, second], 1), position_ids=positions, documents=(0, 6, 5)
    ).last_hidden_state
    difference = (packed[:, 6:] - apart).abs().max() / apart.abs().max()
    if not difference < 0.05:
        raise UsageError(f"finetune.packing: not for {type(base).__name__}; set it to false")


def in_autocast(model: Any) -> Any:
    """Disable PEFT's casts, so that autocast casts the adapter down instead of its inputs up.

    PEFT's casts would compute the adapter in 32 bits on a CPU, which is slower, and elsewhere store
    each input in 32 bits before casting it down again.
    """
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False
    return model
