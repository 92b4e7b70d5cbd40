"""What must hold, in numbers, and what was measured beside it.  (pure)"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs

from benchmarks import closing, concurrency, growth, idle, parts, slow_server, slow_syncs, throughput
from benchmarks.samples import Samples
from benchmarks.uploads import MiB

OURS, STOCK, STOCK_FOOLSCAP = "ours", "stock", "stock, force_foolscap"


@attrs.frozen
class Target:
    """`least` and `most` bound the value; `measured` is None where a run has not measured it (--quick)."""

    text: str
    measured: float | None
    unit: str = ""
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool | None:
        """None if it is not known."""
        if self.measured is None:
            return None
        return (self.least is None or self.measured >= self.least) and (self.most is None or self.measured <= self.most)


def targets(samples: Samples) -> Iterator[Target]:
    """All of them."""

    def of(measurement: str, case: str, quantity: str, subject: str = OURS) -> float | None:
        return samples.median(measurement, case, quantity, subject)

    size = throughput.case_of(256 * MiB)
    for case, servers in ((size, ""), (throughput.case_on_stock_servers(256 * MiB, True), ", stock servers")):
        rate = of(throughput.NAME, case, "throughput")
        yield Target(f"256 MiB{servers}: throughput by stock's",
                     _ratio(rate, of(throughput.NAME, case, "throughput", STOCK)), "x", least=4)
        yield Target(f"256 MiB{servers}: throughput by stock's with force_foolscap",
                     _ratio(rate, of(throughput.NAME, case, "throughput", STOCK_FOOLSCAP)), "x", least=3)
    helper = of(throughput.NAME, size, "helper CPU")
    yield Target("256 MiB: helper CPU", helper, "s/GiB", most=12)
    for link in ("Foolscap", "TLS"):
        floor = samples.median(parts.NAME, parts.floor_case(link), "CPU", parts.SUBJECT)
        yield Target(f"256 MiB: helper CPU by the floor over {link}", _ratio(helper, floor), "x")
    slope_case = f"slope from {size} to {throughput.case_of(throughput.SLOPE_SIZE)}"
    yield Target("client CPU by stock's, slope", _ratio(
        of(throughput.NAME, slope_case, "client CPU"), of(throughput.NAME, slope_case, "client CPU", STOCK)), "x",
        most=1 / 3)
    yield from _closing_targets(of)
    yield Target("memory of the helper above idle, one upload of 4 GiB",
                 of(growth.NAME, throughput.case_of(growth.LARGE), "helper memory"), "MiB", most=64)
    yield Target("memory of the helper above idle, 16 uploads",
                 of(concurrency.NAME, concurrency.case_of(16), "helper memory"), "MiB", most=512)
    yield Target("memory of the helper in all, 1,000 idle uploads",
                 of(idle.NAME, f"{idle.UPLOADS} x 1.5 MiB", "helper memory in all"), "MiB", most=256)
    yield Target("throughput with one server at a tenth, by undisturbed", _ratio(
        of(slow_server.NAME, slow_server.DISTURBED, "throughput"),
        of(slow_server.NAME, slow_server.UNDISTURBED, "throughput")), "x", least=0.9)
    disturbed, undisturbed = slow_syncs.DISTURBED, slow_syncs.UNDISTURBED
    yield Target("throughput with syncs of 20 ms, by undisturbed", _ratio(
        of(slow_syncs.NAME, disturbed, "throughput"), of(slow_syncs.NAME, undisturbed, "throughput")), "x", least=0.8)
    yield Target("last byte to cap with syncs of 20 ms, more than undisturbed", _difference(
        of(slow_syncs.NAME, disturbed, "last byte to cap"), of(slow_syncs.NAME, undisturbed, "last byte to cap")), "s",
        most=0.16)
    yield Target("helper CPU by GiB, 4 GiB by 256 MiB", _ratio(
        of(growth.NAME, throughput.case_of(growth.LARGE), "helper CPU"),
        of(growth.NAME, throughput.case_of(growth.SMALL), "helper CPU")), "x", most=1.15)


def _closing_targets(of: Callable[[str, str, str], float | None]) -> Iterator[Target]:
    for servers in (closing.STAGING_SERVERS, closing.STOCK_SERVERS):
        for pace, most in ((closing.PACE, 0.1), (None, 0.3)):
            seconds = {size: of(closing.NAME, closing.case_of(servers, size, pace), "last byte to cap")
                       for size in closing.SIZES}
            for size, measured in seconds.items():
                yield Target(f"last byte to cap, {closing.case_of(servers, size, pace)}", measured, "s", most=most)
            yield Target(f"the same, 1 GiB more than 64 MiB, {'paced' if pace else 'unthrottled'}, {servers}",
                         _difference(seconds[1024 * MiB], seconds[64 * MiB]), "s", most=0.05)


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
