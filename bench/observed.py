"""A load on a server, with what ocak's engine and front say of themselves meanwhile."""

from bench import load, scrape
from bench.load import Load
from bench.servers import Server

Samples = dict[str, list[dict[str, float]]]


def observe(server: Server, work: Load) -> dict[str, float]:
    """Run the load; for ocak add the engine's shares and the front's CPU."""
    if not server.program.is_ocak:
        return load.run(server, work).summary()
    before = scrape.engine_times(server)
    outcome = load.run(server, work)
    engine = scrape.engine_times(server).since(before)
    front_mib, workers_mib = server.rss_mib()
    return outcome.summary() | {
        "decode_share": engine.decode_share,
        "engine_busy_share": engine.busy_s / outcome.wall_s,
        "front_us_per_token": engine.front_cpu_s / outcome.num_tokens * 1e6,
        "outside_decode_us_per_step": (engine.busy_s - engine.decode_s) / max(1.0, engine.steps) * 1e6,
        "front_mib": front_mib,
        "workers_mib": workers_mib,
    }


def warm_up(server: Server, clients: int, words: tuple[str, ...] = ()) -> None:
    """A short load, so that no side pays for its first requests while measured."""
    load.run(server, Load(clients, clients, output_tokens=8, seed=1_000, words=words))
