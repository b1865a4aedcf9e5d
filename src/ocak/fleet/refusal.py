"""Says why a model is not loaded, and with which settings it would be. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from ocak.memory.needs import Needs, largest_that_fit

MIB = 2**20


def refusal(needs: Needs, free: int, limit: int, holders: Mapping[str, int]) -> str:
    """Name the shortfall, who holds the rest, and the way out."""
    held = ", ".join(f"{name} {_mib(size)}" for name, size in sorted(holders.items()))
    others = limit - free - sum(holders.values())
    return (
        f"it needs {_mib(needs.total_bytes)} (weights {_mib(needs.weights_bytes)}, KV cache "
        f"{_mib(needs.kv_bytes)}, the rest {_mib(needs.total_bytes - needs.weights_bytes - needs.kv_bytes)}), and "
        f"{_mib(max(0, free))} of {_mib(limit)} can be had"
        f"{f', other models hold {held}' if held else ''}"
        f"{f', other programs leave {_mib(limit - others)}' if others > 0 else ''}"
        f"; {_way_out(needs, free, bool(holders))}"
    )


def _way_out(needs: Needs, free: int, has_holders: bool) -> str:
    sizes = largest_that_fit(needs, free)
    flags = [f"--{name} {n}" for name, n in zip(("context", "parallel"), sizes, strict=True) if n]
    if flags:
        return f"{' or '.join(flags)} would fit"
    ways = "take a smaller model, --kv-type or --cache-ram"
    return f"unload one of them, or {ways}" if has_holders else ways


def _mib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / MIB:.0f} MiB"
