"""How long work will still take, judged by what was measured: of items, candidates, and a run.

An estimate is ``None`` before there is anything to judge by. All times are seconds of one clock,
given by the caller, so that tests can simulate them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from archloop.progress import Progress

_RECENT = 8
"""Durations that an estimate rests on at least; older ones may be of a quicker or slower time."""
_RECENT_SHARE = 0.3
_RECENT_SECONDS = 10.0
"""What a rate of late rests on at least."""
_PRIOR_COMPLETIONS = 2
"""Completions that the mean length of an earlier cycle counts for."""


def left_of(expected: float, since: float) -> float:
    """Seconds left of work that was expected to take some, and began a while ago.

    What has overrun is expected to overrun by as much again, so that nothing is said to be nearly
    done for long.
    """
    return max(expected - since, since - expected, expected / 4)


@dataclass(frozen=True)
class Left:
    """Seconds that something will still take."""

    seconds: float
    is_whole: bool
    """Whether all of it has been measured; else it takes longer."""


class ItemPace:
    """Items of a known number, one after the other or a few at a time: steps, networks."""

    def __init__(self, now: float, done: int = 0) -> None:
        """Start the clock.

        Args:
            now: The time.
            done: Items that were done before.
        """
        self._marks = [(now, done)]

    def at(self, now: float, done: int) -> None:
        """So many are done now."""
        if done > self._marks[-1][1]:
            self._marks.append((now, done))

    def left(self, now: float, total: int) -> float | None:
        """Seconds until all are done."""
        (last, done), n = self._marks[-1], len(self._marks) - 1
        if done >= total:
            return 0.0
        if not n:
            return None
        first, before = self._marks[-1 - min(n, max(_RECENT, math.ceil(_RECENT_SHARE * n)))]
        measured = done - before
        # What is under way counts as an item too, as soon as it is slower than the others.
        each = max((last - first) / measured, (now - first) / (measured + 1))
        return (total - done - 1) * each + left_of(each, now - last)


class StageClock:
    """Adds elapsed time and time left to snapshots that have none of their own."""

    def __init__(self) -> None:
        self._stage, self._began = "", 0.0
        self._pace: ItemPace | None = None

    def timed(self, progress: Progress, now: float) -> Progress:
        """The snapshot with both times."""
        if progress.elapsed is not None:
            return progress
        if progress.stage != self._stage:
            self._stage, self._began, self._pace = progress.stage, now, None
        total, elapsed = progress.total, now - self._began
        if total is None:
            return replace(progress, elapsed=elapsed)
        if self._pace is None:
            # Where the items' number is new, what came before was the loading of something.
            self._pace = ItemPace(now, progress.done)
        self._pace.at(now, progress.done)
        return replace(progress, elapsed=elapsed, eta=self._pace.left(now, total))


@dataclass(frozen=True)
class Before:
    """What earlier cycles measured of candidates; ``None``: nothing."""

    tokens: float | None = None
    """Of a completion, in the mean."""
    seconds: float | None = None
    """Of an evaluation, in the mean."""


class CandidatesPace:
    """Candidates that are written and evaluated at the same time.

    The time left is that of the slower of the two. Writing is counted in tokens. Evaluation counts
    what goes to the sandbox: most faults are found at once, and say nothing of how long it takes.
    """

    def __init__(
        self, total: int, *, at_once: int, workers: int, most_tokens: int, before: Before = Before()
    ) -> None:
        """Prepare.

        Args:
            total: Completions of the cycle.
            at_once: Completions that are written at the same time.
            workers: Candidates that are evaluated at the same time; 0: they are written only.
            most_tokens: The longest completion.
            before: What earlier cycles measured.
        """
        self._total, self._workers, self._most = total, workers, most_tokens
        self._at_once, self._before = at_once, before
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._marks: list[tuple[float, int]] = []
        """Times, and what this process had written then; the first one: nothing."""
        self._tokens = self._open_tokens = self._own_tokens = 0
        self._written = self._own = self._longest = 0
        self._sent = self._evaluated = 0
        self._busy_since = 0.0

    def resume(self, written: int, tokens: int) -> None:
        """So many completions, of so many tokens together, are there from before."""
        self._written, self._tokens = written, tokens

    def writing(self, now: float, tokens: int) -> None:
        """So many more tokens of unfinished completions were sampled; 0: it begins."""
        self._mark(now)
        self._open_tokens += tokens
        self._own_tokens += tokens

    def wrote(self, now: float, tokens: int, *, is_new: bool = True) -> None:
        """A completion is finished.

        Args:
            now: The time.
            tokens: All of it, also those that were told of before.
            is_new: Whether it was not there before an interruption.
        """
        self._mark(now)
        told = min(tokens, self._open_tokens)
        self._open_tokens -= told
        self._own_tokens += tokens - told
        self._longest = max(self._longest, tokens)
        if is_new:
            self._own += 1
            self._written += 1
            self._tokens += tokens

    def sent(self, now: float) -> None:
        """A candidate went to the sandbox."""
        if self._sent == self._evaluated:
            self._busy_since = now
        self._sent += 1

    def evaluated(self, now: float, seconds: float) -> None:
        """An evaluation of so many seconds has ended."""
        self._recent.append(seconds)
        self._evaluated += 1
        self._busy_since = now

    @property
    def n_tokens(self) -> int:
        """Tokens sampled so far, in unfinished completions too."""
        return self._tokens + self._open_tokens

    def tokens_per_second(self, now: float) -> float | None:
        """Since the first token of this process."""
        if not self._own_tokens or now <= self._marks[0][0]:
            return None
        return self._own_tokens / (now - self._marks[0][0])

    def written_share(self) -> float:
        """The part of the tokens that are written, by the mean length so far; 0..1."""
        if self._written >= self._total:
            return 1.0
        length = self._length() or self._most
        return min(0.99, self.n_tokens / (self._total * max(length, 1.0)))

    def left(self, now: float, total: int | None = None) -> Left | None:
        """Until every candidate has a verdict; not whole before an evaluation was measured.

        Args:
            now: The time.
            total: Completions that are expected; ``None``: all.
        """
        unwritten = max(0, (self._total if total is None else total) - self._written)
        writing = self._writing_left(now, unwritten)
        evaluating = self._evaluating_left(now, unwritten)
        if writing is not None and unwritten and self._workers:
            writing += self._seconds() or 0.0  # the last one is evaluated when it is written
        known = [seconds for seconds in (writing, evaluating) if seconds is not None]
        return Left(max(known), len(known) == 2) if any(known) or len(known) == 2 else None

    def _length(self) -> float | None:
        """Mean tokens of a completion; those under way count, as the short ones end first."""
        prior = self._before.tokens
        weight = 0 if prior is None else _PRIOR_COMPLETIONS
        n = self._written + weight
        return min((self.n_tokens + weight * (prior or 0.0)) / n, self._most) if n else None

    def _guess(self, unwritten: int) -> float | None:
        """The length of the first completions, halfway between what they have and may have."""
        each = self._open_tokens / min(self._at_once, unwritten)
        return (each + self._most) / 2 if each else None

    def _writing_left(self, now: float, unwritten: int) -> float | None:
        if not unwritten:
            return 0.0
        length = self._length() or self._guess(unwritten)
        if not self._marks or length is None or now <= self._marks[0][0]:
            return None
        rate = self._rate(now, recent=unwritten <= self._at_once)
        if not rate:
            return None
        if unwritten <= self._at_once:
            # All are under way, in step: the one that becomes longest ends last.
            length = max(length, self._longest)
        # What is under way is not said to be nearly done before it is.
        more = max(unwritten * length - self._open_tokens, unwritten * length / 5)
        most = max(0, unwritten * self._most - self._open_tokens)
        return (min(more, most) + unwritten) / rate

    def _rate(self, now: float, *, recent: bool) -> float:
        """Units a second; those of late where the last ones are written, which run with few."""
        (begin, units), *later = self._marks
        done = self._own_tokens + self._own
        window = max(_RECENT_SECONDS, _RECENT_SHARE * (now - begin))
        if recent:
            for at, then in reversed(later):
                if now - at >= window and then < done:
                    begin, units = at, then
                    break
        return (done - units) / (now - begin)

    def _mark(self, now: float) -> None:
        """Keep what was done until now, a token for a completion: some engines sample none."""
        if not self._marks or now - self._marks[-1][0] >= 1.0:
            self._marks.append((now, self._own_tokens + self._own))

    def _seconds(self) -> float | None:
        """Mean seconds of an evaluation."""
        return fmean(self._recent) if self._recent else self._before.seconds

    def _evaluating_left(self, now: float, unwritten: int) -> float | None:
        if not self._workers:
            return 0.0
        # One more on both sides: of few, all may have had faults that are found at once.
        share = (self._sent + 1) / (self._written + 1) if self._written else 1.0
        waiting = self._sent - self._evaluated
        if not waiting and not unwritten:
            return 0.0
        each = self._seconds()
        if each is None:
            return None
        running = min(waiting, self._workers)
        queued = waiting - running + min(1.0, share) * unwritten
        ending = left_of(each, now - self._busy_since) if running else 0.0
        return queued * each / self._workers + ending


class RunPace:
    """The cycles of a run, judged by what their stages took before."""

    def __init__(
        self,
        cycles: int,
        stages: Sequence[str],
        last: Sequence[str],
        measured: Mapping[str, Sequence[float]],
    ) -> None:
        """Prepare.

        Args:
            cycles: As planned.
            stages: That each cycle has, but for what only the first one has or lacks.
            last: After the last cycle.
            measured: Seconds of each stage, in earlier cycles.
        """
        self._cycles, self._stages, self._last = cycles, stages, last
        self._measured = {stage: list(found) for stage, found in measured.items()}

    def took(self, stage: str, seconds: float) -> None:
        """A stage has ended."""
        self._measured.setdefault(stage, []).append(seconds)

    def left(
        self, cycle: int, seen: Sequence[str], elapsed: float, of_stage: Left | None
    ) -> Left | None:
        """Seconds until the run ends; ``None``: nothing to judge by.

        Args:
            cycle: The one under way; above the last one: the end of the run.
            seen: Its stages so far, the last of which is under way.
            elapsed: Of that stage.
            of_stage: Left of that stage.
        """
        now = seen[-1]
        coming = [*self._rest(seen), *self._last] if cycle <= self._cycles else []
        coming += list(self._stages) * (self._cycles - cycle)
        own = {now: [elapsed + of_stage.seconds]} if of_stage is not None else {}
        expected = {
            stage: fmean(found[-_RECENT:])
            for stage in {*coming, now}
            if (found := self._measured.get(stage, []) + own.get(stage, []))
        }
        if of_stage is None and now in expected:
            of_stage = Left(left_of(expected[now], elapsed), is_whole=True)
        known = [expected[stage] for stage in coming if stage in expected]
        if of_stage is None:
            return Left(sum(known), is_whole=False) if known else None
        whole = of_stage.is_whole and len(known) == len(coming)
        return Left(of_stage.seconds + sum(known), whole)

    def _rest(self, seen: Sequence[str]) -> list[str]:
        """The stages of a cycle that are after those it has had."""
        reached = [i for i, stage in enumerate(self._stages) if stage in seen]
        return list(self._stages[reached[-1] + 1 :] if reached else self._stages)
