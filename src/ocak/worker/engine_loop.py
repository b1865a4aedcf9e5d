"""The thread that drives the engine: takes requests in, steps, and publishes what came of each step at once.

One hand-over to the socket's loop per step, whatever the number of requests. Everything that an answer needs
(its sequence, its text) belongs to this thread.
Invariant: every answer that was started gets one `Finished`, `Embedded` or `Failed`, unless it was cancelled or
the loop was stopped.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ocak.core.errors import GenerationFailed, to_wire
from ocak.core.events import Delta, Finished, FinishReason, PromptScored, Started, TokenLogprob
from ocak.core.status import EngineStats
from ocak.engine.embedder import EmbeddedOutput, EmbedderOutput
from ocak.engine.outputs import Admitted, Broken, Output, Sampled, Scored
from ocak.engine.prefix_cache import Keep
from ocak.engine.runner import Logprobs
from ocak.engine.sequence import Sequence
from ocak.worker.embedding import EmbeddingWork
from ocak.worker.formats.answer import AnswerReader, Reading
from ocak.worker.logprobs import HeldLogprobs
from ocak.worker.messages import Events, Failed, RequestEvent
from ocak.worker.prompt_logprobs import PromptReport
from ocak.worker.stopwatch import Stopwatch
from ocak.worker.text import AnswerText

STATS_EVERY_S = 0.05  # while answers go on; when one begins or ends they are told at once
QUIET_S = 0.5  # without a command, before what can wait is done: who asks again at once is not held up
CHECK_EVERY_S = 60.0  # the invariants, when idle: milliseconds, tens of them with very many cells


class Stepper(Protocol):
    """An `Engine` or an `Embedder`."""

    @property
    def has_work(self) -> bool: ...

    def submit(self, sequence: Sequence) -> None: ...

    def finish(self, sequence: Sequence, keep: Keep = ..., num_surplus: int = ...) -> None: ...

    def abort(self, sequence_id: int) -> None: ...

    def step(self) -> Iterable[Output | EmbedderOutput]: ...

    def tidy(self) -> bool: ...

    def stats(self, busy_s: float = ...) -> EngineStats: ...

    def check_integrity(self) -> None: ...


@dataclass(slots=True)
class Answer:
    """A sequence, whose id is the front's handle, and the text it becomes."""

    sequence: Sequence
    text: AnswerText
    echo: str = ""  # text that goes before the answer
    logprobs: HeldLogprobs | None = None  # if asked for
    prompt: PromptReport | None = None  # if its log-probabilities are asked for
    embedding: EmbeddingWork | None = None  # what makes its vector fit to be sent, instead of text
    dimensions: int | None = None  # of the vector; None: all
    reader: AnswerReader | None = None  # of calls and reasoning; None: all is text
    marks: Mapping[int, bytes] = field(default_factory=dict)  # tokens that the reader must see
    num_unsent: int = field(default=0, init=False)  # tokens whose text has not gone out yet


Command = Answer | int | Callable[[], None] | None  # an int cancels an answer, None stops


class EngineLoop:
    def __init__(
        self,
        engine: Stepper,
        piece: Callable[[int], bytes],
        publish: Callable[[Events], None],
        watch: Stopwatch,
    ) -> None:
        self._engine = engine
        self._piece = piece
        self._publish = publish
        self._watch = watch
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._is_stopped = False
        self._answers: dict[int, Answer] = {}
        self._busy_s = 0.0
        self._told_stats_at = 0.0
        self._checked_at = 0.0

    @property
    def num_answers(self) -> int:
        return len(self._answers)

    def start_answer(self, answer: Answer) -> None:
        """Hand over a new answer; from any thread."""
        self._commands.put(answer)

    def cancel(self, handle: int) -> None:
        """End an answer without a word more; from any thread. An unknown handle is one that has just ended."""
        self._commands.put(handle)
        self._engine.abort(handle)

    def call(self, work: Callable[[], None]) -> None:
        """Have something done between two steps; from any thread. It must not raise."""
        self._commands.put(work)

    def stop(self) -> None:
        """Have `run` return after the step that runs now; from any thread."""
        self._commands.put(None)

    def run(self) -> None:
        """Serve until `stop`; what runs then is dropped without a word."""
        while not self._is_stopped:
            self._wait_for_work()
            started = time.perf_counter()
            num_answers = len(self._answers)
            if self._take_commands():
                self._tell_front([], with_stats=True)
            if self._engine.has_work and (events := self._step()):
                self._tell_front(events, with_stats=len(self._answers) != num_answers)
            self._busy_s += time.perf_counter() - started
        for handle in list(self._answers):
            self._forget(handle)

    def _wait_for_work(self) -> None:
        """Sleep until a command comes, and apply it: the order of commands is kept."""
        if self._engine.has_work:
            return
        if time.monotonic() - self._checked_at > CHECK_EVERY_S:
            self._engine.check_integrity()
            self._checked_at = time.monotonic()
        self._apply(self._next_command())

    def _next_command(self) -> Command:
        """Wait for a command; once none has come for a while, do what can wait meanwhile."""
        try:
            return self._commands.get(timeout=QUIET_S)
        except queue.Empty:
            pass
        while self._commands.empty() and self._engine.tidy():
            self._tell_front([], with_stats=True)
        return self._commands.get()

    def _take_commands(self) -> bool:
        """Apply what has come in; return whether a slot or a place in the queue became free."""
        has_freed = False
        while not self._commands.empty():
            has_freed |= self._apply(self._commands.get())
        return has_freed

    def _apply(self, command: Command) -> bool:
        if command is None:
            self._is_stopped = True
            return False
        if isinstance(command, int):
            return self._forget(command)
        if not isinstance(command, Answer):
            command()
            return True
        self._answers[command.sequence.id] = command
        self._engine.submit(command.sequence)
        return False

    def _tell_front(self, events: list[tuple[int, RequestEvent]], *, with_stats: bool) -> None:
        now = time.monotonic()
        if not with_stats and now - self._told_stats_at < STATS_EVERY_S:
            self._publish(Events(events))
            return
        self._told_stats_at = now
        self._publish(Events(events, self._engine.stats(self._busy_s)))

    def _forget(self, handle: int) -> bool:
        answer = self._answers.pop(handle, None)
        if answer is None:
            return False  # it has just ended by itself
        self._engine.finish(answer.sequence, "slot")
        return True

    def _step(self) -> list[tuple[int, RequestEvent]]:
        with self._watch.running():
            outputs = self._engine.step()
        events: list[tuple[int, RequestEvent]] = []
        for output in outputs:
            answer = self._answers.get(output.sequence.id)
            if answer is None:
                continue  # a stop string came before tokens of the same step
            events += [(output.sequence.id, event) for event in self._tell(answer, output)]
        return events

    def _tell(self, answer: Answer, output: Output | EmbedderOutput) -> list[RequestEvent]:
        match output:
            case Admitted():
                started = Started(answer.sequence.num_prompt, answer.sequence.num_prompt_dropped)
                return [started, *self._tell_prompt(answer, ())]
            case Scored(_, logprobs):
                return self._tell_prompt(answer, logprobs)
            case Broken(_, message):
                del self._answers[answer.sequence.id]
                return [Failed(to_wire(GenerationFailed(message)))]
            case Sampled():
                return self._tell_token(answer, output)
            case EmbeddedOutput(sequence, vector):
                del self._answers[sequence.id]
                assert answer.embedding is not None
                made = answer.embedding.finish(sequence, vector, answer.dimensions)
                return [made or Failed(to_wire(GenerationFailed("the model made numbers that are none")))]

    def _tell_prompt(self, answer: Answer, logprobs: tuple[Logprobs, ...]) -> list[RequestEvent]:
        """Tell what is known of the prompt by now; its text is repeated when that is all."""
        echo: list[RequestEvent] = [Delta(answer.echo, 0)] if answer.echo else []
        if answer.prompt is None:
            return echo
        scored = PromptScored(answer.prompt.tell(logprobs))
        return [scored, *echo] if answer.prompt.is_complete else [scored]

    def _tell_token(self, answer: Answer, sampled: Sampled) -> list[RequestEvent]:
        answer.num_unsent += 1
        text, reason = self._read(answer, sampled)
        logprobs: tuple[TokenLogprob, ...] = ()
        if answer.logprobs is not None:
            is_end = reason is not None and not answer.text.is_stopped
            logprobs = answer.logprobs.release(len(text), is_end=is_end)
        if answer.reader is None:
            events = [Delta(text, answer.num_unsent, logprobs)] if text or logprobs else []
        else:
            events = _told(answer.reader.read(text, is_end=reason is not None), answer.num_unsent, logprobs)
            reason = self._reason(answer.reader, sampled, reason)
        if events:
            answer.num_unsent = 0
        if reason is None:
            return [*events]
        del self._answers[answer.sequence.id]
        return [*events, Finished(reason, answer.sequence.usage)]

    def _reason(self, reader: AnswerReader, sampled: Sampled, reason: FinishReason | None) -> FinishReason | None:
        """An answer with whole calls ended for them, unless it was cut short; one that needs no more ends here."""
        if reason is None and reader.is_over:
            self._engine.finish(sampled.sequence, num_surplus=sampled.num_behind)
            reason = "stop"
        return "tool_calls" if reason == "stop" and reader.has_calls else reason

    def _read(self, answer: Answer, sampled: Sampled) -> tuple[str, FinishReason | None]:
        """Return the text that is safe by now, and why the answer is at its end, if it is."""
        text = "" if sampled.token in answer.sequence.end_tokens else self._push(answer, sampled)
        if answer.text.is_stopped:
            self._engine.finish(answer.sequence, num_surplus=sampled.num_behind)
            return text, "stop"
        if sampled.reason is None:
            return text, None
        text += answer.text.finish()
        return text, "stop" if answer.text.is_stopped else sampled.reason

    def _push(self, answer: Answer, sampled: Sampled) -> str:
        if answer.logprobs is not None and sampled.logprobs is not None:
            answer.logprobs.push(sampled.token, sampled.logprobs, answer.text.num_held)
        return answer.text.push(answer.marks.get(sampled.token) or self._piece(sampled.token))


def _told(read: Reading, num_tokens: int, logprobs: tuple[TokenLogprob, ...]) -> list[Delta]:
    if not (read.text or read.reasoning or read.calls or logprobs):
        return []
    return [Delta(read.text, num_tokens, logprobs, read.reasoning, read.calls)]
