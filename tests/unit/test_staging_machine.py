"""StagingServer against a small model: any calls, kills, losses of power, stock writers and idle times."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import attrs
from allmydata.storage.immutable import ShareFile
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from staging_node import HEADER, SI, SI2, Node

from helper import staging_errors as errors
from helper.layout import DATA_OFFSET
from helper.staged_share import SYNC_INTERVAL

MiB = 1024 * 1024
NAMES = [b"a" * 32, b"b" * 32]
#: Share data of any share of a staging, so that a byte at the wrong offset shows.
DATA = {name: b"".join(name[:1] + i.to_bytes(7, "big") for i in range(3 * MiB)) for name in NAMES}

names = st.sampled_from(NAMES)
shnums = st.integers(0, 2)
some_shnums = st.lists(shnums, min_size=1, max_size=3)
indexes = st.sampled_from([SI, SI2])


@attrs.define
class Model:
    """A share as the caller knows it."""

    length: int = DATA_OFFSET
    prepared: bool = False
    header: bool = False


class Staging(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.node = Node(Path(self.directory.name) / "storage")
        self.staged: dict[tuple[bytes, int], Model] = {}
        self.published: dict[tuple[bytes, int], bytes] = {}
        self.writers: dict[tuple[bytes, int], Any] = {}
        self.touched: dict[bytes, float] = {}

    def teardown(self) -> None:
        self.node.stop()
        self.directory.cleanup()

    def touch(self, name: bytes) -> None:
        self.touched[name] = self.node.clock.seconds()

    def of(self, name: bytes) -> dict[int, Model]:
        return {shnum: share for (staged, shnum), share in sorted(self.staged.items()) if staged == name}

    # -- calls ------------------------------------------------------------------------------------------------

    @rule(name=names, numbers=some_shnums, size=st.sampled_from([0, 1000]))
    def stage(self, name: bytes, numbers: list[int], size: int) -> None:
        self.node.stage(name, numbers, size)
        for shnum in numbers:
            self.staged.setdefault((name, shnum), Model())
        self.touch(name)

    @rule(name=names, shnum=shnums, size=st.sampled_from([1, 1000, MiB, SYNC_INTERVAL - 1, SYNC_INTERVAL]),
          back=st.sampled_from([0, 0, 0, 500, -1]))
    def write(self, name: bytes, shnum: int, size: int, back: int) -> None:
        share = self.staged.get((name, shnum), Model())
        offset = max(DATA_OFFSET, share.length - back)
        data = DATA[name][offset:offset + size]
        if (name, shnum) not in self.staged:
            self.refused(errors.UnknownStaging, self.node.write, name, shnum, offset, data)
            return
        self.touch(name)
        if share.prepared:
            self.refused(errors.AlreadyPrepared, self.node.write, name, shnum, offset, data)
        elif offset > share.length:
            self.refused(errors.OffsetGap, self.node.write, name, shnum, offset, data)
        else:
            share.length = max(share.length, offset + len(data))
            answer = self.node.write(name, shnum, offset, data)
            assert answer["length"] == share.length
            assert share.length - answer["synced"] < SYNC_INTERVAL

    @rule(name=names, shnum=shnums, with_header=st.booleans())
    def prepare(self, name: bytes, shnum: int, with_header: bool) -> None:
        share = self.staged.get((name, shnum))
        if share is None:
            self.refused(errors.UnknownStaging, self.node.prepare, name, shnum, DATA_OFFSET + 1)
            return
        if not share.prepared and with_header:
            self.node.write(name, shnum, 0, HEADER)
            share.header = True
        if share.length > DATA_OFFSET and not share.header:
            return  # after a kill it may be there, after a loss of power it is not
        self.touch(name)
        if share.length == DATA_OFFSET:
            self.refused(errors.WrongSize, self.node.prepare, name, shnum, share.length)
        else:
            self.node.prepare(name, shnum, share.length)
            self.node.prepare(name, shnum, share.length)
            share.prepared = True

    @rule(name=names, index=indexes, numbers=st.lists(shnums, max_size=3))
    def assign(self, name: bytes, index: bytes, numbers: list[int]) -> None:
        mine = self.of(name)
        if not mine:
            self.refused(errors.UnknownStaging, self.node.assign, name, index, numbers)
            return
        self.touch(name)
        expected = {}
        for shnum in numbers or [n for n, share in mine.items() if share.prepared]:
            place, share = (index, shnum), mine.get(shnum)
            if share is None:
                expected[shnum] = "unknown"
            elif not share.prepared:
                expected[shnum] = "not-prepared"
            elif place in self.published:
                expected[shnum] = "already-there"
            else:
                expected[shnum] = "busy" if place in self.writers else "assigned"
        for shnum, outcome in expected.items():
            if outcome in ("assigned", "already-there"):
                share = self.staged.pop((name, shnum))
                if outcome == "assigned":
                    self.published[index, shnum] = HEADER + DATA[name][DATA_OFFSET:share.length]
        assert self.node.assign(name, index, numbers) == expected

    @rule(name=names, numbers=st.lists(shnums, max_size=2))
    def abort(self, name: bytes, numbers: list[int]) -> None:
        self.node.abort(name, numbers)
        for shnum in numbers or list(self.of(name)):
            self.staged.pop((name, shnum), None)
        self.touch(name)

    def refused(self, error: type[Exception], call: Any, *arguments: Any) -> None:
        try:
            call(*arguments)
        except error:
            return
        raise AssertionError(f"expected {error.__name__}")

    # -- what else happens ------------------------------------------------------------------------------------

    @rule(index=indexes, shnum=shnums)
    def stock_allocates(self, index: bytes, shnum: int) -> None:
        already, writers = self.node.stock.allocate_buckets(index, b"r" * 32, b"c" * 32, {shnum}, 8)
        assert (shnum in already) == ((index, shnum) in self.published)
        self.writers.update({(index, number): writer for number, writer in writers.items()})

    @precondition(lambda self: self.writers)
    @rule(closes=st.booleans())
    def stock_ends(self, closes: bool) -> None:
        place, writer = self.writers.popitem()
        if closes:
            writer.write(0, b"by stock")
            writer.close()
            self.published[place] = b"by stock"
        else:
            writer.abort()

    @rule(end=st.sampled_from(["restart", "kill", "lose_power"]))
    def end(self, end: str) -> None:
        getattr(self.node, end)()
        self.writers.clear()
        for name in NAMES:
            mine = self.of(name)
            if not mine:
                continue
            held = {share.shnum: share for share in self.node.held(name)}
            assert {*held} == {*mine}
            self.touch(name)
            for shnum, share in mine.items():
                if share.prepared:
                    assert held[shnum].length == share.length
                else:
                    assert 0 <= share.length - held[shnum].length < SYNC_INTERVAL
                    share.length, share.header = held[shnum].length, False

    @rule(days=st.integers(1, 8))
    def idle(self, days: int) -> None:
        for _hour in range(24 * days):
            self.node.clock.advance(3600)
        if self.writers:  # half an hour is enough for theirs
            self.writers.clear()
        oldest = self.node.clock.seconds() - self.node.limits.expiry
        not_empty = {name for (name, _shnum), share in self.staged.items() if share.length > DATA_OFFSET}
        self.staged = {(name, shnum): share for (name, shnum), share in self.staged.items()
                       if self.touched[name] >= oldest and name in not_empty}

    # -- what always holds ------------------------------------------------------------------------------------

    @invariant()
    def files_are_those_of_the_model(self) -> None:
        files = self.node.staged_files()
        assert sorted(path.name for path in files if path.is_file()) == sorted(str(n) for _name, n in self.staged)
        assert len([path for path in files if path.is_dir()]) == len({name for name, _n in self.staged})
        assert self.node.count("staged_now") == len(self.staged)

    @invariant()
    def shares_are_those_of_the_model(self) -> None:
        for index in (SI, SI2):
            there = dict(self.node.stock.get_shares(index))
            assert {*there} == {shnum for published, shnum in self.published if published == index}
            for shnum, path in there.items():
                share = ShareFile(path)
                assert share.read_share_data(0, 10**8) == self.published[index, shnum]
                assert len(list(share.get_leases())) >= 1


TestStaging = Staging.TestCase
TestStaging.settings = settings(stateful_step_count=30)
