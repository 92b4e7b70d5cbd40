"""`put --convergent` of a file that is edited meanwhile: one keystream never covers two plaintexts.

A recording helper stands before the real one. Stock's encoder says what the ciphertext of the file is, as it was
when the key was made from it (pass one): whatever is sent under that key must be a part of that.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import reactor_loop
from grid_tools import (
    MAX_SEGMENT,
    PATIENCE,
    SEGMENT,
    K,
    N,
    SharedGrid,
    assert_stored,
    client_directory,
    give_convergence_secret,
    put,
    share_paths,
    wait_until_clean,
)
from oracle import Encoded, encode
from recording_helper import Recorder, recording_helper

from client_shim.errors import SourceChanged
from client_shim.put import Put, PutOptions
from client_shim.report import Report

SIZE = 4 * SEGMENT + 54_321
SECRET = b"convergence secret of this test."

Edit = Callable[[Path], None]


@attrs.define
class Desk:
    """A client whose helper records, and a file. `trigger` makes the edit when the helper sees a certain call."""

    shared: SharedGrid
    directory: Path
    file: Path
    recorder: Recorder
    when: tuple[str, int] | None = None
    edit: Edit = lambda _file: None

    def put(self) -> Any:
        return put(self.directory, "--convergent", "--json", self.file)

    def saw(self, method: str, offset: int) -> None:
        """Make the edit at the first call of `when[0]` at or after offset `when[1]`."""
        if self.when is not None and method == self.when[0] and offset >= self.when[1]:
            self.when = None
            self.edit(self.file)


@pytest.fixture
def desk(shared: SharedGrid, tmp_path: Path) -> Iterator[Desk]:
    holder: list[Desk] = []
    with recording_helper(shared.grid.helper_furl, lambda method, offset: holder[0].saw(method, offset)) as recorder:
        directory = client_directory(tmp_path / "client", recorder.furl)
        give_convergence_secret(directory, SECRET)
        (tmp_path / "file").write_bytes(os.urandom(SIZE))
        holder.append(Desk(shared, directory, tmp_path / "file", recorder))
        yield holder[0]


def stocks(data: bytes) -> Encoded:
    """What stock makes of a file under our convergence secret."""
    return encode(data, K, N, MAX_SEGMENT, SECRET, keep=False)


def assert_sent_only(recorder: Recorder, *versions: bytes) -> None:
    """Whatever was sent under a key made from one of `versions` is its ciphertext, at every offset; and nothing
    was sent under any other key."""
    ciphertexts = {stock.storage_index: stock.ciphertext for stock in map(stocks, versions)}
    for upload in recorder.uploads:
        (storage_index,) = upload.storage_indexes
        for offset, data in upload.pieces:
            assert data == ciphertexts[storage_index][offset:offset + len(data)]


def overwrite(position: int, data: bytes = b"edited") -> Edit:
    def edit(file: Path) -> None:
        with file.open("r+b", buffering=0) as f:
            f.seek(position)
            f.write(data)

    return edit


def cut_to(size: int) -> Edit:
    return lambda file: os.truncate(file, size)


def append(file: Path) -> None:
    with file.open("ab") as f:
        f.write(b"more")


#: Edits, and the offset of the first segment that is not what it was.
EDITS = [
    pytest.param(overwrite(0), 0, id="first byte"),
    pytest.param(overwrite(2 * SEGMENT - 1, b"x"), SEGMENT, id="last byte of a segment"),
    pytest.param(overwrite(2 * SEGMENT), 2 * SEGMENT, id="first byte of a segment"),
    pytest.param(overwrite(SIZE - 6), 4 * SEGMENT, id="last bytes"),
    pytest.param(cut_to(0), 0, id="cut to nothing"),
    pytest.param(cut_to(2 * SEGMENT), 2 * SEGMENT, id="cut between segments"),
    pytest.param(cut_to(2 * SEGMENT + 5), 2 * SEGMENT, id="cut in a segment"),
    pytest.param(append, 4 * SEGMENT, id="grown"),
]


@pytest.mark.parametrize(("edit", "changed"), EDITS)
def test_edit_between_the_passes(desk: Desk, edit: Edit, changed: int) -> None:
    before = desk.file.read_bytes()
    shares = share_paths(desk.shared.grid)
    desk.when, desk.edit = ("open", -1), edit  # the upload is opened after pass one, before pass two
    told = desk.put().failed_with("source-changed")
    assert told["offset"] == changed
    assert f"offset {changed}" in told["text"]
    (upload,) = desk.recorder.uploads
    assert upload.length <= changed, "nothing of the changed segment was sent"
    assert upload.calls[-1] == "abort"
    assert "finish" not in upload.calls
    assert_sent_only(desk.recorder, before)
    wait_until_clean(desk.shared.grid, desk.shared.grid.helper, shares)


@pytest.mark.parametrize(("edit", "changed"), [
    pytest.param(overwrite(SEGMENT), SEGMENT, id="next segment"),
    pytest.param(overwrite(4 * SEGMENT), 4 * SEGMENT, id="last segment"),
    pytest.param(cut_to(3 * SEGMENT - 1), 2 * SEGMENT, id="cut"),
    pytest.param(append, 4 * SEGMENT, id="grown"),
])
def test_edit_during_the_second_pass(desk: Desk, edit: Edit, changed: int) -> None:
    before = desk.file.read_bytes()
    # At the first ciphertext: while it is not acknowledged, the client reads no further than the first segment.
    desk.when, desk.edit = ("put_ciphertext", 0), edit
    assert desk.put().failed_with("source-changed")["offset"] == changed
    (upload,) = desk.recorder.uploads
    assert 0 < upload.length <= changed
    assert_sent_only(desk.recorder, before)


def test_file_of_whole_segments_that_grows(desk: Desk) -> None:
    desk.file.write_bytes(before := os.urandom(2 * SEGMENT))
    desk.when, desk.edit = ("put_ciphertext", 0), append
    assert desk.put().failed_with("source-changed")["offset"] == 2 * SEGMENT
    (upload,) = desk.recorder.uploads
    assert upload.length <= 2 * SEGMENT
    assert "finish" not in upload.calls
    assert_sent_only(desk.recorder, before)


def test_edit_of_what_was_sent_already_does_not_matter(desk: Desk) -> None:
    before = desk.file.read_bytes()
    desk.when, desk.edit = ("put_ciphertext", SEGMENT), overwrite(100)
    transcript = desk.put()
    assert desk.file.read_bytes() != before
    assert transcript.cap == stocks(before).cap.decode()
    assert_stored(desk.shared, transcript.cap, before)
    assert_sent_only(desk.recorder, before)


def test_attempts_with_a_file_that_changes_to_and_fro(desk: Desk) -> None:
    """Several uploads under two keys, interrupted and complete; each key's ciphertext is always the same."""
    first = desk.file.read_bytes()
    desk.when, desk.edit = ("open", -1), overwrite(3 * SEGMENT + 1)
    desk.put().failed_with("source-changed")
    second = desk.file.read_bytes()
    assert first != second
    desk.when, desk.edit = ("put_ciphertext", 0), overwrite(3 * SEGMENT + 1, first[3 * SEGMENT + 1:][:6])
    desk.put().failed_with("source-changed")
    assert desk.file.read_bytes() == first
    assert desk.put().cap == stocks(first).cap.decode()
    desk.file.write_bytes(second)
    cap = desk.put().cap
    assert cap == stocks(second).cap.decode()
    assert_stored(desk.shared, cap, second)
    assert len(desk.recorder.uploads) == 4
    assert_sent_only(desk.recorder, first, second)


# -- edits while pass one reads ----------------------------------------------------------------------------


class WatchedFile(io.FileIO):
    """Edits the file when reading has come to a position."""

    def __init__(self, path: Path, position: int, edit: Edit) -> None:
        super().__init__(path, "rb")
        self._path = path
        self._position = position
        self._edit: Edit | None = edit

    def read(self, size: int | None = -1, /) -> bytes:
        if self._edit is not None and self.tell() >= self._position:
            edit, self._edit = self._edit, None
            edit(self._path)
        data: bytes | None = super().read(size)
        assert data is not None
        return data


class WatchedPath(type(Path())):  # type: ignore[misc]
    """A path that opens as a WatchedFile."""

    def watch(self, position: int, edit: Edit) -> WatchedPath:
        self.watched = (position, edit)
        return self

    @contextmanager
    def open(self, *_args: object, **_kwargs: object) -> Iterator[WatchedFile]:
        with WatchedFile(Path(self), *self.watched) as f:
            yield f


def put_watched(desk: Desk, position: int, edit: Edit) -> bytes:
    """`put --convergent` in this process; `edit` is made when pass one has read up to `position`."""
    options = PutOptions(desk.directory, WatchedPath(desk.file).watch(position, edit), convergent=True)

    async def run() -> bytes:
        return await Put(options, Report(io.StringIO(), as_json=True)).run()

    return reactor_loop.run(run, PATIENCE)


def test_edit_of_what_pass_one_has_read(desk: Desk) -> None:
    before = desk.file.read_bytes()
    with pytest.raises(SourceChanged) as caught:
        put_watched(desk, 2 * SEGMENT, overwrite(SEGMENT + 1))
    assert caught.value.offset == SEGMENT
    (upload,) = desk.recorder.uploads
    assert upload.length <= SEGMENT
    assert_sent_only(desk.recorder, before)


def test_edit_of_what_pass_one_has_not_read_yet(desk: Desk) -> None:
    cap = put_watched(desk, 2 * SEGMENT, overwrite(2 * SEGMENT)).decode()
    after = desk.file.read_bytes()
    assert cap == stocks(after).cap.decode()
    assert_stored(desk.shared, cap, after)
    assert_sent_only(desk.recorder, after)


@pytest.mark.parametrize("edit", [append, cut_to(3 * SEGMENT)])
def test_size_that_changes_in_pass_one(desk: Desk, edit: Edit) -> None:
    with pytest.raises(SourceChanged):
        put_watched(desk, 2 * SEGMENT, edit)
    assert desk.recorder.uploads == [], "pass one is over before anything is sent"
