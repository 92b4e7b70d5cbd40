"""What happens in one run of the simulation, all of it decided by a seed."""

from __future__ import annotations

import random
from functools import lru_cache

import attrs
from dedup_worlds import key_of
from world import plaintext

from client_shim.disclosure import RevealStorageIndex
from helper.parameters import Parameters
from simulation.faults import FaultKind

#: Files are of so many kinds, as what stock makes of each is computed once.
FILES = 150
#: Steps are spread over about this many; an upload takes a hundred or a few.
FAULTS_WITHIN = 60
#: A share can be lost where one is stored that somebody looks for.
_ANYWHERE = [kind for kind in FaultKind if kind is not FaultKind.SHARE_LOST]


@attrs.frozen
class File:
    """What one client uploads, under which parameters, and its key."""

    parameters: Parameters
    data: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")
    key: bytes = attrs.field(repr=False)


@attrs.frozen
class Program:
    """What one client does: it waits, writes pieces with pauses (seconds) between, and ends: "close"s, "abort"s after
    some pieces, or its process dies ("die")."""

    file: File
    begins: float
    writes: tuple[tuple[int, float], ...]
    ending: str
    patience: float  # seconds, before it aborts or dies while closing
    reveal: RevealStorageIndex
    dedup: bool = False  # whether it looks for files that are stored already


@attrs.frozen
class Planned:
    """A fault that happens (or is armed) at a step; `target` and `amount` (0..1) say where and how much."""

    step: int
    kind: FaultKind
    target: int
    amount: float

    def __str__(self) -> str:
        return f"step {self.step}: {self.kind.value} (target {self.target}, amount {self.amount:.2f})"


@attrs.frozen
class Schedule:
    """One run."""

    seed: int
    credit: int
    pushing_lag: int
    contact_after: int
    spool_quota: int
    stock_servers: int
    staging_servers: int
    #: Typical seconds that a message, a server's answer and a thread's work take.
    network: float
    server: float
    thread: float
    programs: tuple[Program, ...]
    faults: tuple[Planned, ...]
    #: What stock clients have put before, under its convergent key, or under that of something else.
    stored: tuple[File, ...] = ()

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {self.stock_servers} stock and {self.staging_servers} staging servers",
                 f"  credit {self.credit}, pushing lag {self.pushing_lag}, contact after {self.contact_after}",
                 f"  quota of the spool {self.spool_quota}",
                 f"  seconds: network {self.network}, servers {self.server}, threads {self.thread}"]
        for number, p in enumerate(self.programs):
            lines.append(f"  client {number} begins at {p.begins:.3f} s: {p.file.parameters}, {len(p.file.data)} bytes "
                         f"in {len(p.writes)} pieces, then {p.ending}; reveal {p.reveal.value}"
                         f"{'; looks for it' if p.dedup else ''}")
        lines += [f"  stored before: {stored}" for stored in self.stored]
        return "\n".join([*lines, *(f"  {fault}" for fault in self.faults)])


@lru_cache(maxsize=FILES)
def file(number: int) -> File:
    """One of FILES."""
    choose = random.Random(f"file {number}")
    k = choose.randint(1, 3)
    n = choose.randint(k, 5)
    segment = choose.choice([17, 48, 50, 51, 64, 200])
    size = choose.choice([choose.randint(56, 58), choose.randint(58, 300), choose.randint(100, 400),
                          choose.randint(100, 1000), choose.randint(300, 2000)])
    if choose.random() < 0.2:
        size = max(56, size // segment * segment)
    parameters = Parameters(k, choose.randint(1, n), n, segment, choose.choice([size, None]))
    return File(parameters, plaintext(size, number), choose.randbytes(16))


def schedule(seed: int) -> Schedule:
    """That of a seed."""
    choose = random.Random(f"schedule {seed}")
    clients = choose.choice([1, 1, 2, 2, 3])
    programs = tuple(_program(choose, number) for number in choose.sample(range(FILES), clients))
    programs = _with_twins(seed, programs)
    servers = choose.randint(max(4, *(p.file.parameters.happy for p in programs)), 12)
    staging = choose.choice([0, servers, choose.randint(0, servers)])
    kinds = choose.sample(_ANYWHERE, choose.choice([1, 2, 3, 4, 6, len(_ANYWHERE)]))
    faults = sorted((_planned(choose, kinds) for _ in range(choose.randint(4, 10))), key=lambda planned: planned.step)
    return _with_stored(Schedule(
        seed, credit=choose.choice([64, 200, 400, 1000]), pushing_lag=choose.choice([64, 300, 4096]),
        contact_after=choose.choice([1, 100, 600]), spool_quota=choose.choice([1500, 10_000, 10_000, 10_000]),
        stock_servers=servers - staging, staging_servers=staging,
        network=choose.choice([0.001, 0.01, 0.1]), server=choose.choice([0.001, 0.01, 0.1]),
        thread=choose.choice([0.001, 0.001, 0.02]), programs=programs, faults=tuple(faults)))


def _with_twins(seed: int, programs: tuple[Program, ...]) -> tuple[Program, ...]:
    """In one run of three all look for files that are stored already; then the second client, and perhaps the third,
    has the plaintext of the first, under a key of its own."""
    choose = random.Random(f"dedup {seed}")
    if choose.random() > 1 / 3:
        return programs
    first, *others = programs
    cut_short = {"abort", "die"}  # their writes are not those of the whole file
    twins = [attrs.evolve(p, file=attrs.evolve(first.file, key=choose.randbytes(16)), writes=first.writes,
                          begins=first.begins + choose.choice([0.0, 0.5, 5.0, 60.0]))
             if not {first.ending, p.ending} & cut_short and choose.random() < 0.8 else p for p in others]
    return tuple(attrs.evolve(p, dedup=True) for p in (first, *twins))


def _with_stored(plan: Schedule) -> Schedule:
    """Where files are looked for, in some runs a stock client has put the first one before; or something else in its
    place; and in some a share of a file is lost once it is stored."""
    first = plan.programs[0].file
    if not plan.programs[0].dedup:
        return plan
    choose = random.Random(f"stored {plan.seed}")
    what, stored = choose.choice(["", "", "it", "something else"]), ()
    if what:
        data = first.data if what == "it" else plaintext(len(first.data), FILES + plan.seed % FILES)
        stored = (attrs.evolve(first, data=data, key=key_of(first.data, first.parameters)),)
    lost = [Planned(1, FaultKind.SHARE_LOST, choose.randrange(60), choose.random())] * choose.choice([0, 1])
    return attrs.evolve(plan, stored=stored, faults=(*lost, *plan.faults))


def _program(choose: random.Random, number: int) -> Program:
    what = file(number)
    size = choose.choice([20, 100, 700, len(what.data)])
    pause = choose.choice([0.0, 0.0, 0.05, 2.0])
    pieces, left = [], len(what.data)
    while left:
        piece = min(left, choose.randint(1, size))
        pieces.append((piece, pause * choose.random()))
        left -= piece
    ending = choose.choices(["close", "abort", "die", "abort while closing", "die while closing"], [80, 5, 5, 6, 4])[0]
    if ending in ("abort", "die"):
        pieces = pieces[:choose.randint(1, len(pieces))]
    begins = 0.0 if choose.random() < 0.7 else choose.random() * 3
    patience = choose.choice([0.0, 0.05, 0.5, 5.0]) * choose.random()
    return Program(what, begins, tuple(pieces), ending, patience, choose.choice(list(RevealStorageIndex)))


def _planned(choose: random.Random, kinds: list[FaultKind]) -> Planned:
    return Planned(1 + int(choose.expovariate(1 / FAULTS_WITHIN)), choose.choice(kinds), choose.randrange(60),
                   choose.random())
