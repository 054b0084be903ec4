"""Rows 2 and 3: orders over the API, each answer a commit on stable storage."""

from pathlib import Path

from benchmarks.backlog import LIST_JOBS
from benchmarks.conftest import PeerStarter, Starter
from benchmarks.lean import Connection, per_second, request
from benchmarks.measure import in_turns, timed
from benchmarks.peers import Peer
from benchmarks.report import Line, Reach, Report

ORDER = {"argv": ["true"]}


def test_an_order_is_answered_once_it_is_durable(
    start: Starter, floor: Path, start_peers: PeerStarter, report: Report
) -> None:
    daemon = start("box", cpus=1)
    daemon.wait(daemon.submit(["sleep", "600"]), "running")
    peers = start_peers(1)
    order = request("POST", "/v1/jobs", ORDER)
    echo, keep = (request("POST", path, ORDER) for path in ("/echo", "/keep"))
    with Connection(daemon.socket) as ours, Connection(floor) as least:
        found = in_turns(
            {
                "traind": timed(lambda: ours.ask(order, status=201)),
                "floor": timed(lambda: least.ask(keep, status=201)),
                "echo": timed(lambda: least.ask(echo, status=201)),
            },
            rounds=40,
            each=10,
        )
    report.add(
        Line(
            row=2,
            measure="API submit p50, durable, one connection",
            unit="ms",
            figure=found["traind"].p50,
            floor=found["floor"].p50,
            reach=Reach(figure=1.5, floor=0.8),
            raw={name: each.raw for name, each in found.items()},
            peers=peers.each(_peer_answer),
            note=f"floor: aiohttp with one insert and one full commit; without them "
            f"{found['echo'].p50:.2f} ms. traind p95 {found['traind'].p95:.2f} ms",
        )
    )


def _peer_answer(peer: Peer) -> float | None:
    """Median milliseconds of an order over HTTP, none of which a peer here stores at once."""
    if peer.orders is None:
        return None
    address, order = peer.orders
    peer.submit(["sleep", "600"])
    with Connection(address) as connection:
        sample = timed(lambda: connection.ask(order, status=201))
        return in_turns({"peer": sample}, rounds=100)["peer"].p50


def test_orders_come_fast_on_one_connection_on_many_and_in_lists(
    start: Starter, floor: Path, report: Report
) -> None:
    daemon = start("box", cpus=1)
    daemon.wait(daemon.submit(["sleep", "600"]), "running")
    cases = (
        ("1 connection", 1, 600, ORDER, "/keep", Reach(figure=700, floor=1250, most=False)),
        ("8 connections", 8, 1200, ORDER, "/echo", Reach(figure=1500, floor=3500, most=False)),
        ("lists of 1,000", 1, 6, [ORDER] * LIST_JOBS, "/keep", Reach(figure=15_000, most=False)),
    )
    for name, connections, count, body, path, reach in cases:
        rates: dict[str, list[float]] = {"traind": [], "floor": []}
        for _ in range(3):
            for who, socket, where in (
                ("traind", daemon.socket, "/v1/jobs"),
                ("floor", floor, path),
            ):
                rate = per_second(
                    socket,
                    request("POST", where, body),
                    connections=connections,
                    count=count // 3,
                    status=201,
                )
                rates[who].append(rate * (len(body) if isinstance(body, list) else 1))
        ours, least = (sorted(rates[who])[1] for who in ("traind", "floor"))
        report.add(
            Line(
                row=3,
                measure=f"API submissions, {name}",
                unit="jobs/s",
                figure=ours,
                floor=least,
                reach=reach,
                raw=rates,
            )
        )
