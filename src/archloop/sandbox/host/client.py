"""The sandbox as the main process sees it: networks in, verdicts out, from many threads."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from archloop.config import ProtocolConfig, SandboxConfig
from archloop.config.derived import derive_seed
from archloop.errors import SandboxError
from archloop.machine.hardware import resolved_precision
from archloop.novelty.graph import Graph
from archloop.sandbox import wire
from archloop.sandbox.candidate.phase import error_line
from archloop.sandbox.confine.confine import require
from archloop.sandbox.feed.augmentation import augment
from archloop.sandbox.feed.ring import ring_bytes
from archloop.sandbox.host import flags
from archloop.sandbox.host.conversation import (
    BUILDING,
    UNFORESEEN,
    Conversation,
    FailedError,
    Sketch,
    sketch,
    trace,
)
from archloop.sandbox.host.draws import Plan, draw_plan, new_key, relabelling
from archloop.sandbox.host.epoch import FastWayError, Feeding, Trained, train
from archloop.sandbox.host.measure import (
    Checked,
    Predicted,
    check,
    largest_batch,
    predict,
    untrained,
)
from archloop.sandbox.host.server import ForkServer, ServerLostError, empty_memory
from archloop.sandbox.host.work import MOST_SLOWNESS, MOST_WORK, Reference, extra_work, slowness
from archloop.sandbox.job import CandidateJob, FeedJob, Role
from archloop.types import Outcome, TaskData, Training, Verdict

MAX_SOURCE = 64 * 1024
"""Characters of the longest source that is run: escaped, it still fits into one frame."""
_GRACE = 2.0
"""Seconds a child that closed its channel may take to end by itself."""
_OUTPUT = 4000
"""Characters of output in a verdict."""

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Ran(Generic[T]):
    """What a process gave, and what is known of it besides."""

    value: T
    output: str
    left_processes: int
    cpu_seconds: float | None
    """Processor time of the process, from its fork to its end."""
    refused: tuple[str, ...]
    """System calls that were refused to it."""


class Sandbox:
    """A warm fork server and what belongs to a task; every method may be called from many threads.

    Args:
        config: Limits and isolation level.
        task: The images; without them only :meth:`probe` can be used.
        protocol: How to train; required with ``task``.
        key: The secret from which the order of images and the like are drawn, 16 to 64 bytes;
            ``None``: a new one.

    Raises:
        IsolationError: The isolation level is not available on this machine.
    """

    def __init__(
        self,
        config: SandboxConfig,
        *,
        task: TaskData | None = None,
        protocol: ProtocolConfig | None = None,
        key: bytes | None = None,
    ) -> None:
        require(config.isolation)
        self._config, self._task, self._key = config, task, key or new_key()
        self._protocol = protocol or ProtocolConfig()
        self._lock = threading.Lock()
        self._closed = False
        self._server = ForkServer(config, task)
        self._validation = None if task is None else _validation(task, self._protocol)

    @property
    def isolation(self) -> str:
        """The level every candidate runs at."""
        return self._config.isolation

    @property
    def candidates_folder(self) -> Path:
        """Where candidates have their private folders while they run."""
        return self._server.candidates

    @property
    def server_pid(self) -> int:
        """Process id of the fork server now in use."""
        return self._server.pid

    def probe(
        self,
        code: str,
        *,
        shape: tuple[int, int, int],
        classes: int,
        max_params: int | None = None,
        meta: bool = False,
    ) -> Verdict:
        """Import, instantiate, count parameters, dummy forward pass.

        Args:
            code: The network's source.
            shape: (channels, height, width) of an image.
            classes: Number of logits.
            max_params: Parameter budget.
            meta: On torch's meta device, which allocates nothing.
        """
        job = self._job("probe", code, shape, classes, max_params=max_params, meta=meta)

        def talk(conversation: Conversation) -> Verdict:
            conversation.build()
            conversation.expect("done", self._config.build_seconds, BUILDING)
            return conversation.verdict(Outcome.VALID, None)

        try:
            ran = self._hold(job, talk)
        except FailedError as failed:
            return failed.verdict
        return replace(ran.value, output=ran.output, flags=_seen(ran))

    def trace(
        self, code: str, *, shape: tuple[int, int, int], classes: int
    ) -> tuple[Verdict, Graph | None]:
        """The computation graph of a network; on the meta device where it runs there.

        Args:
            code: The network's source.
            shape: (channels, height, width) of an image.
            classes: Number of logits.

        Returns:
            The verdict on building it, as of :meth:`probe`, and the graph. Without a graph, the
            verdict's ``error`` says why; a valid network may have none, if its forward pass is too
            long or fails in evaluation mode.
        """
        job = self._job("trace", code, shape, classes, meta=True)
        try:
            ran = self._hold(job, trace)
        except FailedError as failed:
            return failed.verdict, None
        verdict, graph = ran.value
        return replace(verdict, output=ran.output, flags=_seen(ran)), graph

    def sketch(
        self, code: str, *, shape: tuple[int, int, int], classes: int
    ) -> tuple[Verdict, Sketch | None]:
        """What is kept of a network's graph, and what it costs.

        Both are worked out in the candidate's process, under its deadline and limits, and are as
        trustworthy as the graph itself; see :meth:`trace` for the arguments and the verdict.
        """
        job = self._job("sketch", code, shape, classes, meta=True)
        try:
            ran = self._hold(job, sketch)
        except FailedError as failed:
            return failed.verdict, None
        verdict, found = ran.value
        return replace(verdict, output=ran.output, flags=_seen(ran)), found

    def evaluate(self, code: str, *, seed: int, max_params: int | None = None) -> Verdict:
        """Probe, then one epoch under the protocol, then top-1 on the validation images.

        Training and measuring happen in processes of their own; see
        :mod:`archloop.sandbox.host.measure`. An unforeseen fault is this network's outcome and a
        warning, so that a run continues with the others.
        """
        try:
            return self._evaluate_by_protocol(code, seed, max_params)
        except UNFORESEEN as fault:
            logger.warning("a network could not be judged", exc_info=True)
            return Verdict(Outcome.PROTOCOL_VIOLATION, f"could not be judged: {error_line(fault)}")

    def _evaluate_by_protocol(self, code: str, seed: int, max_params: int | None) -> Verdict:
        if self._protocol.training != "both":
            return self._evaluate(code, self._protocol.training, seed, max_params)
        own = self._evaluate(code, "contract", seed, max_params)
        if own.first_epoch_accuracy is None:
            return own
        fixed = self._evaluate(code, "harness", seed, max_params)
        if fixed.first_epoch_accuracy is None:
            return replace(own, flags=(*own.flags, flags.PROTOCOL_GAP))
        gap = abs(own.first_epoch_accuracy - fixed.first_epoch_accuracy) > flags.MOST_GAP
        return replace(
            own,
            harness_accuracy=fixed.first_epoch_accuracy,
            flags=(*own.flags, flags.PROTOCOL_GAP) if gap else own.flags,
        )

    def _evaluate(
        self, code: str, training: Training, seed: int, max_params: int | None
    ) -> Verdict:
        if self._task is None or self._validation is None:
            raise SandboxError("this sandbox has no task to train on")
        info, (images, labels) = self._task.info, self._validation
        shape = self._protocol.input_shape(info.shape)
        job = replace(
            self._job("train", code, shape, info.classes, seed=seed, max_params=max_params),
            image_shape=info.shape,
            images=len(self._task.train_labels),
            training=training,
        )
        rebuilt = replace(job, role="predict")
        relabel = relabelling(code, seed, info.classes)
        plan = draw_plan(self._key, code, seed, images.shape, largest_batch(shape))
        try:
            trained, found = self._train(job, relabel)
            first = self._hold(rebuilt, lambda talk: predict(talk, trained.value, images, plan))
            predicted = first.value
            second = self._hold(
                rebuilt, lambda talk: check(talk, trained.value, images, plan, predicted.logits)
            )
            known = self._knows(rebuilt, second.value.untrained, labels[plan.first], relabel, plan)
        except FailedError as failed:
            return failed.verdict
        right = np.array(relabel)[labels]
        accuracy = round(float((predicted.logits.argmax(axis=1) == right).mean()), 6)
        work = self._work(trained, predicted, second.value)
        found += [*trained.value.flags, *predicted.flags, *second.value.flags]
        found += flags.of_accuracy(info.name, accuracy, steps=trained.value.steps)
        found += flags.of_source(code)
        if known:
            found.append(flags.KNOWS_BEFORE)
        if work is not None and work > MOST_WORK:
            found.append(flags.EXTRA_WORK)
        found += _seen(trained, first, second)
        traced, sketched = self.sketch(code, shape=shape, classes=info.classes)
        if sketched is None:
            logger.info("a valid network without a graph: %s", traced.error)
        elif _is_too_slow(sketched, predicted, plan):
            found.append(flags.HIDDEN_WORK)
        return Verdict(
            Outcome.VALID,
            n_params=predicted.n_params,
            first_epoch_accuracy=accuracy,
            train_seconds=trained.value.seconds,
            work=None if work is None else round(work, 3),
            flags=flags.merged(found, traced.flags),
            output=trained.output,
            graph=None if sketched is None else sketched.graph,
        )

    def _train(
        self, job: CandidateJob, relabel: tuple[int, ...]
    ) -> tuple[_Ran[Trained], list[str]]:
        """Train in the fast layout and precision, or in the plain one if that fails."""

        def talk(conversation: Conversation) -> Trained:
            with self._feeding(conversation.server, conversation.job, relabel) as feeding:
                return train(conversation, feeding)

        try:
            return self._hold(job, talk), []
        except FastWayError:
            plain = replace(job, channels_last=False, bf16=False)
            return self._hold(plain, talk), [flags.TRAINED_AGAIN]

    def _knows(
        self,
        job: CandidateJob,
        logits: NDArray[np.float32] | None,
        labels: NDArray[np.int64],
        relabel: tuple[int, ...],
        plan: Plan,
    ) -> bool:
        """Whether the network is better than chance before training, from whatever beginning."""
        assert self._validation is not None
        images = self._validation[0][plan.first]
        for again in range(1, flags.BEGINNINGS + 1):
            if not flags.above_chance(logits, labels, relabel):
                return False
            if again < flags.BEGINNINGS:
                # By chance an untrained network may be right; then it is not with other weights.
                other = replace(job, seed=derive_seed(job.seed, "beginning", again))
                logits = self._hold(other, lambda talk: untrained(talk, images)).value
        return True

    def _work(self, trained: _Ran[Trained], predicted: Predicted, checked: Checked) -> float | None:
        """The work of training as a multiple of the reference's; ``None``: it is not known."""
        value = trained.value
        if value.on_gpu:
            spent = value.seconds
        elif trained.cpu_seconds is None or value.cpu_before is None:
            return None
        else:
            spent = trained.cpu_seconds - value.cpu_before
        if predicted.cpu_seconds is None or checked.build is None:
            return None
        return extra_work(
            spent,
            Reference(checked.build, predicted.cpu_seconds / len(predicted.logits), checked.steps),
            batches=value.batches,
            batch_size=self._protocol.batch_size,
            steps_per_batch=self._protocol.steps_per_batch,
        )

    @contextmanager
    def _feeding(
        self, server: ForkServer, job: CandidateJob, relabel: tuple[int, ...]
    ) -> Iterator[Feeding]:
        """A process that gives out one epoch, for one candidate."""
        channels, height, width = job.shape
        shape = (job.batch_size, channels, height, width)
        ring = empty_memory(ring_bytes(shape))
        ours, theirs = socket.socketpair()
        feed = FeedJob(
            shape=shape,
            batch_size=job.batch_size,
            augmentation=job.augmentation,
            mean=job.mean,
            std=job.std,
            resize=job.resize,
            seed=job.seed,
            relabel=relabel,
        )
        with ours, theirs:
            feeder = server.fork(feed=True)
            try:
                yield Feeding(feeder, feed, ring, ours.fileno(), theirs.fileno())
            finally:
                os.close(ring)
                server.reap(feeder)

    def _job(
        self,
        role: Role,
        code: str,
        shape: tuple[int, ...],
        classes: int,
        *,
        seed: int = 0,
        max_params: int | None = None,
        meta: bool = False,
    ) -> CandidateJob:
        protocol = self._protocol
        info = None if self._task is None else self._task.info
        return CandidateJob(
            role=role,
            code=code,
            seed=seed,
            max_params=max_params,
            shape=shape,
            classes=classes,
            meta=meta,
            threads=self._config.threads,
            batch_size=protocol.batch_size,
            augmentation=protocol.augmentation,
            resize=protocol.resize,
            mean=() if info is None else info.mean,
            std=() if info is None else info.std,
            steps_per_batch=protocol.steps_per_batch,
            lr_schedule=protocol.lr_schedule,
            channels_last=protocol.channels_last,
            bf16=resolved_precision(protocol.precision) == "bf16",
            prm={
                "lr": protocol.lr,
                "momentum": protocol.momentum,
                "dropout": protocol.dropout,
                "batch": protocol.batch_size,
                "epoch": 1,
                "transform": protocol.augmentation,
            },
        )

    def _hold(self, job: CandidateJob, talk: Callable[[Conversation], T]) -> _Ran[T]:
        """Run a job; if the fork server is lost under it, again, with a server of its own.

        With several candidates under one server the culprit is unknown; alone on a dedicated server
        it is known.

        Raises:
            FailedError: The candidate failed, with this verdict.
        """
        if len(job.code) > MAX_SOURCE:
            text = f"source is longer than {MAX_SOURCE} characters"
            raise FailedError(Verdict(Outcome.IMPORT_ERROR, text))
        for _ in range(2):
            server = self._server
            try:
                return self._run(server, job, talk)
            except ServerLostError as error:
                self._replace(server)
                if error.while_running:
                    break
        own = ForkServer(self._config, self._task)
        try:
            return self._run(own, job, talk)
        except ServerLostError as error:
            if not error.while_running:
                raise SandboxError(f"a new fork server was lost too: {error}") from None
            text = "the fork server was ended by this network"
            raise FailedError(Verdict(Outcome.SANDBOX_VIOLATION, text)) from None
        finally:
            own.close()

    def _replace(self, lost: ForkServer) -> None:
        with self._lock:
            if self._closed:
                raise SandboxError("the sandbox was closed while a candidate ran")
            if self._server is lost:
                lost.close()
                self._server = ForkServer(self._config, self._task)

    def _run(
        self, server: ForkServer, job: CandidateJob, talk: Callable[[Conversation], T]
    ) -> _Ran[T]:
        child = server.fork(meta=job.meta)
        conversation = Conversation(self._config, server, child, job)
        try:
            value = talk(conversation)
        except wire.WireError as error:
            logger.debug("a candidate broke off: %s", error)
            ended = server.reap(child, grace=_GRACE)
            failed, left_processes = FailedError(conversation.died(ended)), ended.left_processes
        except FailedError as error:
            failed, left_processes = error, server.reap(child).left_processes
        except BaseException:
            server.reap(child)
            raise
        else:
            ended = server.reap(child)
            output = child.output.text()[-_OUTPUT:]
            return _Ran(
                value, output, ended.left_processes, ended.cpu_seconds, child.refusals.names
            )
        failed.verdict = replace(
            failed.verdict,
            output=child.output.text()[-_OUTPUT:],
            flags=flags.of_process(left_processes, child.refusals.names),
        )
        try:
            raise failed from None
        finally:
            # Else it and this frame would keep each other, and the sandbox with its images.
            del failed

    def close(self) -> None:
        """End the fork server and everything under it; candidates still running are lost."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _is_too_slow(sketched: Sketch, predicted: Predicted, plan: Plan) -> bool:
    if predicted.cpu_seconds is None:
        return False
    images, batches = len(predicted.logits), len(plan.batches)
    found = slowness(predicted.cpu_seconds, sketched.cost, images=images, batches=batches)
    return found is not None and found > MOST_SLOWNESS


def _seen(*processes: _Ran[Any]) -> tuple[str, ...]:
    """Flags of what was seen of a candidate's processes from outside."""
    return flags.of_process(
        sum(ran.left_processes for ran in processes),
        [name for ran in processes for name in ran.refused],
    )


def _validation(
    task: TaskData, protocol: ProtocolConfig
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels; augmented with a fixed seed, if at all, as that changes an accuracy."""
    images = task.validation_images
    if protocol.augment_validation:
        rng = np.random.default_rng(0)
        order = rng.permutation(len(images))
        images = np.empty_like(images)
        images[order] = augment(task.validation_images[order], protocol.augmentation, rng)
    return images, task.validation_labels
