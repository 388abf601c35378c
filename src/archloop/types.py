"""All data that moves between stages, as frozen dataclasses in the field's terms.

Accuracies and rates are fractions in 0..1, times are seconds, sizes are counts. ``None`` means "not
measured", never zero.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict

from archloop.text import one_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Outcome(StrEnum):
    """Where a completion ended, in ladder order: each completion ends in exactly one."""

    NO_CODE = "no_code"
    SYNTAX_ERROR = "syntax_error"
    CONTRACT_VIOLATION = "contract_violation"
    FORBIDDEN_CODE = "forbidden_code"
    IMPORT_ERROR = "import_error"
    INSTANTIATE_ERROR = "instantiate_error"
    OVER_BUDGET = "over_budget"
    FORWARD_ERROR = "forward_error"
    TRAIN_ERROR = "train_error"
    NON_FINITE = "non_finite"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    SANDBOX_VIOLATION = "sandbox_violation"
    PROTOCOL_VIOLATION = "protocol_violation"
    """Not by the rules: more than one epoch, weights that are not the network's, or what cannot be
    judged."""
    VALID = "valid"
    """Trained to the end of the epoch; stays so only where nothing is selected."""
    NEAR_DUPLICATE = "near_duplicate"
    BELOW_THRESHOLD = "below_threshold"
    QUARANTINED = "quarantined"
    """Novel and accurate, but flagged, or with text that no LLM must learn."""
    ACCEPTED = "accepted"

    @property
    def is_valid(self) -> bool:
        """Whether the network was trained to the end of the epoch."""
        return self in _VALID


_VALID = frozenset(
    {
        Outcome.VALID,
        Outcome.NEAR_DUPLICATE,
        Outcome.BELOW_THRESHOLD,
        Outcome.QUARANTINED,
        Outcome.ACCEPTED,
    }
)

Isolation = Literal["process", "confined", "bwrap"]
"""Isolation levels, weakest first: own process group, limits and environment; plus
Landlock+seccomp; plus own mount, process and network namespaces."""

Training = Literal["contract", "harness", "both"]
"""Whose loop trains a network: its own ``learn()``, the harness's fixed one, or each in turn."""

Flag = Literal[
    "batch_dependent",
    "stochastic",
    "brittle",
    "changes_weights",
    "no_steps",
    "untrained",
    "state_lost",
    "extra_passes",
    "extra_work",
    "hidden_work",
    "knows_before",
    "large_literals",
    "trained_again",
    "late_training",
    "long_pause",
    "implausible",
    "protocol_gap",
    "left_processes",
    "refused_calls",
    "suspect_text",
]
"""What keeps a valid candidate out of the corpus: the flags of :mod:`archloop.sandbox.host.flags`,
and the text that :mod:`archloop.code.hygiene` finds in its source."""


PROFILE = (
    "depth",
    "skips",
    "joins",
    "gates",
    "grouped_convs",
    "depthwise_convs",
    "attentions",
    "dilated_convs",
    "asymmetric_convs",
    "recurrents",
    "global_pools",
    "norms",
    "linear_share",
)
"""Measures of a computation graph's structure; see :func:`archloop.novelty.profile.profile`."""


def flag_name(flag: str) -> str:
    """The flag without its details, which follow a colon."""
    return flag.partition(":")[0]


LRSchedule = Literal["constant", "linear"]
"""What becomes of an optimiser's learning rate over the epoch: it stays, or falls to nothing."""


class Message(TypedDict):
    """One chat message, as ``datasets``, TRL and chat templates take it."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class TaskInfo:
    """What a network has to know about a task; read from the data, never assumed."""

    name: str
    title: str
    """As written in a prompt, for example ``CIFAR-10``."""
    shape: tuple[int, int, int]
    """(channels, height, width) of one image."""
    classes: int
    class_names: tuple[str, ...]
    n_train: int
    n_validation: int
    mean: tuple[float, ...]
    """Per channel, of the training images scaled to 0..1."""
    std: tuple[float, ...]
    digest: str
    """SHA-256 over images, labels and split: part of the protocol hash."""
    summary: str = ""
    """Which images are used, and which are not and why, on one line."""


@dataclass(frozen=True)
class TaskData:
    """The images of a task in memory; the validation labels never leave the parent process."""

    info: TaskInfo
    train_images: NDArray[np.uint8]
    """(N, C, H, W)."""
    train_labels: NDArray[np.int64]
    """(N,)."""
    validation_images: NDArray[np.uint8]
    """(M, C, H, W)."""
    validation_labels: NDArray[np.int64]
    """(M,)."""


@dataclass(frozen=True)
class Origin:
    """Where a request comes from; a strategy reads it back from the history of the run."""

    operator: str = "design"
    """What is asked for: ``design`` (from the prompt alone), ``feedback``, ``edit:NAME``,
    ``grammar``."""
    prompt: str | None = None
    """Digest of the prompt template, where there is one."""
    parents: tuple[str, ...] = ()
    """Ids of the candidates that the prompt shows."""
    structure: str | None = None
    """Structure class that the prompt asks for, where it asks for one."""
    max_params: int | None = None
    """Parameter budget that the prompt asks for, where it is not the task's."""


@dataclass(frozen=True)
class Request:
    """One completion that a strategy asks for; stored before anything is sampled."""

    cycle: int
    index: int
    """Position within the cycle, from 0."""
    seed: int
    """Decides the random draws of the completion alone."""
    task: str
    """Name of the task that the network is for."""
    messages: tuple[Message, ...]
    """The prompt; empty for a generator without an LLM."""
    temperature: float
    """Of sampling; 0 is greedy."""
    origin: Origin = Origin()


FinishReason = Literal["stop", "length", "content_filter", "other"]
"""``stop``: the end token was sampled; ``length``: cut at ``max_new_tokens``; the rest comes from
servers only: withheld by their filter, or ended for another reason (a tool call)."""


@dataclass(frozen=True)
class Completion:
    """One sampled answer of the LLM."""

    cycle: int
    index: int
    """Position within the cycle, from 0."""
    text: str
    n_tokens: int
    finish_reason: FinishReason


@dataclass(frozen=True)
class Span:
    """When one piece of a cycle's work was done, in Unix time (seconds)."""

    cycle: int
    stage: Literal["fine-tune", "generate", "evaluate"]
    index: int | None
    """The candidate; ``None`` for the work of a whole cycle."""
    begin: float
    """Of ``generate``: when the process that samples was started."""
    end: float


@dataclass(frozen=True)
class Verdict:
    """What the sandbox found out about one candidate."""

    outcome: Outcome
    error: str | None = None
    """What went wrong; ``None`` for a valid candidate. One short line, whoever says it, as part of
    it may be the network's words."""
    n_params: int | None = None
    first_epoch_accuracy: float | None = None
    train_seconds: float | None = None
    """Wall clock of the epoch, on the main process's clock."""
    work: float | None = None
    """Work of training as a multiple of the fixed loop's; see :mod:`archloop.sandbox.host.work`."""
    harness_accuracy: float | None = None
    """First-epoch accuracy under the harness's own loop, where both were asked for."""
    flags: tuple[str, ...] = ()
    """What a reader of the accuracy should know; see :mod:`archloop.sandbox.host.flags`."""
    output: str | None = None
    """The last of what the network printed."""
    graph: GraphSketch | None = None
    """Of a valid network that could be traced."""

    def __post_init__(self) -> None:
        if self.error is not None:
            object.__setattr__(self, "error", one_line(self.error))


@dataclass(frozen=True)
class GraphSketch:
    """What is kept of a traced computation graph: enough to compare it again without tracing."""

    hash: str
    """The same for networks that compute the same."""
    shingles: bytes
    """Sorted 64-bit little-endian hashes of small neighbourhoods."""
    outputs: tuple[float, ...] | None = None
    """Of the network under equal weights (:mod:`archloop.novelty.outputs`); ``None``: not known."""
    profile: dict[str, float] | None = None
    """Measures of the graph by name (:mod:`archloop.novelty.profile`), with ``macs`` where they
    can be counted; ``None``: not known."""
    motifs: tuple[str, ...] | None = None
    """Its operator motifs (:func:`archloop.novelty.graph.operator_motifs`), sorted; ``None``: not
    known."""


@dataclass(frozen=True)
class NoveltyScores:
    """Similarity of one candidate to the corpus (train) and to its cycle (gen), paper section 3.

    ``text`` are lexical tokens as in the paper, ``normalized`` tokens with names and numbers
    folded, ``graph`` the traced computation; ``None``: the candidate could not be traced.
    """

    nn_jaccard_train: float
    near_dup_text_train: bool
    nn_jaccard_gen: float
    near_dup_text_gen: bool
    nearest: str | None
    """Id of the most similar known network by text, if any was retrieved; ``seed:`` comes before a
    seed's."""
    nn_normalized_train: float = 0.0
    nn_normalized_gen: float = 0.0
    nn_graph_train: float | None = None
    nn_graph_gen: float | None = None
    near_dup_graph_train: bool | None = None
    near_dup_graph_gen: bool | None = None
    nearest_graph: str | None = None
    """Id of the most similar known network by graph."""
    rejected_by: tuple[str, ...] = ()
    """The configured kinds of novelty that call it a near-duplicate."""

    @property
    def is_near_duplicate(self) -> bool:
        """Whether the candidate is a near-duplicate of anything known, in any configured kind."""
        return bool(self.rejected_by)

    def for_row(self) -> dict[str, Any]:
        """The fields of a :class:`Candidate` that these are."""
        row = asdict(self)
        del row["rejected_by"]
        return row


@dataclass(frozen=True)
class Decision:
    """What a strategy decided about one valid candidate, and why."""

    id: str
    """Of the candidate, ``cNN-IIII``."""
    outcome: Outcome
    """``near_duplicate``, ``below_threshold``, ``quarantined`` or ``accepted``."""
    scores: NoveltyScores
    rejection_count: int
    """Near-duplicates rejected between the last accepted candidate and this one."""
    rejected_by: tuple[str, ...] = ()
    """The kinds of novelty, the configuration keys, the flags (``flag:NAME``) or the text
    (``text:WHAT``) that rejected it; empty: it is accepted."""

    @property
    def accepted(self) -> bool:
        """Whether the candidate enters the corpus."""
        return self.outcome is Outcome.ACCEPTED


@dataclass(frozen=True)
class Candidate:
    """One completion with everything known about it: a row of the store."""

    id: str
    """``cNN-IIII``: cycle and index."""
    cycle: int | None
    """``None``: of no run."""
    index: int
    outcome: Outcome
    error: str | None = None
    code: str | None = None
    code_sha256: str | None = None
    n_params: int | None = None
    first_epoch_accuracy: float | None = None
    train_seconds: float | None = None
    nn_jaccard_train: float | None = None
    near_dup_text_train: bool | None = None
    nn_jaccard_gen: float | None = None
    near_dup_text_gen: bool | None = None
    nn_normalized_train: float | None = None
    nn_normalized_gen: float | None = None
    nn_graph_train: float | None = None
    nn_graph_gen: float | None = None
    near_dup_graph_train: bool | None = None
    near_dup_graph_gen: bool | None = None
    rejection_count: int | None = None
    nearest: str | None = None
    nearest_graph: str | None = None
    isolation: str | None = None
    protocol: str | None = None
    training: str | None = None
    harness_accuracy: float | None = None
    flags: tuple[str, ...] = ()
    graph: GraphSketch | None = None
    measures: dict[str, float] = field(default_factory=dict)
    """Further measures by name (:data:`archloop.search.measures.MEASURES`), such as ``macs``."""

    def to_json(self) -> dict[str, Any]:
        """The public JSON row (without the source text)."""
        row = asdict(self)
        del row["code"], row["index"], row["graph"]
        row["graph_hash"] = None if self.graph is None else self.graph.hash
        row["outcome"], row["flags"] = self.outcome.value, list(self.flags)
        return row


@dataclass(frozen=True)
class CycleStats:
    """Counts of one cycle; proportions and intervals are computed when shown."""

    cycle: int
    n_gen: int
    n_valid: int
    n_at_floor: int
    """Valid candidates at or above ``selection.min_accuracy``, near-duplicates included."""
    n_near_duplicate: int
    """Valid candidates too similar to something known. They are rejected, so that they have the
    outcome of this name, unless ``novelty.enabled`` is false."""
    n_accepted: int
    accuracies: tuple[float, ...]
    """First-epoch accuracies of all valid candidates, in index order."""
    corpus_size: int
    """Prompt-code pairs this cycle's adapter was trained on or started from."""
    adapter: str
    corpus_sha256: str
    outcomes: dict[str, int]
    wall_seconds: float | None = None
    n_tokens: int | None = None
    threshold: float | None = None
    """The first-epoch accuracy that a candidate of the cycle had to reach."""
    temperature: float | None = None
    """Of sampling; ``None``: nothing was sampled from an LLM."""
    decided: dict[str, Any] = field(default_factory=dict)
    """What else was decided, as JSON values; ``adapter_rejected``: why a fine-tune's was."""


@dataclass(frozen=True)
class ChatPair:
    """A prompt-code pair of the corpus."""

    id: str
    messages: tuple[Message, Message, Message]
    meta: dict[str, Any]

    @property
    def code(self) -> str:
        """The assistant's answer, still inside its code fence."""
        return self.messages[2]["content"]

    @property
    def first_epoch_accuracy(self) -> float | None:
        """As a run or LEMUR measured it; ``None``: it was not."""
        for key in ("first_epoch_accuracy", "lemur_first_epoch_accuracy"):
            value = self.meta.get(key)
            if isinstance(value, int | float) and math.isfinite(value):
                return float(value)
        return None

    def to_json(self) -> dict[str, Any]:
        """A row of ``corpus/cycle_NN.jsonl``."""
        return {"id": self.id, "messages": list(self.messages), "meta": self.meta}


@dataclass(frozen=True)
class Lesson:
    """What a learner is taught: an answer to a prompt, with a reward or a worse one beside it."""

    id: str
    messages: tuple[Message, ...]
    """The prompt."""
    answer: str
    """What the assistant should say."""
    meta: dict[str, Any]
    reward: float | None = None
    """How good the answer is; ``None``: not measured."""
    rejected: str | None = None
    """An answer that this one is to be preferred over, where there is one."""

    @classmethod
    def of(cls, pair: ChatPair) -> Self:
        """A pair of the corpus as a lesson."""
        *prompt, answer = pair.messages
        return cls(pair.id, tuple(prompt), answer["content"], pair.meta)

    def to_json(self) -> dict[str, Any]:
        """A chat row; ``reward`` and ``rejected`` appear where there is one."""
        answer: Message = {"role": "assistant", "content": self.answer}
        row: dict[str, Any] = {"id": self.id, "messages": [*self.messages, answer]}
        row["meta"] = self.meta
        if self.reward is not None:
            row["reward"] = self.reward
        if self.rejected is not None:
            row["rejected"] = self.rejected
        return row
