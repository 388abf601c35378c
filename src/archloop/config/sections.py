"""The sections of a configuration: every key with its type, limits and default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from archloop.config.base import Fraction, Mebibytes, Seconds, Section
from archloop.config.engines import ENGINES
from archloop.types import Flag, Isolation, LRSchedule, Training

EMBEDDED = "smollm2-135m"
"""The LLM that comes as a package."""
NoveltyKind = Literal["lexical", "normalized", "graph"]


class LLMConfig(Section):
    """The base LLM; fixed for the whole run."""

    model: str = EMBEDDED
    """``smollm2-135m`` (embedded), a Hugging Face id, or a local folder; of the ``openai`` engine
    the name that the server knows."""
    revision: str | None = None
    """Commit of a Hugging Face id, and only with one; pin it for a run that must be repeatable."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of its weights and products; ``auto``: bfloat16 where the GPU or the processor multiplies it
    in hardware, else float32. A run keeps what it began with."""
    warm_start: str | None = None
    """Adapter of cycle 1: a packaged name (``smollm2-135m-lemur``) or a folder. ``None``: fine-tune
    on the seeds."""


class SeedsConfig(Section):
    """Where the first corpus comes from."""

    source: Literal["lemur", "designs", "packaged", "directory", "jsonl", "run", "none"] = "lemur"
    """``lemur``, ``designs`` (made of building blocks), ``packaged`` (the corpus that comes with a
    packaged adapter), ``directory``, ``jsonl``, ``run`` (what an earlier run accepted) or
    ``none``."""
    count: int = Field(2000, ge=1, le=1_000_000)
    """Networks that ``designs`` makes, before any is dropped."""
    path: str | None = None
    """The folder or file of ``directory``, ``jsonl`` and ``run``, the adapter's name of
    ``packaged``; of ``lemur`` a folder or wheel of another release in the same layout."""
    style: Literal["unparse", "source"] = "unparse"
    """``unparse``: cleaned networks are formatted anew; ``source``: their statements stay as
    written."""
    view: Literal["lexical", "normalized"] = "lexical"
    """Tokens that near-duplicates are found by: as spelled (the paper), or with names and numbers
    folded (nn-dup)."""
    split: bool = False
    """Split the pairs 8 : 1 : 1 into train, dev and test, near-duplicates together; a run then
    learns from train only."""
    within_budget: bool = True
    """Keep only seeds of at most ``task.max_params`` parameters."""
    max_macs: int | None = Field(None, ge=1)
    """Keep only seeds with at most this many multiply-accumulates an image; ``None``: no limit."""
    balance: Literal["none", "structure"] = "none"
    """``structure``: seeds are taken from each structure class in turn, so that no class drowns
    the others: at most ``most`` in all, or, without that, of each class at most the mean number of
    networks of a class."""
    most: int | None = Field(None, ge=1)
    """Keep at most this many networks; ``None``: no limit."""
    augment: int = Field(0, ge=0, le=100_000)
    """Add at most this many networks that structural edits make of the seeds, marked in their
    metadata and counted apart."""
    edit_pairs: int = Field(0, ge=0, le=100_000)
    """Add at most this many pairs that teach an edit: the prompt has a network and an instruction,
    the answer is the edited network."""
    narrow: int = Field(0, ge=0, le=100_000)
    """Add at most this many networks above the budget, narrowed to it by the automatic width edit
    and marked in their metadata."""
    max_tokens: int | None = Field(None, ge=64, le=2**20)
    """Drop seeds whose code is longer than this many LLM tokens; ``None``: no limit."""
    variant: Literal["two_prompts", "one_prompt", "full_infill"] = "two_prompts"
    """``two_prompts``: each network under an MNIST and a CIFAR-10 description (the paper);
    ``one_prompt``: under one of them, chosen by its content; ``full_infill``: under one of them,
    and once more with ``forward`` to be filled in (nn-dup)."""


class PromptConfig(Section):
    """The prompt template; its hash is fixed for the whole run."""

    system: str = ""
    """System message; empty: the packaged template."""
    user: str = ""
    """User message with ``{dataset}``, ``{shape}``, ``{classes}``, ``{max_params}``, and perhaps
    ``{structure}``, where the structure class that is asked for stands, or ``any``; empty: the
    packaged one."""


class GenerationConfig(Section):
    """Decoding; its hash is fixed for the whole run."""

    engine: str = "transformers"
    """A name in :data:`~archloop.config.engines.ENGINES` that can be chosen."""
    replay_from: str | None = None
    """Run directory whose stored completions the ``replay`` engine repeats."""
    temperature: float = Field(0.2, ge=0.0, le=5.0)
    """0 is greedy."""
    top_k: int = Field(50, ge=0, le=2**20)
    """0 switches top-k off."""
    top_p: float = Field(0.9, gt=0.0, le=1.0)
    max_new_tokens: int = Field(2048, ge=1, le=2**20)
    batch_size: int = Field(16, ge=1, le=10_000)
    """Sequences sampled at a time; part of what makes a run repeatable. Of ``openai`` only the
    steps in which ``loop.valid_target`` is looked at."""

    @field_validator("engine")
    @classmethod
    def _engine(cls, value: str) -> str:
        allowed = [name for name, traits in ENGINES.items() if traits.selectable]
        if value not in allowed:
            raise ValueError(f"allowed: {', '.join(map(repr, allowed))}")
        return value


class TaskConfig(Section):
    """The images a network is trained on."""

    name: str = "cifar10"
    """``cifar10``, ``cifar100``, ``svhn``, ``mnist``, ``digits``, ``auto`` (CIFAR-10, else digits),
    a Hugging Face dataset id, a folder of images, a table of paths and labels, or an ``.npz``
    file."""
    image_size: int | None = Field(None, ge=8, le=512)
    """Resize to this many pixels a side; ``None``: as the data is (folders: 32)."""
    max_params: int = Field(500_000, ge=1, le=10**12)
    """Parameter budget of a candidate."""


class ProtocolConfig(Section):
    """How every candidate is trained and measured; hashed into every row."""

    training: Training = "contract"
    """``contract``: the network's own ``learn()`` (the paper); ``harness``: a fixed loop with the
    same hyperparameters; ``both``: each in turn, the accuracy is the contract's."""
    batch_size: int = Field(64, ge=1, le=100_000)
    lr: float = Field(0.01, gt=0.0)
    lr_schedule: LRSchedule = "constant"
    """``linear``: each step of an optimiser takes a smaller share of its rate, from all of it at
    the first step of the epoch in a straight line to nothing after the last; a schedule of the
    network's own still counts. ``constant``: the rate is the network's affair (the paper)."""
    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    dropout: Fraction = 0.2
    """Offered to networks that ask for it."""
    augmentation: Literal["none", "flip", "crop_flip"] = "flip"
    augment_validation: bool = False
    """Validation images are augmented as training images are (LEMUR does that)."""
    resize: int | None = Field(None, ge=8, le=512)
    """Scale batches to this many pixels a side, after augmentation; ``None``: as the task is."""
    steps_per_batch: int = Field(1, ge=1, le=1000)
    """Optimiser steps ``learn()`` may make for each batch; more is a ``protocol_violation``."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """Of training; measuring is always fp32. ``bf16``: autocast around the loop, where the network
    takes it; ``auto``: bf16 where the processor computes in it."""
    channels_last: bool = True
    """Convolutional networks get their images in this memory layout if their ``forward()`` takes
    it: faster, and the same accuracy within rounding."""
    validation: str = "holdout:10%"
    """``holdout:N`` or ``holdout:P%`` of the training images (stratified), or ``test`` (the test
    split)."""
    train_images: int | None = Field(None, ge=1)
    """Use only this many training images (stratified); ``None``: all."""
    validation_images: int | None = Field(None, ge=1)
    """Use only this many validation images (stratified); ``None``: all."""

    @field_validator("validation")
    @classmethod
    def _validation(cls, value: str) -> str:
        kind, _, count = value.partition(":")
        number = count.removesuffix("%")
        most = 99 if count.endswith("%") else 2**31
        if value == "test" or (
            kind == "holdout" and number.isdecimal() and 0 < int(number) <= most
        ):
            return value
        raise ValueError("allowed: 'test', 'holdout:N' (images) or 'holdout:P%' (1 to 99 percent)")

    def input_shape(self, image: tuple[int, int, int]) -> tuple[int, int, int]:
        """(channels, height, width) that networks get of such images; graphs are traced at it."""
        return image if self.resize is None else (image[0], self.resize, self.resize)


class SandboxConfig(Section):
    """Limits on generated code."""

    isolation: Isolation = "confined"
    workers: int = Field(0, ge=0, le=1024)
    """Candidates evaluated at the same time; 0: as many as the CPU cores have room for."""
    threads: int = Field(1, ge=1, le=1024)
    """CPU threads of one candidate."""
    memory_mb: Mebibytes = Field(4096, ge=256)
    disk_mb: Mebibytes = Field(64, ge=1)
    build_seconds: Seconds = 20.0
    """Wall-clock limit of import, instantiation and dummy forward together."""
    train_seconds: Seconds = 1800.0
    """Wall-clock limit of the epoch."""
    predict_seconds: Seconds = 300.0


class NoveltyConfig(Section):
    """Near-duplicate detection (paper, appendix A.1)."""

    enabled: bool = True
    """``False``: near-duplicates are scored and counted but not rejected (ablation)."""
    kind: tuple[NoveltyKind, ...] = ("lexical",)
    """What a candidate must be novel in, one or several: ``lexical`` tokens (the paper),
    ``normalized`` ones (names and numbers folded), the traced ``graph``. All are scored."""
    shingle_size: int = Field(10, ge=1, le=1000)
    permutations: int = Field(256, ge=16, le=4096)
    lsh_threshold: Fraction = 0.85
    near_duplicate_threshold: Fraction = 0.90

    @field_validator("kind", mode="before")
    @classmethod
    def _kinds(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("kind")
    @classmethod
    def _some_kind(cls, value: tuple[NoveltyKind, ...]) -> tuple[NoveltyKind, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("allowed: one or more of 'lexical', 'normalized', 'graph', each once")
        return value


class SelectionConfig(Section):
    """What enters the corpus."""

    min_accuracy: Fraction = 0.40
    """First-epoch accuracy a candidate must reach; 0 switches the threshold off (ablation)."""
    percentile: float | None = Field(None, gt=0, lt=100)
    """Raise the threshold, never below ``min_accuracy``, to this percentile of the first-epoch
    accuracies of the cycle and those before it (``window`` in all); ``None``: it stays (paper)."""
    window: int = Field(3, ge=1)
    """Cycles that ``percentile`` looks at, the current one included."""
    max_macs: int | None = Field(None, ge=1)
    """A candidate whose forward pass takes more multiply-accumulates an image is
    ``below_threshold``; the same on every machine. One whose graph could not be traced or counted
    is not rejected by it, as what is not measured breaks no limit. ``None``: no limit (paper)."""
    max_train_seconds: float | None = Field(None, gt=0)
    """A candidate that trained for longer, on the machine of the run, is ``below_threshold``
    however accurate it is, so that the LLM learns from quick ones. Seconds depend on the speed and
    the load of the machine, so the accepted set may differ between machines, as it does not with
    ``max_macs``; ``None``: no limit (paper)."""
    allow_flags: tuple[Flag, ...] = ("trained_again",)
    """Flags with which a candidate may be accepted all the same; with any other it is
    ``quarantined``. ``trained_again`` says nothing against an accuracy; ``suspect_text`` stands for
    secrets and text for an LLM in its source."""
    weighting: Literal["none", "accuracy"] = "none"
    """``accuracy``: fine-tuning sees accurate networks more often than others (see ``mix.py``)."""

    @field_validator("allow_flags", mode="before")
    @classmethod
    def _flags(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class FinetuneConfig(Section):
    """LoRA fine-tuning (paper, section 3.1)."""

    enabled: bool = True
    """``False``: every cycle uses the adapter of cycle 1 (ablation)."""
    init: Literal["base", "previous"] = "base"
    """``base``: from the base LLM on all pairs; ``previous``: go on from the last adapter."""
    replay: int = Field(0, ge=0)
    """With ``previous``: pairs of the older corpus mixed into the new ones."""
    replay_seeds: int | None = Field(None, ge=0)
    """With ``previous``: at most this many of them are seed networks; ``None``: no limit."""
    lora_r: int = Field(32, ge=1, le=4096)
    lora_alpha: int = Field(32, ge=1)
    lora_dropout: float = Field(0.05, ge=0.0, lt=1.0)
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"), min_length=1
    )
    layers: int | None = Field(None, ge=1)
    """Adapt only the first this many layers; ``None``: all."""
    epochs: float = Field(5.0, gt=0, le=10_000)
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimiser steps even if epochs are left."""
    lr: float = Field(1e-5, gt=0)
    scheduler: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup_steps: int = Field(20, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    batch_size: int = Field(1, ge=1, le=10_000)
    grad_accumulation: int = Field(4, ge=1, le=10_000)
    """Batches of an optimiser step."""
    merge_batches: bool | Literal["auto"] = "auto"
    """Put the batches of a step through the LLM together: the same step in fewer passes; ``auto``:
    on one GPU, as many as surely fit into the memory that is free."""
    optimizer: Literal["adamw", "paged_adamw_8bit"] = "adamw"
    max_length: int = Field(4096, ge=128, le=2**20)
    """Longer prompt-code pairs are left out of training, and counted."""
    packing: bool = False
    """Lay the pairs of a batch end to end, each attending to itself only, in place of padding."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Compute activations again in the backward pass instead of keeping them; ``auto``: where they
    would not fit into the memory that is free."""
    quantization: Literal["none", "nf4"] = "none"
    """``nf4``: the frozen weights in 4 bits (QLoRA); needs bitsandbytes."""
    processes: int | None = Field(None, ge=1, le=1024)
    """Processes that train together, each on ``batch_size`` pairs at a time; ``None``: one for
    each GPU."""
    dev_share: float = Field(0.0, ge=0, le=0.5)
    """Share of the pairs held out to measure the dev loss; networks that differ in names and
    numbers only stay on one side."""
    dev_steps: int | None = Field(None, ge=1)
    """Optimiser steps between two measurements of the dev loss; ``None``: an epoch."""
    patience: int | None = Field(None, ge=1)
    """Stop when the dev loss has not fallen for this many measurements. With ``dev_share`` the
    adapter is the one with the lowest dev loss."""
    adapter_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the stored adapter weights; bfloat16 halves the files."""

    def check(self) -> None:
        """Refuse keys that would do nothing beside the others.

        Raises:
            ValueError: Naming the first.
        """
        for needed, keys, without in (
            ("finetune.init = 'previous'", ("replay", "replay_seeds"), self.init == "base"),
            ("finetune.dev_share above 0", ("dev_steps", "patience"), not self.dev_share),
        ):
            for key in keys:
                if without and getattr(self, key):
                    raise ValueError(f"finetune.{key}: only with {needed}")


class PaperSearch(Section):
    """The paper's method: one prompt, novel and accurate networks accepted, the LLM fine-tuned."""

    type: Literal["paper"] = "paper"
    temperature_step: float = Field(0.0, ge=0.0, le=1.0)
    """Raise the temperature by this after a cycle with more than ``most_near_duplicates`` among its
    valid completions; lower it, never below ``generation.temperature``, after one with less than
    ``least_valid`` valid ones. 0: it stays (paper)."""
    temperature_max: float = Field(2.0, ge=0.0, le=5.0)
    """The highest that ``temperature_step`` leads to."""
    most_near_duplicates: Fraction = 0.10
    least_valid: Fraction = 0.85
    edits: Fraction = 0.0
    """From the second cycle on, this share of the prompts show an accepted network and ask for one
    structural edit of it. 0: none (paper)."""
    condition: Literal["none", "even", "best"] = "none"
    """Each prompt asks for a structure class and a parameter budget, where ``prompt.user`` has
    ``{structure}``: ``even``, drawn uniformly from all known classes and from the budgets within a
    factor of ten below ``task.max_params``; ``best``, every second one for a class that did well,
    within the whole budget. ``none``: all prompts are the same (paper)."""
    select: Literal["threshold", "niche"] = "threshold"
    """``niche``: candidates are judged among those of their structure class and cell of MACs:
    ``selection.percentile`` is taken within the niche, and the ``niche_size`` best of each are
    accepted. ``threshold``: one for all (paper)."""
    niche_size: int = Field(3, ge=1, le=10_000)
    """With ``select = "niche"``: networks of a niche that are accepted in a cycle, at most."""
    champion_repeats: int = Field(0, ge=0, le=100)
    """With ``select = "niche"``: a candidate that would be the best of its niche so far is trained
    again with so many other seeds, and judged by the lower 95 % bound of its mean accuracy."""

    def check(self, lowest: float, prompt: PromptConfig) -> None:
        """Refuse keys that contradict others.

        Raises:
            ValueError: The highest temperature is below ``generation.temperature``, the prompt has
            no place for what ``condition`` draws, or there are repeats without niches.
        """
        if self.temperature_step and self.temperature_max < lowest:
            raise ValueError("search.temperature_max: below generation.temperature")
        if self.champion_repeats and self.select != "niche":
            raise ValueError("search.champion_repeats: only with search.select = 'niche'")
        if self.condition != "none" and "{structure}" not in prompt.user:
            raise ValueError(
                f"search.condition = {self.condition!r}: only with a prompt.user that has "
                "{structure}"
            )


class RandomSearch(Section):
    """The random baseline: networks from a grammar, no LLM and no learning.

    The sections ``[llm]``, ``[generation]`` and ``[finetune]`` play no part.
    """

    type: Literal["random"] = "random"
    grammar: Literal["blocks", "designs"] = "blocks"
    """``blocks``: a small grammar within the budget; ``designs``: chains of building blocks with
    structural edits, as the seed networks of that name."""
    edits: Fraction = 0.0
    """From the second cycle on, this share of the requests are random structural edits of accepted
    networks: a local search."""


class FeedbackSearch(Section):
    """A frozen LLM whose prompt shows what became of its last networks (nn-gpt's baseline)."""

    type: Literal["feedback"] = "feedback"
    memory: int = Field(5, ge=1, le=100)
    """So many of the last networks of earlier cycles are shown, each with its outcome and its
    accuracy or error."""
    memory_characters: int = Field(12_000, ge=100, le=2**20)
    """Their code takes at most so many characters of the prompt; the oldest are left out first."""


def _search_type(section: Any) -> Any:
    """The tag of the union, of keys or of a section; a wrong one is named in the error."""
    return section.get("type", "paper") if isinstance(section, Mapping) else section.type


SearchConfig = Annotated[
    Annotated[PaperSearch, Tag("paper")]
    | Annotated[RandomSearch, Tag("random")]
    | Annotated[FeedbackSearch, Tag("feedback")],
    Discriminator(_search_type),
]
"""How a run asks for networks, decides over them and learns; each type has keys of its own."""

SEARCHES: dict[str, type[Section]] = {
    "paper": PaperSearch,
    "random": RandomSearch,
    "feedback": FeedbackSearch,
}
"""The section of each ``search.type``."""


class LoopConfig(Section):
    """How many cycles, and when one ends."""

    cycles: int = Field(22, ge=1, le=10_000)
    completions: int = Field(150, ge=1, le=100_000)
    """Completions sampled in a cycle; the cap when ``valid_target`` is set."""
    valid_target: int | None = Field(None, ge=1)
    """End the cycle once this many candidates are valid (decided at batch boundaries)."""
    final_finetune: bool = False
    """Fine-tune once more after the last cycle, so the run ends with an adapter of everything
    accepted; not with ``finetune.enabled = false``."""
