"""Runs schedules, and says what they reached."""

from __future__ import annotations

import os
import random
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from multiprocessing import get_context

import attrs
from twisted.logger import globalLogBeginner

from client_shim.dedup import Outcome
from helper.session import TRANSITIONS
from simulation import invariants
from simulation.entropy import entropy_from
from simulation.faults import FaultKind
from simulation.invariants import Violation
from simulation.schedule import Schedule, schedule
from simulation.simulated_world import NO_BUGS, Seams, SimulatedWorld

#: All there are, by their states' names.
ALL_TRANSITIONS = [(before.value, after.value) for before, possible in TRANSITIONS.items()
                   for after in sorted(possible, key=lambda state: state.value)]

#: A schedule counts if it had so many steps, and so many faults struck.
STEPS_MIN = 60
FAULTS_MIN = 2

#: Simulated seconds after which faults stop, counted from the last one; and in which everything must end then.
CALM_AFTER = 100.0
ENDS_WITHIN = 2 * 3600.0
EXPIRES_WITHIN = 5 * 86400.0
#: More steps than this are a loop.
STEPS_MAX = 400_000

#: How those end who have a cap; what became of the upload follows.
_CAP = "a cap: "


@attrs.frozen
class Report:
    """What came of one schedule, or of many."""

    schedules: int = 0
    steps: int = 0
    counted: int = 0
    faults: Counter[FaultKind] = attrs.field(factory=Counter)
    transitions: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    endings: Counter[str] = attrs.field(factory=Counter)

    def __add__(self, other: Report) -> Report:
        return Report(self.schedules + other.schedules, self.steps + other.steps, self.counted + other.counted,
                      self.faults + other.faults, self.transitions + other.transitions, self.endings + other.endings)


def run(plan: Schedule, watch: Callable[[str], None] = lambda _line: None, seams: Seams = NO_BUGS) -> Report:
    """Run one schedule to its end. Raises Violation."""
    for file in plan.stored:
        invariants.encoding_of(file)  # now: stock's encoder takes randomness when it is asked first
    with entropy_from(random.Random(f"entropy {plan.seed}")), SimulatedWorld(plan, watch, seams) as world:
        try:
            _run(world)
        except Violation as e:
            e.add_note(f"at step {world.steps} of seed {plan.seed}")
            raise
        counts = world.steps >= STEPS_MIN and world.fired_kinds.total() >= FAULTS_MIN
        endings = Counter(_CAP + c.upload.outcome.value if c.cap else "died" if c.died
                          else c.error.code if c.error else "?"
                          for c in world.clients)
        return Report(1, world.steps, int(counts), world.fired_kinds, world.transitions, endings)


@attrs.frozen
class Failed:
    """A schedule in which something did not hold, and what that was."""

    seed: int
    text: str


@attrs.frozen
class Results:
    """Of many schedules."""

    report: Report
    failed: list[Failed]


def run_seeds(seeds: Iterable[int], enough: int, failures_max: int = 3) -> Results:
    """Run seeds until `enough` have counted, or so many have failed."""
    report, failed = Report(), []
    for seed in seeds:
        try:
            report += run(schedule(seed))
        except Exception:  # noqa: BLE001 (whatever it is, it is a finding, and has a seed)
            failed.append(Failed(seed, traceback.format_exc()))
        if report.counted >= enough or len(failed) >= failures_max:
            break
    return Results(report, failed)


def run_many(enough: int, first: int = 0, processes: int = 0) -> Results:
    """Run seeds from `first` on until `enough` have counted, in so many processes (default: one for each core).

    Which seeds run depends on nothing but these numbers.
    """
    processes = processes or os.cpu_count() or 1
    shares = [enough // processes + (number < enough % processes) for number in range(processes)]
    with ProcessPoolExecutor(processes, get_context("spawn"), discard_history) as pool:
        tasks = [pool.submit(_run_share, first + number, processes, share) for number, share in enumerate(shares)]
        results = [task.result() for task in tasks]
    return Results(sum((r.report for r in results), Report()), [f for r in results for f in r.failed])


def _run_share(first: int, step: int, enough: int) -> Results:
    return run_seeds(count(first, step), enough)


def discard_history() -> None:
    """Let the log keep nothing: without this it keeps events until somebody says where they go."""
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)


def coverage(report: Report) -> str:
    """What was reached, for people."""
    lines = [f"{report.schedules} schedules, {report.steps} steps, {report.faults.total()} faults",
             f"{report.counted} schedules count: at least {STEPS_MIN} steps and {FAULTS_MIN} faults"]
    lines += [f"  {report.faults[kind]:7}  {kind.value}" for kind in FaultKind]
    lines += [f"  {report.transitions[pair]:7}  {pair[0]} -> {pair[1]}" for pair in ALL_TRANSITIONS]
    lines += [f"  {number:7}  clients ended with {ending}" for ending, number in report.endings.most_common()]
    return "\n".join(lines)


def missing(report: Report) -> list[str]:
    """Fault kinds, transitions and outcomes that were never reached."""
    return [*(kind.name for kind in FaultKind if not report.faults[kind]),
            *(" -> ".join(pair) for pair in ALL_TRANSITIONS if not report.transitions[pair]),
            *(outcome.value for outcome in Outcome if not report.endings[_CAP + outcome.value])]


def _run(world: SimulatedWorld) -> None:
    calm_at = world.clock.seconds() + CALM_AFTER
    while not (world.running and all(c.over for c in world.clients) and _settled(world)):
        if not world.faults_left and world.clock.seconds() > calm_at:
            break
        if world.faults_left:
            calm_at = world.clock.seconds() + CALM_AFTER
        _step(world)
    world.heal()
    set_back = world.process.set_back + max(c.process.set_back for c in world.clients)
    until = world.clock.seconds() + ENDS_WITHIN + set_back
    while not all(c.over for c in world.clients):
        if not _step(world) or world.clock.seconds() > until:
            break
    invariants.check_clients(world)
    until = world.clock.seconds() + EXPIRES_WITHIN + set_back
    while not (world.running and _settled(world)):
        if not _step(world) or world.clock.seconds() > until:
            break
    invariants.check_end(world)


def _step(world: SimulatedWorld) -> bool:
    if world.steps > STEPS_MAX:
        raise Violation(f"{STEPS_MAX} steps, and no end")
    return world.step()


def _settled(world: SimulatedWorld) -> bool:
    """Whether every upload has come to its end, and nothing is left of it but its result."""
    uploads = world.uploads
    return (all(upload.over for upload in uploads._by_name.values()) and not world.spool_files()
            and uploads._room.used == 0 and not invariants.leftovers(world))
