"""Runs schedules, and says what they reached."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import attrs

from simulation import invariants
from simulation.entropy import entropy_from
from simulation.faults import FaultKind
from simulation.invariants import Violation
from simulation.schedule import Schedule
from simulation.simulated_world import SimulatedWorld

#: A schedule counts if it had so many steps, and so many faults struck.
STEPS_MIN = 60
FAULTS_MIN = 2

#: Simulated seconds after which faults stop, counted from the last one; and in which everything must end then.
CALM_AFTER = 100.0
ENDS_WITHIN = 2 * 3600.0
EXPIRES_WITHIN = 8 * 86400.0
#: More steps than this are a loop.
STEPS_MAX = 60_000


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


def run(schedule: Schedule, watch: Callable[[str], None] = lambda _line: None) -> Report:
    """Run one schedule to its end. Raises Violation."""
    with entropy_from(random.Random(f"entropy {schedule.seed}")), SimulatedWorld(schedule, watch) as world:
        try:
            _run(world)
        except Violation as e:
            e.add_note(f"at step {world.steps} of seed {schedule.seed}")
            raise
        counts = world.steps >= STEPS_MIN and world.fired_kinds.total() >= FAULTS_MIN
        endings = Counter("cap" if c.cap else "died" if c.died else c.error.code if c.error else "?"
                          for c in world.clients)
        return Report(1, world.steps, int(counts), world.fired_kinds, world.transitions, endings)


def _run(world: SimulatedWorld) -> None:
    calm_at = world.clock.seconds() + CALM_AFTER
    while not (world.running and all(c.over for c in world.clients) and _settled(world)):
        if not world.faults_left and world.clock.seconds() > calm_at:
            break
        if world.faults_left:
            calm_at = world.clock.seconds() + CALM_AFTER
        _step(world)
    world.heal()
    ahead = max(0.0, *(-c.process.ahead for c in world.clients), -world.process.ahead)
    until = world.clock.seconds() + ENDS_WITHIN + ahead
    while not all(c.over for c in world.clients):
        if not _step(world) or world.clock.seconds() > until:
            break
    invariants.check_clients(world)
    until = world.clock.seconds() + EXPIRES_WITHIN + ahead
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
    return all(upload.over for upload in world.uploads._by_name.values()) and not world.spool_files()
