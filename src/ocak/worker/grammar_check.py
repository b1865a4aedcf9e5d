"""Compiles grammars in a process of its own first, where one that takes for ever or all the memory harms nobody.

llguidance bounds most of what a grammar costs, but not all: patterns that must hold together may take minutes, and
nothing ends a thread. The process answers one line of JSON for each that it reads, and its alarm ends it in time.
It reads no more when the worker has gone, and ends.
"""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys

import msgspec
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from ocak.core.errors import InvalidRequest, OcakError, WireError, from_wire, to_wire
from ocak.core.request import Constraint
from ocak.llama.grammar_limits import limits
from ocak.worker.constraints import refusal, source

COMPILE_S = 1.0  # of CPU
WAIT_S = 5.0  # where the machine is busy
COMPILE_BYTES = 1 << 30  # of address space; the process itself takes a tenth
END = 256
WALK = 64


class Checked(msgspec.Struct, frozen=True, omit_defaults=True):
    """A source that compiles, or why there is none."""

    source: str = ""
    error: WireError | None = None


class GrammarChecker:
    """The worker's side. Used by one thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def check(self, constraint: Constraint) -> str:
        """Return the source of a constraint's grammar. Raises `InvalidRequest`."""
        answer = self._ask(msgspec.json.encode(constraint) + b"\n")
        if not answer.endswith(b"\n"):
            self.close()
            raise InvalidRequest(
                f"{constraint.param} takes more than {COMPILE_S:g} s or 1 GiB to compile; send a simpler one",
                param=constraint.param,
            )
        checked = msgspec.json.decode(answer, type=Checked)
        if checked.error is not None:
            raise from_wire(checked.error)
        return checked.source

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, line: bytes) -> bytes:
        """Return the process's line, or a part of it if it has ended."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        self._process = self._process or _start()
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            return b""
        return self._process.stdout.readline()


def _start() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ocak.worker.grammar_check"]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=-1
    )


class Bytes:
    """A vocabulary of the 256 bytes and an end, as llguidance wants it: grammars are the same to every other."""

    eos_token_id = END
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(END)), b"\xff<end>")
    special_token_ids = (END,)

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def byte_tokenizer() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(Bytes()), slices=[])


def answer(line: bytes, tokenizer: LLTokenizer) -> Checked:
    """Compile one constraint, as the process does."""
    constraint = msgspec.json.decode(line, type=Constraint)

    def error_in(source: str) -> str:
        matcher = LLMatcher(tokenizer, source, log_level=0, limits=limits(source))
        _walk(matcher)
        return matcher.get_error().removesuffix("<non-verbose/>").strip()

    try:
        text = source(constraint)
        if message := error_in(text):
            raise refusal(constraint, message, error_in)
    except OcakError as error:
        return Checked(error=to_wire(error))
    return Checked(text)


def _walk(matcher: LLMatcher) -> None:
    """Follow the grammar for some bytes, for what becomes too complex only then."""
    choices = random.Random(0)
    for _ in range(WALK):
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        allowed = [byte for byte in range(END) if mask >> byte & 1]
        if matcher.is_stopped() or not allowed:
            break
        matcher.consume_token(choices.choice(allowed))


def main() -> None:
    """Answer until there is no more to read."""
    resource.setrlimit(resource.RLIMIT_AS, (COMPILE_BYTES, COMPILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tokenizer = byte_tokenizer()
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, COMPILE_S)
        signal.setitimer(signal.ITIMER_REAL, WAIT_S)
        checked = answer(line, tokenizer)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.buffer.write(msgspec.json.encode(checked) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
