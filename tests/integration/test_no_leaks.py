"""No plaintext on any disk; no key, cap, furl or upload ID in any log, nor in what `put` says."""

from __future__ import annotations

import bz2
import os
import signal
from base64 import b32encode, b64encode
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import reactor_loop
from allmydata import uri
from allmydata.util import base32
from foolscap.api import SturdyRef
from grid_tools import (
    HAPPY,
    MAX_SEGMENT,
    PATIENCE,
    SERVERS,
    K,
    MiB,
    N,
    SharedGrid,
    by_stock,
    client_directory,
    convergence_secret,
    download,
    end_of,
    feed,
    further_helper,
    give_convergence_secret,
    helper_furl,
    put,
    put_in_progress,
    servers_restored,
    spool_of,
    wait_for,
    wait_for_incoming,
)

from client_shim.blocking import UploadFile
from client_shim.errors import HelperRefused, UploadError
from client_shim.helper_edge import HelperLink, connect, make_tub
from client_shim.local_node import NodeProcess
from helper.parameters import Parameters

#: Repeated in every plaintext here. Any 16 bytes of it, wherever they begin, are looked for.
MARKER = os.urandom(32)
NEEDLES = [MARKER[:16], MARKER[16:]]

CHUNK = 4 * MiB


def plaintext(size: int) -> bytes:
    """Different each time; the marker all over."""
    return (os.urandom(7) + MARKER * (size // len(MARKER) + 1))[:size]


# -- looking -----------------------------------------------------------------------------------------------


def data_of(path: Path) -> Iterator[bytes]:
    """The bytes of a file, without its holes, in pieces that overlap by 64 bytes."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, OSError):
        return
    try:
        size = os.fstat(fd).st_size
        position = 0
        while position < size:
            try:
                position = os.lseek(fd, position, os.SEEK_DATA)
                end = min(os.lseek(fd, position, os.SEEK_HOLE), position + CHUNK)
            except OSError:  # nothing but holes from here on, or cut off meanwhile
                return
            yield os.pread(fd, end - position + 64, position)
            position = end
    finally:
        os.close(fd)


def holding(needles: list[bytes], *roots: Path) -> list[str]:
    """The files below `roots` that hold one of `needles`; compressed logs are looked into."""
    found = []
    for root in roots:
        for directory, _subdirectories, names in os.walk(root):
            for path in (Path(directory, name) for name in names):
                pieces = [bz2.decompress(path.read_bytes())] if path.suffix == ".bz2" else data_of(path)
                if path.is_file() and any(needle in piece for piece in pieces for needle in needles):
                    found.append(str(path))
    return found


def open_files_holding(needles: list[bytes], *pids: int) -> list[str]:
    """Files that processes have open, perhaps without a name any more."""
    found = []
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                regular = fd.is_file()
            except OSError:
                continue
            if regular and any(needle in piece for piece in data_of(fd) for needle in needles):
                found.append(os.readlink(fd))
    return found


def spellings(secret: bytes | str) -> list[bytes]:
    """How bytes may appear in a text."""
    if isinstance(secret, str):
        return [secret.encode()]
    base32_of = b32encode(secret).rstrip(b"=")
    return [secret, secret.hex().encode(), base32_of, base32_of.lower(), b64encode(secret).rstrip(b"="),
            base32.b2a(secret), repr(secret)[2:-1].encode()]


def secrets_of(cap: str) -> list[bytes | str]:
    """What is secret about a cap."""
    return [cap, cap.split(":")[2], uri.from_string(cap.encode()).key]


def logs_of(node: NodeProcess) -> list[Path]:
    """Everything a node writes down for people."""
    return [node.log_path, *(path for path in (node.directory / "logs").rglob("*") if path.is_file())]


# -- a run -------------------------------------------------------------------------------------------------


@attrs.define
class Run:
    """Uploads good and bad through one helper, and what must not be seen of them."""

    helper: NodeProcess
    temporary: Path
    secrets: list[bytes | str] = attrs.field(factory=list)
    said: list[str] = attrs.field(factory=list)
    """Standard error of every `put`."""
    good: list[tuple[str, bytes]] = attrs.field(factory=list)


@pytest.fixture(scope="module")
def run(shared: SharedGrid, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    directory = tmp_path_factory.mktemp("no-leaks")
    (directory / "tmp").mkdir()
    settings = "[helper]\naway-patience = 1 second\nneeded-patience = 3 seconds\n"
    with further_helper(shared.grid, "watched-helper", settings=settings) as helper:
        run = Run(helper, directory / "tmp")
        client = client_directory(directory / "client", helper_furl(helper))
        (client / "node.url").write_text(f"{shared.grid.client.web_url}\n")
        give_convergence_secret(client, convergence_secret(shared.grid.client))
        run.secrets += [convergence_secret(shared.grid.client), SturdyRef(helper_furl(helper)).name]
        run.secrets += [SturdyRef((helper.directory / "private" / "streaming-helper.furl").read_text().strip()).name]
        commands_that_succeed(run, client)
        commands_that_fail(shared, run, client)
        programs(shared, run, client)
        calls_by_hand(run)
        yield run


def commands_that_succeed(run: Run, client: Path) -> None:
    environment = {"TMPDIR": str(run.temporary)}
    data = plaintext(3 * MiB + 5)
    file = client.parent / "file"
    for arguments in (["-"], ["--json", "--verify", "-"], ["--convergent", file], ["--verify", "--json", file]):
        file.write_bytes(data)
        transcript = put(client, *arguments, stdin=data, environment=environment)
        file.unlink()
        run.good.append((transcript.cap, data))
        run.said.append(transcript.err)
        run.secrets += secrets_of(transcript.cap)


def commands_that_fail(shared: SharedGrid, run: Run, client: Path) -> None:
    run.said.append(put(client, "--from-command", "--", "false").err)
    with put_in_progress(client, "-") as process:
        feed(process, plaintext(2 * MiB))
        wait_for_incoming(shared.grid, HAPPY)
        # While everything is under way: also what has been unlinked, or never had a name.
        assert open_files_holding(NEEDLES, run.helper.pid, process.pid) == []
        assert holding(NEEDLES, shared.grid.basedir, run.temporary) == []
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 1
        run.said.append(end_of(process).err)


def programs(shared: SharedGrid, run: Run, client: Path) -> None:
    """Good; aborted; killed servers; one too many killed."""
    data = plaintext(4 * MiB)
    victims = shared.grid.storage[:2]
    with servers_restored(shared, *victims):
        f = begin(run, client)
        f.write(data[:2 * MiB])
        wait_for_incoming(shared.grid, SERVERS)
        victims[0].kill()
        f.write(data[2 * MiB:])
        f.close()
        run.good.append((f.cap, data))
        run.secrets += secrets_of(f.cap)
        f = begin(run, client)
        f.write(data[:2 * MiB])
        victims[1].kill()
        with pytest.raises(UploadError):
            end(f, data[2 * MiB:])
    shared.grid.wait_connected(run.helper, SERVERS)
    f = begin(run, client)
    f.write(data)
    f.abort()


def begin(run: Run, client: Path) -> UploadFile:
    f = UploadFile(client)
    assert f._upload is not None
    run.secrets += [f._upload._upload_id, f._upload._key]
    return f


def end(f: UploadFile, data: bytes) -> None:
    f.write(data)
    f.close()


def calls_by_hand(run: Run) -> None:
    """Every call, refused in some way; also arguments that Foolscap itself refuses."""
    upload_id, long_id = os.urandom(32), os.urandom(40)
    run.secrets += [upload_id, long_id]
    tub = reactor_loop.now(make_tub)
    reactor_loop.now(tub.startService)

    async def refused(link: HelperLink) -> None:
        await link.open(upload_id, Parameters(K, HAPPY, N, MAX_SEGMENT).to_wire())
        await link.put_ciphertext(upload_id, 0, bytes(100))
        link._rref.tracker.interface = None  # so that the helper's side of the wire is reached by what follows
        for method, arguments in (
            ("open", (upload_id, {b"k": 1})), ("open", (upload_id, {b"k": b"three"})), ("open", (upload_id,)),
            ("put_ciphertext", (upload_id, 0, b"other")), ("put_ciphertext", (upload_id, "zero", b"")),
            ("status", (long_id,)), ("status", (bytes(100) + upload_id,)),
            ("assign", (upload_id, upload_id[:15])), ("assign", (upload_id, upload_id + upload_id)),
            ("finish", (upload_id, 100, bytes(16), bytes(32), bytes(32))), ("finish", (upload_id,)),
            ("no_such_method", (upload_id,)), ("abort", (upload_id, upload_id)),
        ):
            with pytest.raises(UploadError):
                await link._call(method, *arguments)
        with pytest.raises(HelperRefused):
            await link.status(long_id[:32])
        await link.abort(upload_id)
        with pytest.raises(UploadError):  # the last call: who sends this is dropped
            await link._call("put_ciphertext", upload_id, 0, bytes(5 * MiB))

    async def all_of_it() -> None:
        await refused(await connect(tub, helper_furl(run.helper)))

    reactor_loop.run(all_of_it, PATIENCE)
    reactor_loop.run(tub.stopService, PATIENCE)


# -- what was left -----------------------------------------------------------------------------------------


def test_no_plaintext_on_any_disk(shared: SharedGrid, run: Run) -> None:
    assert holding(NEEDLES, shared.grid.basedir, run.temporary) == []
    pids = [node.pid for node in (run.helper, *shared.grid.nodes)]
    assert open_files_holding(NEEDLES, *pids) == []


def test_the_search_finds_what_is_there(shared: SharedGrid, run: Run, tmp_path: Path) -> None:
    cap, data = run.good[0]
    ciphertext_block = by_stock(cap, data).shares[1][500_000:500_032]
    assert len(holding([ciphertext_block], shared.grid.basedir)) == 1
    with (tmp_path / "sparse").open("wb") as f:
        f.seek(1 << 40)
        f.write(b"x" * (2 * CHUNK - 8) + MARKER)
    (tmp_path / "log.bz2").write_bytes(bz2.compress(MARKER))
    assert len(holding(NEEDLES, tmp_path)) == 2
    with (tmp_path / "unlinked").open("wb") as f:
        f.write(MARKER)
        f.flush()
        (tmp_path / "unlinked").unlink()
        assert len(open_files_holding(NEEDLES, os.getpid())) == 1


def test_good_uploads_were_good(shared: SharedGrid, run: Run) -> None:
    assert len(run.good) == 5
    for cap, data in run.good:
        assert download(shared.plain_client, cap) == data


def test_nothing_secret_is_logged(run: Run) -> None:
    logs = logs_of(run.helper)
    assert b"upload " in run.helper.log_path.read_bytes(), "it does log uploads"
    for path in logs:
        content = bz2.decompress(path.read_bytes()) if path.suffix == ".bz2" else path.read_bytes()
        for secret in run.secrets:
            for spelling in spellings(secret):
                assert spelling not in content, f"{path.name} has {secret!r} as {spelling!r}"


def test_nothing_secret_is_said(run: Run) -> None:
    for text in run.said:
        for secret in run.secrets:
            for spelling in spellings(secret):
                assert spelling not in text.encode()


def test_upload_ids_and_keys_are_on_no_disk(shared: SharedGrid, run: Run) -> None:
    binary = [secret for secret in run.secrets if isinstance(secret, bytes)]
    secret_of_the_client, *others = binary
    assert secret_of_the_client == convergence_secret(shared.grid.client)
    needles = [spelling for secret in others for spelling in spellings(secret)]
    assert holding(needles, run.helper.directory, *(node.directory for node in shared.grid.storage)) == []


def test_spool_is_empty(run: Run) -> None:
    wait_for("an empty spool", lambda: not spool_of(run.helper))
