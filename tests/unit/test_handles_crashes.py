"""S1 for upload handles: over any history of writers, cuts, and lives of gateway and helper, one offset of an upload
never carries two different bytes, what was stated never goes back, and what is closed is what was written.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

from allmydata import uri
from handles_world import PARAMETERS, Died, GatewayWorld
from hypothesis import given
from hypothesis import strategies as st
from world import begin, expected, outcome, plaintext

from client_shim.gateway.handle_errors import HelperAway
from client_shim.gateway.handle_records import HandleState
from client_shim.gateway.handles import Handle, Writer
from helper.interfaces import LITERAL_MAX


class Client:
    """Who writes to one handle, and knows what it was told. After each take-over its plaintext differs from what it
    wrote before, wherever nothing was stated."""

    def __init__(self, world: GatewayWorld) -> None:
        self.world = world
        self.id = world.create().id
        self.written = b""
        """What the file is, as far as the client knows; from `stated` on it may be cut off."""
        self.stated = 0
        self.writer: Writer | None = None
        self.under_way: list[Any] | None = None
        self.seed = 0

    @property
    def handle(self) -> Handle:
        return self.world.handles.get(self.id)

    def take_over(self) -> bool:
        """Whether it could."""
        self.writer = self.under_way = None
        try:
            self.writer = self.world.result(self.handle.take_over())
        except HelperAway:
            return False
        self.state(self.writer.offset)
        self.written = self.written[:self.stated]
        return True

    def state(self, offset: int) -> None:
        assert self.stated <= offset <= len(self.written), "an offset went back, or beyond what was written"
        self.stated = offset
        assert offset <= LITERAL_MAX or self.world.helper.only().durable >= offset, "stated, and not durable"

    def write(self, size: int) -> None:
        if self.writer is None or (self.under_way is not None and not self.under_way):
            return
        self.under_way = outcome(begin(self.writer.write(self.new_data(size))))

    def new_data(self, size: int) -> bytes:
        self.seed += 1
        data = plaintext(size, self.seed)
        self.written += data
        return data

    def settle(self) -> None:
        if (self.writer is not None and self.under_way is None) or self.under_way:
            settled = outcome(begin(self.writer.settle()))  # type: ignore[union-attr]
            self.world.wait(5)
            if settled and isinstance(settled[0], int):
                assert settled[0] == len(self.written)
                self.state(settled[0])

    def release(self) -> None:
        if self.writer is not None:
            self.writer.release()
            self.writer = self.under_way = None

    def check(self) -> None:
        if self.writer is not None:
            self.state(self.writer.offset)
        assert self.handle.status.received <= len(self.written)

    def lose(self) -> None:
        """The gateway has died, and with it the request."""
        self.writer = self.under_way = None

    def finish(self, size: int) -> bytes:
        """Write `size` more bytes and close, however often the gateway dies meanwhile."""
        for _attempt in range(50):
            try:
                if not self.take_over():
                    self.world.wait(20)
                    continue
                assert self.writer is not None
                if self.handle.status.state is HandleState.OPEN:
                    self.world.result(self.writer.write(self.new_data(size)))
                cap: bytes = self.world.result(self.writer.close())
            except Died:
                self.world.start()
                self.lose()
            else:
                return cap
        raise AssertionError("it cannot be finished")


#: What may happen, and how often.
WEIGHTS = {"write": 8, "wait": 8, "take over": 2, "settle": 2, "release": 1, "cut": 2, "kill helper": 2, "helper": 2,
           "kill gateway": 3, "stop gateway": 1, "rest": 1, "die before": 2, "die after": 2}


def busy_history(seed: int) -> list[tuple[str, float]]:
    """One in which much happens."""
    draw = Random(seed)
    history = draw.choices(list(WEIGHTS), list(WEIGHTS.values()), k=draw.randint(10, 60))
    numbers: dict[str, Callable[[], float]] = {
        "write": lambda: draw.choice([1, 20, 50, 100, 700, 1500]), "helper": lambda: draw.random() < 0.6,
        "wait": lambda: draw.choice([0.001, 0.003, 0.01, 0.1, 1, 30]),
        "die before": lambda: draw.randint(0, 4), "die after": lambda: draw.randint(0, 4)}
    return [(what, numbers.get(what, lambda: 0)()) for what in history]


#: Each with a number of its own. Lists are for shrinking what fails.
HISTORY = st.integers(0, 2**32).map(busy_history) | st.lists(st.one_of(
    st.tuples(st.just("write"), st.integers(0, 1500)),
    st.tuples(st.sampled_from(["take over", "settle", "release", "cut", "kill helper", "kill gateway", "stop gateway",
                               "rest"]), st.just(0)),
    st.tuples(st.just("helper"), st.integers(0, 1)),
    st.tuples(st.just("wait"), st.sampled_from([0.001, 0.003, 0.01, 0.1, 1, 30, 100])),
    st.tuples(st.sampled_from(["die before", "die after"]), st.integers(0, 6)),
), min_size=5, max_size=40)
FATES = st.lists(st.sampled_from(["ok", "ok", "ok", "ok", "lost", "done", "killed", "done, killed",
                                  "helper-stopping"]), max_size=30)


def happen(client: Client, what: str, number: float) -> None:
    world = client.world
    match what:
        case "write":
            client.write(int(number))
        case "take over":
            client.take_over()
        case "settle":
            client.settle()
        case "release":
            client.release()
        case "cut":
            world.helper.cut()
        case "kill helper":
            world.helper.kill()
        case "helper":
            world.helper.up = bool(number)
            world.helper.cut()
        case "wait":
            world.wait(number)
        case "rest":
            client.release()
            world.wait(200)
        case "kill gateway":
            world.restart()
            client.lose()
        case "stop gateway":
            world.result(world.handles.stop())
            world.restart()
            client.lose()
        case "die before" | "die after":
            die_at_work(world, what, int(number))


def die_at_work(world: GatewayWorld, what: str, number: int) -> None:
    """The process ends when its journal does that piece of work from now."""
    left = [number]

    def work(_name: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            world.before_work = world.after_work = lambda _name: None
            world.kill()

    if what == "die before":
        world.before_work = work
    else:
        world.after_work = work


DEATHS = st.lists(st.tuples(st.sampled_from(["die before", "die after"]), st.integers(0, 6)), max_size=5)


@given(history=HISTORY, fates=FATES, sync_time=st.sampled_from([0.0, 0.01, 1.0]), size=st.integers(0, 1500),
       deaths=DEATHS)
def test_s1_no_offset_carries_two_ciphertexts(history: list[tuple[str, float]], fates: list[str], sync_time: float,
                                              size: int, deaths: list[tuple[str, int]]) -> None:
    with GatewayWorld() as world:
        world.helper.sync_time = sync_time
        client = Client(world)
        client.take_over()
        world.helper.fate = lambda _method: fates.pop(0) if fates else "ok"
        for what, number in history:
            with suppress(Died):
                happen(client, what, number)
            if world.process.ended:
                world.start()
                client.lose()
            client.check()
        world.before_work = world.after_work = lambda _name: None
        world.helper.up = True
        world.on_start = lambda: die_at_work(world, *deaths.pop(0)) if deaths else None
        world.on_start()
        cap = client.finish(size)
        world.before_work = world.after_work = lambda _name: None
        assert cap == expected_cap(client.written)
        world.restart()
        assert client.handle.status.cap == cap


def expected_cap(data: bytes) -> bytes:
    if len(data) <= LITERAL_MAX:
        return uri.LiteralFileURI(data).to_string()
    return expected(data, PARAMETERS).cap
