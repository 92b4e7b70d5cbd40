"""A file that is stored already is found when it is streamed again: on real grids, with stock clients as witnesses."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import attrs
import pytest
from grid_tools import (
    HAPPY,
    MAX_SEGMENT,
    OPTIONS,
    SEGMENT,
    SERVERS,
    K,
    N,
    SharedGrid,
    Transcript,
    assert_stored,
    check,
    client_directory,
    convergence_secret,
    download,
    end_of,
    feed,
    give_convergence_secret,
    leases_of,
    put,
    put_in_progress,
    running_grid,
    servers_restored,
    share_paths,
    shared_grid,
    spool_of,
    storage_index,
    upload_as_stock,
    uploads_open,
    wait_for,
)
from oracle import cap_for
from staging_tools import STAGING, restarted_helper

from client_shim.blocking import UploadFile

SIZE = 3 * SEGMENT + 4321


@pytest.fixture(scope="module", params=["stock servers", "staging servers"])
def shared(request: pytest.FixtureRequest, pytestconfig: pytest.Config,
           tmp_path_factory: pytest.TempPathFactory) -> SharedGrid:
    if request.param == "stock servers":
        return shared_grid(pytestconfig, tmp_path_factory)
    return running_grid(pytestconfig, tmp_path_factory, "dedup-staging-grid", STAGING)


@attrs.define
class Desk:
    """A client with the convergence secret of a stock client, which reads for it."""

    shared: SharedGrid
    tmp_path: Path
    directory: Path = attrs.field(init=False)

    @property
    def secret(self) -> bytes:
        return convergence_secret(self.shared.grid.client)

    def stream(self, data: bytes, *arguments: str | Path, directory: Path | None = None) -> Transcript:
        """From a pipe."""
        return put(directory or self.directory, "--json", *arguments, stdin=data)

    def another(self, name: str, **parameters: int) -> Path:
        """A client with other parameters, and the same secret and reader."""
        directory = client_directory(self.tmp_path / name, self.shared.grid.helper_furl, **parameters)
        give_convergence_secret(directory, self.secret)
        shutil.copy(self.shared.grid.client.directory / "node.url", directory)
        return directory

    def settled(self) -> set[Path]:
        """Every share, once uploads have left nothing but those."""
        grid = self.shared.grid
        wait_for("nothing to be under way", lambda: not (grid.unfinished_shares() or spool_of(grid.helper)))
        return share_paths(grid)


@pytest.fixture
def desk(shared: SharedGrid, tmp_path: Path) -> Desk:
    desk = Desk(shared, tmp_path)
    desk.directory = desk.another("client")
    return desk


def outcome(transcript: Transcript) -> str:
    return str(transcript.events[-1]["dedup"])


def of(paths: set[Path], cap: str) -> set[Path]:
    return {path for path in paths if path.parent.name == storage_index(cap)}


@pytest.mark.parametrize(("size", "mode"), [(56, "on"), (SEGMENT, "trust"), (SIZE, "on")])
def test_file_that_a_stock_client_has_put(desk: Desk, size: int, mode: str) -> None:
    data = os.urandom(size)
    stocks = upload_as_stock(desk.shared.grid.client, data)
    before = desk.settled()
    streamed = desk.stream(data, f"--dedup={mode}")
    assert streamed.cap == stocks == cap_for(data, K, N, MAX_SEGMENT, desk.secret).decode()
    assert outcome(streamed) == "existing"
    assert desk.settled() == before, "no new share on any server"


def test_stock_cap_gets_leases_of_its_own(desk: Desk) -> None:
    data = os.urandom(SIZE)
    directory = client_directory(desk.tmp_path / "plain", desk.shared.grid.helper_furl)
    give_convergence_secret(directory, convergence_secret(desk.shared.plain_client))
    shutil.copy(desk.shared.plain_client.directory / "node.url", directory)
    stocks = upload_as_stock(desk.shared.plain_client, data)  # without a helper: under the client's own lease secrets
    assert {leases_of(share) for share in desk.shared.grid.shares(storage_index(stocks))} == {1}
    assert desk.stream(data, directory=directory).cap == stocks
    shares = desk.shared.grid.shares(storage_index(stocks))
    assert len(shares) == N
    assert {leases_of(share) for share in shares} == {2}


@pytest.mark.parametrize(("size", "mode"), [
    (SIZE, "on"), *(pytest.param(*case, marks=pytest.mark.long) for case in [(100_000, "on"), (SIZE, "trust")])])
def test_streamed_twice_back_to_back(desk: Desk, mode: str, size: int) -> None:
    data = os.urandom(size)
    before = desk.settled()
    first, second = desk.stream(data, f"--dedup={mode}"), desk.stream(data, f"--dedup={mode}")
    assert (outcome(first), outcome(second)) == ("published", "streamed-before")
    assert first.cap == second.cap
    assert len(desk.settled() - before) == N, "shares once"
    assert_stored(desk.shared, first.cap, data)


def test_streamed_twice_by_one_program(desk: Desk) -> None:
    data = os.urandom(SIZE)
    caps = set()
    for _ in range(3):
        with UploadFile(desk.directory) as f:
            f.write(data)
        caps.add(f.cap)
    assert len(caps) == 1


def test_stock_cap_goes_before_a_streamed_one(desk: Desk) -> None:
    data = os.urandom(SIZE)
    streamed = desk.stream(data).cap
    stocks = upload_as_stock(desk.shared.grid.client, data)
    desk.settled()
    again = desk.stream(data)
    assert (again.cap, outcome(again)) == (stocks, "existing")
    assert stocks != streamed


def test_off_finds_nothing_and_leaves_nothing(desk: Desk) -> None:
    data = os.urandom(SIZE)
    stocks = upload_as_stock(desk.shared.grid.client, data)
    desk.settled()
    off = desk.stream(data, "--dedup=off")
    assert outcome(off) == "published"
    assert off.cap != stocks
    other = os.urandom(SIZE)
    assert len({desk.stream(other, "--dedup=off").cap, desk.stream(other).cap}) == 2


def test_setting(desk: Desk) -> None:
    data = os.urandom(100_000)
    (desk.directory / "streaming.cfg").write_text("[client]\ndedup = off\n")
    assert desk.stream(data).cap != desk.stream(data).cap
    assert desk.stream(data, "--dedup=on").cap == desk.stream(data, "--dedup=on").cap


def test_other_convergence_secret(desk: Desk) -> None:
    data = os.urandom(SIZE)
    other = desk.another("other")
    give_convergence_secret(other, os.urandom(32))
    streamed = [desk.stream(data), desk.stream(data, directory=other)]
    assert len({each.cap for each in streamed}) == 2
    assert {outcome(each) for each in streamed} == {"published"}


@pytest.mark.parametrize("parameters", [
    pytest.param({"k": 2}, id="k"), pytest.param({"n": N - 1}, id="N", marks=pytest.mark.long),
    pytest.param({"max_segment": MAX_SEGMENT // 2}, id="segment size", marks=pytest.mark.long)])
def test_other_parameters(desk: Desk, parameters: dict[str, int]) -> None:
    data = os.urandom(SIZE)
    other = desk.another("other", **parameters)
    streamed = [desk.stream(data), desk.stream(data, directory=other), desk.stream(data, directory=other)]
    assert [outcome(each) for each in streamed] == ["published", "published", "streamed-before"]
    assert streamed[0].cap != streamed[1].cap == streamed[2].cap


def test_other_happiness_finds_the_file(desk: Desk) -> None:
    data = os.urandom(SIZE)
    first = desk.stream(data).cap
    desk.settled()
    assert desk.stream(data, directory=desk.another("other", happy=SERVERS)).cap == first
    assert HAPPY < SERVERS


@pytest.mark.parametrize("by", [pytest.param("stock", marks=pytest.mark.long), "stream"])
def test_one_share_is_missing(desk: Desk, by: str) -> None:
    data = os.urandom(SIZE)
    cap = upload_as_stock(desk.shared.grid.client, data) if by == "stock" else desk.stream(data).cap
    desk.settled()
    desk.shared.grid.shares(storage_index(cap))[0].path.unlink()
    again = desk.stream(data)
    assert outcome(again) == "published"
    assert again.cap != cap
    desk.settled()
    assert_stored(desk.shared, again.cap, data)
    assert desk.stream(data).cap == again.cap


def test_server_that_hangs_does_not_hold_it_up(desk: Desk) -> None:
    data = os.urandom(SIZE)
    server = desk.shared.grid.storage[0]
    with servers_restored(desk.shared, server):
        server.suspend()
        streamed = desk.stream(data)
        assert outcome(streamed) == "published"


@pytest.mark.parametrize("milliseconds", [50, *(
    pytest.param(each, marks=pytest.mark.long) for each in (0, 20, 100, 200))])
def test_helper_is_killed_while_it_is_decided(desk: Desk, milliseconds: int) -> None:
    """So long after the last byte. Either the old or the new file is complete."""
    data = os.urandom(SIZE)
    old = desk.stream(data).cap
    desk.settled()
    with restarted_helper(desk.shared) as start, put_in_progress(desk.directory, "--json") as process:
        feed(process, data)
        wait_for("the upload", lambda: uploads_open(desk.shared.grid.helper) > 0)  # else there is no helper to wait for
        assert process.stdin is not None
        process.stdin.close()
        time.sleep(milliseconds / 1000)  # a moment in the decision, whichever it is
        desk.shared.grid.helper.kill()
        start()
        process.stdin = None
        streamed = end_of(process)
    assert (streamed.cap == old) == (outcome(streamed) == "streamed-before")
    desk.settled()
    assert_stored(desk.shared, old, data)
    for reader in desk.shared.readers:  # a server that was not connected yet may have no share of the new file
        assert download(reader, streamed.cap) == data
        results = check(reader, streamed.cap)
        assert (results["healthy"], results["count-shares-good"]) == (True, N), results


def test_garbage_under_the_convergent_index(desk: Desk) -> None:
    """Somebody with the same secret has stored something else where the file would be."""
    data = os.urandom(SEGMENT)
    stocks = upload_as_stock(desk.shared.grid.client, data)
    desk.settled()
    for share in desk.shared.grid.shares(storage_index(stocks)):
        with share.path.open("r+b") as f:
            f.seek(12 + 0x44 + 1000)
            f.write(b"garbage")
    streamed = desk.stream(data)
    assert outcome(streamed) == "published"
    assert streamed.cap != stocks
    desk.settled()
    assert_stored(desk.shared, streamed.cap, data)


def test_client_node_does_not_run(desk: Desk) -> None:
    """What cannot be read is not believed."""
    data = os.urandom(SIZE)
    assert desk.stream(data).cap
    (desk.directory / "node.url").write_text("http://127.0.0.1:1/\n")
    assert outcome(desk.stream(data)) == "published"
    (desk.directory / "node.url").unlink()
    assert outcome(desk.stream(data)) == "published"
    assert outcome(desk.stream(data, "--dedup=trust")) == "streamed-before"


@pytest.mark.parametrize("size", [56, SIZE], ids=str)
def test_convergent_put_sends_nothing(desk: Desk, size: int, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(size))
    first = put(desk.directory, "--json", "--convergent", file)
    assert outcome(first) == "published"
    before = desk.settled()
    again = put(desk.directory, "--json", "--convergent", "--verify", file)
    assert (again.cap, outcome(again)) == (first.cap, "existing")
    assert again.events[-1]["bytes_sent"] == 0
    assert desk.settled() == before
    assert outcome(put(desk.directory, "--json", "--convergent", "--dedup=off", file)) == "published"


def test_convergent_put_does_not_take_a_streamed_file(desk: Desk, tmp_path: Path) -> None:
    """It promises stock's cap."""
    file = tmp_path / "file"
    file.write_bytes(os.urandom(SIZE))
    streamed = desk.stream(file.read_bytes()).cap
    convergent = put(desk.directory, "--json", "--convergent", file).cap
    assert convergent != streamed
    assert convergent == cap_for(file.read_bytes(), K, N, MAX_SEGMENT, desk.secret).decode()


def test_literal(desk: Desk) -> None:
    for _ in range(2):
        streamed = desk.stream(b"x" * 55)
        assert streamed.cap.startswith("URI:LIT:")
        assert outcome(streamed) == "published"


def test_options_are_those_of_the_grid() -> None:
    assert OPTIONS.storage_nodes == SERVERS == STAGING.storage_nodes
