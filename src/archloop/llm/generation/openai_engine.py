"""Generation by an OpenAI-compatible server: vLLM, llama.cpp, a hosted model.

``openai.concurrency`` requests are under way at a time, each for one completion with its own seed;
an answer is yielded when it is there. Retries with growing pauses, ``Retry-After`` and timeouts are
the client library's. Servers treat seeds as best effort: many sample the same text again only
from the same batch, and some mix up the seeds of requests under way together; then
``openai.concurrency = 1`` repeats a run.

The key is read from the environment where it is needed, and is in no message.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from archloop.errors import ArchloopError, CapReachedError, UsageError
from archloop.llm.generation.generator import EngineSetup
from archloop.llm.spending import Budget, Spent
from archloop.text import encodable
from archloop.types import Completion, FinishReason, Request

_REASONS: dict[str | None, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
}
_NO_KEY = "none"
"""Sent where no key is configured: the library insists on one, and must not find another."""
_CONNECT_SECONDS = 10.0
_MAYBE_BILLED = frozenset({408, 504, 524})
"""Timeouts, of a gateway for example: the answer may be written, and billed, all the same."""
_LONGEST_REASON = 300
"""Characters of a server's message that are repeated."""


@dataclass
class _Attempt:
    """The last try of a request."""

    unanswered: bool = False


class _NoRetryLeftError(openai.OpenAIError):
    """A retry would pass a cap."""


class OpenAIGenerator:
    """The ``openai`` engine."""

    def __init__(self, setup: EngineSetup) -> None:
        """Prepare the client; nothing is sent yet.

        Raises:
            UsageError: The variable that should hold the key is not set.
        """
        server = setup.config.openai
        self.traits = setup.traits
        self._decoding, self._server = setup.config.generation, server
        self._model = setup.config.llm.model
        self._budget = setup.budget or Budget(server, Spent())
        self._key = server.api_key()
        self._attempt: ContextVar[_Attempt] = ContextVar("attempt")
        self._turn, self._next_start = asyncio.Lock(), 0.0
        self._runner = asyncio.Runner()
        self._client = openai.AsyncOpenAI(
            api_key=self._key or _NO_KEY,
            base_url=server.base_url,
            max_retries=server.retries,
            timeout=openai.Timeout(
                server.timeout_seconds,
                connect=min(server.timeout_seconds, _CONNECT_SECONDS),
            ),
            http_client=openai.DefaultAsyncHttpxClient(
                event_hooks={"request": [self._before], "response": [self._after]}
            ),
        )

    def use(self, adapter: Path | None) -> None:
        """The LLM is on a server, where no adapter of this run is."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Sample; see :class:`~archloop.llm.generation.generator.Generator`.

        After a failure, or when a cap is reached, nothing more is sent; what is under way is waited
        for and yielded before the error is raised.

        Raises:
            CapReachedError: A cap on tokens or money does not admit another request.
            UsageError: The server refuses the requests.
            ArchloopError: It does not answer, or fails, after all retries.
        """
        self._budget.expect([r.messages for r in requests], self._decoding.max_new_tokens)
        waiting, running = deque(requests), set[asyncio.Task[Completion]]()
        failure: ArchloopError | None = None
        try:
            while True:
                while waiting and failure is None and self._has_room(len(running)):
                    running.add(self._start(waiting.popleft()))
                if not running:
                    break
                for task in self._runner.run(_finished(running)):
                    running.discard(task)
                    try:
                        answer = task.result()
                    except ArchloopError as error:
                        failure = failure or error
                    else:
                        yield answer
        finally:
            self._runner.run(_cancelled(running))
        if failure is not None:
            raise failure
        if waiting:
            raise CapReachedError(self._budget.stop_line())

    def _has_room(self, running: int) -> bool:
        return running < self._server.concurrency and self._budget.admits()

    def _start(self, request: Request) -> asyncio.Task[Completion]:
        self._budget.open()
        return self._runner.get_loop().create_task(self._answer(request))

    async def _answer(self, request: Request) -> Completion:
        attempt = _Attempt()
        self._attempt.set(attempt)
        try:
            answer = await self._ask(request)
            attempt.unanswered = False
            return self._text(request, answer)
        except _NoRetryLeftError:
            raise CapReachedError(self._budget.stop_line()) from None
        except openai.BadRequestError as error:
            if error.code != "content_filter":  # how some hosts say that they withhold an answer
                raise self._fault(error) from None
            return Completion(request.cycle, request.index, "", 0, "content_filter")
        except (openai.OpenAIError, ValueError) as error:  # ValueError: a body that is no JSON
            raise self._fault(error) from None
        finally:
            if attempt.unanswered:
                self._budget.charge_unanswered()
            self._budget.close()

    async def _ask(self, request: Request) -> ChatCompletion:
        config, server = self._decoding, self._server
        body: dict[str, Any] = {server.limit_field: config.max_new_tokens}
        if request.temperature > 0:
            body["top_p"] = config.top_p
            if config.top_k:
                body["top_k"] = config.top_k  # not in the original interface, but widely known
        chat: list[Any] = list(request.messages)
        return await self._client.chat.completions.create(
            model=self._model,
            messages=chat,
            seed=request.seed,
            temperature=request.temperature,
            extra_body=body | server.extra_body,
        )

    async def _before(self, request: Any) -> None:
        """Ahead of each try: charge the one before if it may be billed, and keep the distance."""
        attempt = self._attempt.get()
        if attempt.unanswered:
            self._budget.charge_unanswered()
            attempt.unanswered = False
            self._budget.close()
            admitted = self._budget.admits()
            self._budget.open()
            if not admitted:
                raise _NoRetryLeftError
        if self._server.requests_per_minute is not None:
            async with self._turn:  # one waits at a time, so that none can catch up
                await asyncio.sleep(self._next_start - time.monotonic())
                self._next_start = time.monotonic() + 60.0 / self._server.requests_per_minute
        request.extensions["trace"] = self._trace

    async def _trace(self, event: str, _info: object) -> None:
        """A try may be billed from its first byte on, not while there is no connection."""
        if event.endswith(".send_request_headers.started"):
            self._attempt.get().unanswered = True

    async def _after(self, response: Any) -> None:
        """Errors and redirections are not billed, unless somebody between has lost patience."""
        if not response.is_success and response.status_code not in _MAYBE_BILLED:
            self._attempt.get().unanswered = False

    def _text(self, request: Request, answer: ChatCompletion) -> Completion:
        """The completion in an answer; one without text is an empty completion."""
        if not isinstance(answer, ChatCompletion):
            raise UsageError(
                f"openai.base_url: {self._server.base_url} answers, but not with a chat completion"
            )
        used = answer.usage
        if used is None or used.prompt_tokens is None or used.completion_tokens is None:
            self._budget.charge_unanswered()
            raise UsageError(
                f"{self._server.base_url} does not say how many tokens an answer has (`usage`), "
                "which archloop counts by"
            )
        self._budget.charge(used.prompt_tokens, used.completion_tokens)
        if not answer.choices:
            return Completion(request.cycle, request.index, "", used.completion_tokens, "other")
        choice = answer.choices[0]
        message: Any = choice.message
        text = (message and (message.content or message.refusal)) or ""
        text = encodable(text)  # JSON may hold half a character (\ud83d)
        reason = _REASONS.get(choice.finish_reason, "other")
        return Completion(request.cycle, request.index, text, used.completion_tokens, reason)

    def _fault(self, error: Exception) -> ArchloopError:
        """One line for what the client library raised, or made of a body that is no JSON."""
        url, server = self._server.base_url, self._server
        if isinstance(error, openai.APITimeoutError):
            return ArchloopError(
                f"{url}: no answer within {server.timeout_seconds:g} s (openai.timeout_seconds), "
                f"{server.retries + 1} tries"
            )
        if isinstance(error, openai.APIConnectionError):
            return ArchloopError(f"{url} cannot be reached: {self._said(error.__cause__ or error)}")
        if not isinstance(error, openai.APIStatusError):
            return ArchloopError(f"{url}: {self._said(error)}")
        status, said = error.status_code, self._said(error)
        if status in (401, 403):
            key = f"the key in ${server.api_key_env}" if self._key else "requests without a key"
            return UsageError(f"{url} refuses {key} ({status}); see openai.api_key_env")
        if status == 404:
            return UsageError(
                f"{url} knows no model {self._model!r} (llm.model), or is not the address of the "
                f"API (openai.base_url): {said}"
            )
        if status < 500 and status not in (408, 409, 429):
            return UsageError(f"{url} refuses the request: {said}")
        busy = "; openai.requests_per_minute and openai.concurrency ask for less"
        return ArchloopError(
            f"{url}: {said}, after {server.retries + 1} tries{busy if status == 429 else ''}"
        )

    def _said(self, error: BaseException) -> str:
        """The first words of an error, on one line and without the key."""
        said = _answered(error) if isinstance(error, openai.APIStatusError) else str(error)
        text = " ".join(said.split()) or type(error).__name__
        if self._key:
            text = text.replace(self._key, "***")
        return text[:_LONGEST_REASON]

    def close(self) -> None:
        """Close the connections."""
        self._runner.run(self._client.close())
        self._runner.close()


def _answered(error: openai.APIStatusError) -> str:
    """Status and message of an error answer, which differ in form from server to server."""
    text: Any = error.response.text
    with suppress(ValueError):
        text = json.loads(text)
    for key in ("error", "detail", "message"):
        if isinstance(text, dict) and text.get(key):
            text = text[key]
    return f"{error.status_code} {text}"


async def _finished(running: set[asyncio.Task[Completion]]) -> list[asyncio.Task[Completion]]:
    """Wait for the first; the tasks that are done."""
    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    return list(done)


async def _cancelled(running: set[asyncio.Task[Completion]]) -> None:
    for task in running:
        task.cancel()
    for task in running:
        with suppress(asyncio.CancelledError, ArchloopError):
            await task
