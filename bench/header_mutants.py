"""Damages GGUF headers where it hurts: counts, lengths, types, values, tensors, and single bits.

A mutant is made of a sound header and a seed, always the same from the same. Half of the changes keep the counts
right, so that what is behind them is reached.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from bench.header_layout import ARRAY, STRING, WIDTHS, Layout, Span, lay_out

MOST_CHANGES = 4
MOST_REPEATED = 1 << 20  # bytes
EXTREMES = sorted(
    {0, 1, 2, 7, 31, 32, 63, 64, 255, 256, 1024, 1025, 4096, 4097, 65535, 65536, 2**24, 2**24 + 1}
    | {
        2**bits + step
        for bits in (15, 31, 32, 53, 60, 61, 62, 63, 64)
        for step in (-1, 0, 1)
        if bits < 64 or step < 0
    }
)
TYPES = (*range(14), 30, 31, 39, 42, 43, 255, 2**31, 2**32 - 1)
NUMBERS = tuple(WIDTHS)
# What the file's readers look up: {a} is the architecture.
KEYS = tuple(
    key.encode()
    for key in (
        *("{a}.block_count", "{a}.context_length", "{a}.embedding_length", "{a}.pooling_type"),
        *(f"{{a}}.attention.{name}" for name in ("head_count", "head_count_kv", "causal", "sliding_window")),
        *(f"{{a}}.attention.{which}_length{of}" for which in ("key", "value") for of in ("", "_swa", "_mla")),
        *("{a}.ssm.state_size", "{a}.nextn_predict_layers", "{a}.attention.shared_kv_layers"),
        *("general.architecture", "general.alignment", "general.name", "general.type"),
        *("split.no", "split.count", "split.tensors.count"),
        *("adapter.type", "adapter.lora.alpha", "adapter.alora.invocation_tokens", "tokenizer.chat_template"),
    )
)
TEXTS = (
    b"",
    b"\0",
    b"\n\x1b[31mred\r",
    b"\xff\xfe",
    "\u202eolleh".encode(),
    b"llama",
    b"lora",
    b"adapter",
    b"%s{0}",
)
LONG = (63, 64, 65, 1023, 1024, 1025, 4096, 70_000)


@dataclass(frozen=True, slots=True)
class Source:
    """A sound file: its header with what follows of it here, and how many bytes are left out behind that."""

    name: str
    data: bytes
    rest_bytes: int
    layout: Layout

    @classmethod
    def of(cls, name: str, data: bytes, kept_bytes: int = 1024) -> "Source":
        """Keep the header and the first of the weights."""
        layout = lay_out(data)
        kept = data[: layout.end + kept_bytes]
        return cls(name, kept, len(data) - len(kept), layout)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A file of `num_bytes`, of which `data` is the beginning; zeros follow."""

    data: bytes
    num_bytes: int
    changes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Edit:
    """Bytes to put in a span's place, and by how much the header's two counts must follow to be right."""

    span: Span
    new: bytes
    entries: int = 0
    tensors: int = 0


Change = Callable[[Source, Random], Iterator[Edit]]


def mutant(source: Source, seed: int) -> Mutant:
    """Damage a file in one to four ways."""
    random = Random(seed)
    chosen = random.choices(
        CHANGES, WEIGHTS, k=min(random.randint(1, MOST_CHANGES), random.randint(1, MOST_CHANGES))
    )
    edits = [edit for change in chosen for edit in change(source, random)]
    data = _applied(source, edits, is_counted=random.random() < 0.8)
    num_bytes = len(data) + source.rest_bytes
    if random.random() < 0.1:
        num_bytes = _cut(source, random, num_bytes)
    return Mutant(data[:num_bytes], num_bytes, tuple(change.__name__.strip("_") for change in chosen))


def _applied(source: Source, edits: list[Edit], *, is_counted: bool) -> bytes:
    """Put all edits in their places; of two that overlap the first one."""
    at, pieces, done = 0, [], []
    for edit in sorted(edits, key=lambda edit: edit.span):
        start, end = edit.span
        if start < at:
            continue
        pieces += [source.data[at:start], edit.new]
        at = end
        done.append(edit)
    whole = b"".join([*pieces, source.data[at:]])
    has_counts = not any(edit.span[0] < 24 for edit in done) and len(whole) >= 24
    if not (is_counted and has_counts):
        return whole
    num_tensors = len(source.layout.tensors) + sum(edit.tensors for edit in done)
    num_entries = len(source.layout.entries) + sum(edit.entries for edit in done)
    return whole[:8] + struct.pack("<QQ", num_tensors, num_entries) + whole[24:]


def _cut(source: Source, random: Random, num_bytes: int) -> int:
    """End the file at a border of two fields, one byte beside it, or anywhere."""
    if random.random() < 0.3:
        return random.randrange(num_bytes + 1)
    spans = source.layout.fields[random.choice(list(source.layout.fields))]
    return max(0, min(num_bytes, random.choice(random.choice(spans)) + random.choice((-1, 0, 1))))


def _flip(source: Source, random: Random) -> Iterator[Edit]:
    """Turn single bits."""
    for _ in range(random.randint(1, 4)):
        at = random.randrange(source.layout.end)
        yield Edit((at, at + 1), bytes([source.data[at] ^ 1 << random.randrange(8)]))


def _overwrite(source: Source, random: Random) -> Iterator[Edit]:
    """Put random bytes anywhere."""
    at, length = random.randrange(source.layout.end), random.randint(1, 12)
    yield Edit((at, at + length), random.randbytes(length))


def _extreme(source: Source, random: Random) -> Iterator[Edit]:
    """Put an extreme into a field that is a number: a count, length, type, dimension, offset."""
    kinds = sorted(source.layout.integers)
    start, end = random.choice(source.layout.fields[random.choice(kinds)])
    number = random.choice(
        (random.choice(EXTREMES), random.choice(TYPES), len(source.data) - end + random.randint(-9, 9))
    )
    yield Edit((start, end), _packed(number, end - start))


def _retype(source: Source, random: Random) -> Iterator[Edit]:
    """Call a value, an element or a tensor another type than it is of."""
    kinds = [kind for kind in ("value type", "element type", "tensor type") if kind in source.layout.fields]
    yield Edit(random.choice(source.layout.fields[random.choice(kinds)]), _packed(random.choice(TYPES), 4))


def _revalue(source: Source, random: Random) -> Iterator[Edit]:
    """Give a key a sound value that it should not have."""
    yield Edit(random.choice(source.layout.values), _value(random))


def _known(source: Source, random: Random) -> Iterator[Edit]:
    """Give a key that matters a value of any kind, in its place or at the end."""
    key = random.choice(KEYS).replace(b"{a}", source.layout.architecture)
    if key in source.layout.keys:
        yield Edit(source.layout.values[source.layout.keys.index(key)], _value(random))
    else:
        end = source.layout.entries[-1][1]
        yield Edit((end, end), _text(key) + _value(random), entries=1)


def _repeat(source: Source, random: Random) -> Iterator[Edit]:
    """Have an entry, a tensor or an element twice, or many times."""
    start, end = random.choice(
        random.choice([source.layout.entries, source.layout.tensors or source.layout.entries])
    )
    times = min(random.choice((1, 1, 2, 300)), max(1, MOST_REPEATED // (end - start)))
    is_tensor = (start, end) in source.layout.tensors
    counted = {"tensors": times} if is_tensor else {"entries": times}
    yield Edit((end, end), source.data[start:end] * times, **counted)


def _remove(source: Source, random: Random) -> Iterator[Edit]:
    spans = random.choice([source.layout.entries, source.layout.tensors or source.layout.entries])
    counted = {"tensors": -1} if spans is source.layout.tensors else {"entries": -1}
    yield Edit(random.choice([random.choice(spans), spans[-1]]), b"", **counted)


def _swap(source: Source, random: Random) -> Iterator[Edit]:
    """Exchange two entries, two tensors, or two fields of a kind."""
    spans = random.choice([source.layout.entries, source.layout.tensors, *source.layout.fields.values()])
    if len(spans) > 1:
        one, other = random.sample(spans, 2)
        yield Edit(one, source.data[slice(*other)])
        yield Edit(other, source.data[slice(*one)])


def _nest(source: Source, random: Random) -> Iterator[Edit]:
    """Put arrays into arrays."""
    depth = random.choice((1, 2, 64, 3000))
    nested = struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * depth
    yield Edit(random.choice(source.layout.values), nested + struct.pack("<IQI", 4, 1, 7))


def _stretch(source: Source, random: Random) -> Iterator[Edit]:
    """Make a key, a text or a name long, empty or unreadable, with its right length before it."""
    kind = random.choice([kind for kind in ("key", "text", "tensor name") if kind in source.layout.fields])
    span = random.choice(source.layout.fields[kind])
    yield Edit((span[0] - 8, span[1]), _text(_any_text(random)))


def _reshape(source: Source, random: Random) -> Iterator[Edit]:
    """Give a tensor dimensions that overflow, or that are not whole blocks."""
    if not source.layout.tensors:
        return
    start, end = random.choice(source.layout.tensors)
    dims = [random.choice((*EXTREMES, 3, 40, 64)) for _ in range(random.choice((0, 1, 2, 3, 4, 4, 5, 200)))]
    name_end = start + 8 + struct.unpack_from("<Q", source.data, start)[0]
    offset = random.choice((0, 8, 32, 64, *EXTREMES))
    tail = (
        struct.pack("<I", random.choice(TYPES)) + _packed(offset, 8)
        if random.random() < 0.5
        else source.data[end - 12 : end]
    )
    yield Edit((name_end, end), struct.pack(f"<I{len(dims)}Q", len(dims), *dims) + tail)


def _value(random: Random) -> bytes:
    """A type and a value of it, sound but anything."""
    kind = random.choice((*NUMBERS, 4, 4, 10, 10, STRING, STRING, ARRAY, ARRAY, ARRAY))
    if kind == STRING:
        return _packed(kind, 4) + _text(_any_text(random))
    if kind != ARRAY:
        return _packed(kind, 4) + _number(kind, random)
    element = random.choice((*NUMBERS, 4, 5, STRING))
    length = random.choice((0, 1, 2, 2, 3, 255, 256, 257, 4096, 4097))
    repeated = _text(_any_text(random, most=100)) if element == STRING else _number(element, random)
    return struct.pack("<IIQ", ARRAY, element, length) + repeated * length


def _number(kind: int, random: Random) -> bytes:
    if kind in (6, 12):
        number = random.choice((0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), 1e-38, 3e38))
        return struct.pack("<f" if kind == 6 else "<d", number)
    return _packed(random.choice(EXTREMES), WIDTHS[kind])


def _any_text(random: Random, most: int = LONG[-1]) -> bytes:
    if random.random() < 0.5:
        return random.choice(TEXTS)
    return random.choice((b"x", b"\n", b"\xff", "ğ".encode())) * min(random.choice(LONG), most)


def _text(data: bytes) -> bytes:
    return _packed(len(data), 8) + data


def _packed(number: int, width: int) -> bytes:
    return (number % (1 << 8 * width)).to_bytes(width, "little")


CHANGES: tuple[Change, ...] = (
    *(_flip, _overwrite, _extreme, _retype, _revalue, _known, _repeat),
    *(_remove, _swap, _nest, _stretch, _reshape),
)
WEIGHTS = (2, 1, 4, 2, 3, 6, 1, 1, 1, 1, 2, 2)
