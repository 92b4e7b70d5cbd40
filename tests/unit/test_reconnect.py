"""An upload over connections that break and helpers that are started again (client_shim/reconnect.py, outbox.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_helper import ModelHelper
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from world import KEY, SI, begin, expected, outcome, plaintext, write_all

from client_shim.cipher import Encryptor
from client_shim.disclosure import RevealStorageIndex
from client_shim.errors import (
    HelperLost,
    HelperMisbehaved,
    HelperRefused,
    HelperUnreachable,
    StockHelper,
    UploadClosed,
    UploadError,
)
from client_shim.reconnect import ATTEMPT_MAX, BACKOFF_MAX
from client_shim.upload import PATIENCE, StreamingUpload
from client_shim.window import WINDOW_MIN
from helper.parameters import Parameters

PARAMETERS = Parameters(2, 3, 4, 500)
DATA = plaintext(2000)
CIPHERTEXT = Encryptor(KEY).encrypt(DATA)
CAP = expected(DATA, PARAMETERS).cap

#: Everything that can become of a call and its connection.
FATES = ["lost", "done", "killed", "done, killed", "helper-stopping"]


class Scene:
    """An upload and its helper."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.helper = ModelHelper(self.clock, PARAMETERS)
        self.told: list[str] = []
        self.upload = StreamingUpload(
            self.helper.connect, PARAMETERS, self.clock, key=KEY, on_failed=lambda: self.told.append("failed"),
            on_paused=lambda why, patience: self.told.append(f"{why.code} {patience:g}"),
            on_resumed=lambda seconds: self.told.append(f"resumed {seconds:.2f}"), **options)

    def wait(self, seconds: float) -> None:
        end = self.clock.seconds() + seconds
        while (due := min((call.getTime() for call in self.clock.getDelayedCalls()), default=end)) <= end:
            self.clock.advance(max(0.0, due - self.clock.seconds()))
            if due == end:
                break
        self.clock.advance(max(0.0, end - self.clock.seconds()))

    def result(self, call: Any, patience: float = 2 * PATIENCE) -> Any:
        """Its result; an UploadError is one, too."""
        results = outcome(begin(call))
        end = self.clock.seconds() + patience
        while not results and self.clock.getDelayedCalls() and self.clock.seconds() < end:
            self.clock.advance(min(c.getTime() for c in self.clock.getDelayedCalls()) - self.clock.seconds())
        assert results, "no result"
        value = getattr(results[0], "value", results[0])
        if isinstance(value, BaseException) and not isinstance(value, UploadError):
            raise value
        return value

    def put(self) -> Any:
        return self.result(write_all(self.upload, DATA, 150))

    def check_ciphertext(self) -> None:
        """What the helper has is the ciphertext, and nothing else was ever sent."""
        assert bytes(self.helper.only().received) == bytes(self.helper.seen) == CIPHERTEXT


def fates(*each: str) -> Callable[[str], str]:
    """One after the other, then "ok"."""
    left = list(each)
    return lambda _method: left.pop(0) if left else "ok"


def fate_of(method: str, *each: str) -> Callable[[str], str]:
    """The fates of the first calls of one method."""
    left = list(each)
    return lambda called: left.pop(0) if left and called == method else "ok"


def calls_undisturbed() -> list[str]:
    scene = Scene()
    assert scene.put() == CAP
    assert scene.told == []
    scene.check_ciphertext()
    return scene.helper.calls


@pytest.mark.parametrize("fate", FATES)
def test_cut_at_every_call(fate: str) -> None:
    calls = calls_undisturbed()
    assert {"open", "assign", "put_ciphertext", "finish"} == set(calls)
    for number in range(len(calls)):
        scene = Scene()
        scene.helper.fate = fates(*["ok"] * number, fate)
        assert scene.put() == CAP, number
        scene.check_ciphertext()
        assert set(scene.helper.only().storage_indexes) == {SI}
        assert [line.split()[0] for line in scene.told] == [
            "helper-stopping" if fate == "helper-stopping" else "helper-lost", "resumed"]
        assert len(scene.helper.connects) == 2


@given(schedule=st.lists(st.sampled_from(["ok", "ok", "ok", *FATES]), max_size=60),
       writes=st.lists(st.integers(0, 400), max_size=10), sync_time=st.sampled_from([0.0, 0.01, 1.0]))
def test_s1_over_any_schedule_of_cuts_no_offset_carries_two_ciphertexts(
        schedule: Sequence[str], writes: Sequence[int], sync_time: float) -> None:
    """ModelHelper compares every byte that is sent with what was sent before; and in the end it has exactly the
    ciphertext, once."""
    scene = Scene()
    scene.helper.sync_time = sync_time
    scene.helper.fate = fates(*schedule)
    position = 0
    for size in writes:
        assert scene.result(scene.upload.write(DATA[position:position + size])) is None
        position += len(DATA[position:position + size])
    assert scene.result(scene.upload.write(DATA[position:])) is None
    assert scene.result(scene.upload.close()) == CAP
    scene.check_ciphertext()
    assert scene.helper.most_unanswered <= 1000
    assert "failed" not in scene.told


@given(schedule=st.lists(st.sampled_from(["ok", *FATES]), max_size=40), moment=st.floats(0, 30))
def test_abort_at_any_moment_of_any_schedule(schedule: Sequence[str], moment: float) -> None:
    scene = Scene()
    scene.helper.fate = fates(*schedule)
    put = outcome(begin(write_all(scene.upload, DATA, 150)))
    scene.wait(moment)
    aborted = outcome(begin(scene.upload.abort()))
    scene.wait(60)
    assert aborted == [None]
    assert put == [CAP] or isinstance(put[0].value, UploadClosed)
    connects = len(scene.helper.connects)
    scene.wait(2 * PATIENCE)
    assert len(scene.helper.connects) == connects
    assert not scene.clock.getDelayedCalls()


# -- what is sent again ---------------------------------------------------------------------------------------


def test_the_program_notices_nothing_but_a_pause() -> None:
    scene = Scene()
    assert scene.result(scene.upload.write(DATA[:500])) is None
    scene.helper.up = False
    scene.helper.cut()
    writing = outcome(begin(scene.upload.write(DATA[500:])))
    scene.wait(100)
    assert writing == []
    scene.helper.up = True
    scene.wait(BACKOFF_MAX + 1)
    assert writing == [None]
    assert scene.result(scene.upload.close()) == CAP
    assert [told.split()[0] for told in scene.told] == ["helper-lost", "resumed"]
    assert scene.told[0] == "helper-lost 3600"


def test_it_goes_on_from_what_is_durable_with_a_new_window() -> None:
    scene = Scene()
    scene.helper.open_fields = {"credit": 10**6}
    scene.helper.sync_time = 1000
    large = plaintext(WINDOW_MIN + 5000)
    writing = outcome(begin(scene.upload.write(large)))
    scene.wait(1)
    assert writing == []
    assert scene.upload.progress.sent > WINDOW_MIN - 100
    scene.helper.only().durable = 1050
    scene.helper.kill()
    scene.helper.calls.clear()
    scene.helper.most_unanswered = 0
    scene.wait(1)
    assert scene.helper.calls[0] == "status"
    assert scene.upload.progress.durable == 1050
    assert WINDOW_MIN - 100 < scene.helper.most_unanswered <= WINDOW_MIN
    assert len(scene.helper.only().received) == scene.upload.progress.sent == 1050 + scene.helper.most_unanswered
    scene.helper.sync_time = 0.01
    scene.helper.kill()
    scene.wait(10)
    assert writing == [None]
    assert bytes(scene.helper.seen) == Encryptor(KEY).encrypt(large)[:len(scene.helper.seen)]


def test_what_waits_for_more_is_sent_when_the_helper_is_back() -> None:
    """Nobody has to write again for it."""
    scene = Scene()
    scene.result(scene.upload.write(DATA[:150]))
    scene.helper.cut()
    scene.wait(5)
    assert scene.upload.progress.durable == 150


def test_answers_that_come_too_late_are_ignored() -> None:
    """The helper says that it stops, to one call; the others of that connection are answered all the same."""
    scene = Scene()
    scene.helper.sync_time = 0.2
    scene.helper.fate = fate_of("put_ciphertext", "ok", "ok", "helper-stopping")
    assert scene.put() == CAP
    scene.check_ciphertext()
    assert scene.helper.most_unanswered <= 1000


@pytest.mark.parametrize(("durable", "text"), [
    (0, "0 bytes are durable, after it acknowledged 500"), (499, "499 bytes"),
    (501, "501 bytes are durable, of 500 that were sent"), (2**53, "of 500 that were sent")])
def test_a_helper_that_comes_back_with_something_else(durable: int, text: str) -> None:
    scene = Scene()
    scene.result(scene.upload.write(DATA[:500]))
    scene.wait(1)
    assert scene.upload.progress.durable == 500
    scene.helper.status_fields = {"durable": durable}
    scene.helper.cut()
    scene.wait(1)
    assert scene.told[-1] == "failed"
    error = scene.result(scene.upload.write(b"more"))
    assert isinstance(error, HelperMisbehaved)
    assert text in error.text()
    assert scene.helper.only().ended == "aborted"


def test_an_acknowledgement_that_says_less_than_it_acknowledges() -> None:
    scene = Scene()
    scene.helper.put_fields = {"durable": 50}
    error = scene.put()
    assert isinstance(error, HelperMisbehaved)
    assert "acknowledged bytes up to 100 and says that 50 are durable" in error.text()


def test_an_upload_that_the_helper_does_not_know_any_more() -> None:
    scene = Scene()
    scene.result(scene.upload.write(DATA[:500]))
    scene.helper.uploads.clear()
    scene.helper.cut()
    error = scene.result(scene.upload.close())
    assert isinstance(error, HelperRefused)
    assert error.code == "unknown-upload"
    assert scene.result(scene.upload.close()) is error


def test_an_upload_that_ended_while_the_helper_was_away() -> None:
    scene = Scene()
    scene.result(scene.upload.write(DATA[:500]))
    scene.helper.only().ended = "expired"
    scene.helper.status_fields = {"durable": 0}
    scene.helper.cut()
    error = scene.result(scene.upload.close())
    assert isinstance(error, HelperRefused)
    assert error.code == "expired"


def test_a_message_that_finish_overtook() -> None:
    """The helper had all; its answers were lost; meanwhile finish made it refuse messages, even repeated ones."""
    scene = Scene()
    scene.result(scene.upload.write(DATA[:1500]))
    scene.wait(1)
    scene.helper.sync_time = 10
    scene.result(scene.upload.write(DATA[1500:]))
    closing = outcome(begin(scene.upload.close()))
    scene.wait(1)
    assert scene.helper.calls[-1] == "finish"
    scene.helper.cut()
    scene.helper.fate = lambda method: "already-finishing" if method == "put_ciphertext" else "ok"
    scene.wait(20)
    assert scene.helper.calls.count("finish") == 2
    assert closing == [CAP]
    assert scene.upload.progress.durable == 2000


def test_a_helper_that_still_holds_what_a_lost_connection_brought() -> None:
    scene = Scene()
    scene.helper.fate = fate_of("put_ciphertext", "ok", "lost", "credit-exceeded")
    assert scene.put() == CAP
    scene.check_ciphertext()
    assert [told.split()[0] for told in scene.told] == ["helper-lost", "resumed", "credit-exceeded", "resumed"]


@pytest.mark.parametrize("code", ["credit-exceeded", "already-finishing"])
def test_the_same_over_a_first_connection_ends_the_upload(code: str) -> None:
    scene = Scene()
    scene.helper.fate = fate_of("put_ciphertext", "ok", code)
    assert scene.put().code == code


def test_what_was_refused_for_another_file_is_sent_again_if_the_helper_forgets_that() -> None:
    """Messages meet an upload that has just ended in favour of a file that was there before; then the helper is killed
    before it has recorded that, or answered."""
    scene = Scene()
    scene.result(scene.upload.write(DATA[:500]))
    scene.wait(1)
    scene.upload._helper._adopting = True
    scene.helper.fate = fate_of("put_ciphertext", *["deduplicated"] * 20)
    writing = outcome(begin(scene.upload.write(DATA[500:])))
    scene.wait(1)
    assert scene.upload.progress.durable == 500
    scene.helper.fate = lambda _method: "ok"
    scene.helper.kill()
    scene.wait(10)
    assert writing == [None]
    scene.upload._helper._adopting = False
    assert scene.result(scene.upload.close()) == CAP
    scene.check_ciphertext()


@pytest.mark.parametrize("method", ["put_ciphertext", "finish"])
def test_a_helper_that_wants_the_memory_for_others(method: str) -> None:
    scene = Scene()
    scene.helper.fate = fate_of(method, "memory-short", "memory-short")
    assert scene.put() == CAP
    scene.check_ciphertext()
    assert {told.split()[0] for told in scene.told} == {"memory-short", "resumed"}


def test_a_helper_without_memory_is_asked_less_and_less_often_and_patience_is_not_used_up() -> None:
    scene = Scene(patience=60)
    scene.helper.fate = lambda method: "memory-short" if method == "put_ciphertext" else "ok"
    writing = outcome(begin(write_all(scene.upload, DATA, 150)))
    scene.wait(600)
    assert not writing
    waits = [b - a for a, b in pairwise(scene.helper.connects)]
    assert waits[:6] == pytest.approx([0.25, 0.5, 1, 2, 4, 8], abs=0.01)
    assert waits[6:] == pytest.approx([BACKOFF_MAX] * len(waits[6:]), abs=0.01)
    scene.helper.fate = lambda _method: "ok"
    scene.wait(2 * BACKOFF_MAX)
    assert writing == [CAP]
    scene.check_ciphertext()


def test_a_result_that_was_lost_is_asked_for_again() -> None:
    """Whatever a helper says of an upload that it has finished: the ciphertext may be gone there."""
    scene = Scene()
    scene.result(scene.upload.write(DATA))
    scene.wait(1)
    scene.helper.fate = fate_of("finish", "done")
    scene.helper.status_fields = {"durable": 0}
    assert scene.result(scene.upload.close()) == CAP
    assert scene.helper.calls.count("finish") == 2
    assert scene.helper.calls[-2] == "status"


# -- how long, and how often ------------------------------------------------------------------------------------


def test_the_helper_is_looked_for_less_and_less_often() -> None:
    scene = Scene(patience=60)
    scene.result(scene.upload.write(DATA[:500]))
    scene.helper.up = False
    before = scene.clock.seconds()
    scene.helper.cut()
    error = scene.result(scene.upload.write(DATA[500:]))
    assert isinstance(error, HelperLost)
    assert error.seconds == 60
    assert error.text().endswith("and it was not found again for 60 seconds; there is no cap")
    assert scene.clock.seconds() - before == pytest.approx(60)
    attempts = [0.0, *(t - before for t in scene.helper.connects[1:])]
    assert [b - a for a, b in pairwise(attempts)] == pytest.approx([0.25, 0.5, 1, 2, 4, 8, 10, 10, 10, 10])
    assert scene.told == ["helper-lost 60"]
    assert not scene.clock.getDelayedCalls()


def test_when_patience_ends_between_two_calls_it_is_told() -> None:
    scene = Scene(patience=60)
    scene.result(scene.upload.write(DATA[:500]))
    scene.helper.up = False
    scene.helper.cut()
    scene.wait(61)
    assert scene.told == ["helper-lost 60", "failed"]
    error = scene.result(scene.upload.write(DATA[500:]))
    assert isinstance(error, HelperLost)
    assert scene.result(scene.upload.close()) is error


def test_patience_begins_anew_with_every_loss() -> None:
    scene = Scene(patience=60)
    scene.result(scene.upload.write(DATA[:100]))
    for count in range(1, 5):
        scene.helper.up = False
        scene.helper.cut()
        scene.wait(45)
        scene.helper.up = True
        scene.wait(11)
        assert scene.result(scene.upload.write(DATA[100 * count:100 * (count + 1)])) is None
    assert scene.told.count("helper-lost 60") == 4


@pytest.mark.parametrize("hangs", [False, True])
def test_a_machine_that_sleeps_does_not_use_patience_up(hangs: bool) -> None:
    """Nor does a clock that is set: it has not looked for the helper meanwhile."""
    scene = Scene(patience=3600)
    scene.result(scene.upload.write(DATA[:100]))
    if hangs:
        connect, scene.upload._helper._helper._connect = scene.upload._helper._helper._connect, Deferred
    scene.helper.up = hangs
    scene.helper.cut()
    scene.wait(20)
    for _ in range(3):
        scene.clock.advance(86400)
    if hangs:
        scene.upload._helper._helper._connect = connect
    scene.helper.up = True
    scene.wait(ATTEMPT_MAX + 1)
    assert scene.result(scene.upload.write(DATA[100:])) is None
    assert scene.result(scene.upload.close()) == CAP
    assert "failed" not in scene.told


def test_a_helper_that_falls_whenever_it_is_back_is_given_up() -> None:
    scene = Scene(patience=600)
    scene.result(scene.upload.write(DATA[:100]))
    scene.wait(1)
    scene.helper.fate = lambda method: "killed" if method == "put_ciphertext" else "ok"
    error = scene.result(scene.upload.write(DATA[100:]))
    assert isinstance(error, HelperLost)
    assert 590 <= error.seconds <= 600
    assert len(scene.helper.connects) < 80


def test_a_helper_that_hangs_while_it_is_looked_for() -> None:
    scene = Scene(patience=60)
    scene.result(scene.upload.write(DATA[:100]))

    def hang() -> Deferred[Any]:
        return Deferred()

    scene.upload._helper._helper._connect = hang
    scene.helper.cut()
    error = scene.result(scene.upload.close())
    assert isinstance(error, HelperLost)
    assert error.seconds == 60


@pytest.mark.parametrize("fate", FATES)
def test_without_patience_it_fails_at_once(fate: str) -> None:
    scene = Scene(patience=0)
    scene.helper.fate = fate_of("put_ciphertext", "ok", fate)
    error = scene.put()
    assert error.code == ("helper-stopping" if fate == "helper-stopping" else "helper-lost")
    assert error.fields() in ({}, {"seconds": 0})
    scene.wait(100)
    assert len(scene.helper.connects) == 1


def test_a_helper_that_is_not_there_at_first_is_not_waited_for() -> None:
    scene = Scene()
    scene.helper.up = False
    assert isinstance(scene.put(), HelperUnreachable)
    assert scene.clock.seconds() == 0


@pytest.mark.parametrize("fate", FATES)
def test_an_open_that_was_not_answered_is_repeated_under_the_same_upload_id(fate: str) -> None:
    scene = Scene()
    scene.helper.fate = fate_of("open", fate, fate, fate)
    assert scene.put() == CAP
    assert scene.helper.calls.count("open") == 4
    assert "status" not in scene.helper.calls
    assert len(scene.helper.uploads) == 1


def test_a_refusal_that_will_not_change_ends_the_search() -> None:
    scene = Scene()
    scene.result(scene.upload.write(DATA[:100]))

    async def stock() -> Any:
        raise StockHelper()

    scene.upload._helper._helper._connect = stock
    scene.helper.cut()
    assert isinstance(scene.result(scene.upload.close()), StockHelper)


# -- abort ------------------------------------------------------------------------------------------------------


def test_abort_ends_the_search_at_once() -> None:
    scene = Scene()
    scene.result(scene.upload.write(DATA[:500]))
    scene.helper.up = False
    scene.helper.cut()
    writing = outcome(begin(scene.upload.write(DATA[500:])))
    scene.wait(20)
    connects = len(scene.helper.connects)
    aborted = outcome(begin(scene.upload.abort()))
    assert aborted == [None]
    assert isinstance(writing[0].value, UploadClosed)
    assert not scene.clock.getDelayedCalls()
    assert len(scene.helper.connects) == connects


def test_abort_of_an_upload_that_could_not_be_opened_yet() -> None:
    scene = Scene()
    scene.helper.fate = fate_of("open", *["lost"] * 5)
    writing = outcome(begin(scene.upload.write(DATA)))
    scene.wait(2)
    assert outcome(begin(scene.upload.abort())) == [None]
    assert isinstance(writing[0].value, UploadClosed)
    assert not scene.clock.getDelayedCalls()


def test_abort_while_an_open_is_not_answered_and_then_lost() -> None:
    scene = Scene()
    writing = outcome(begin(scene.upload.write(DATA)))
    assert outcome(begin(scene.upload.abort())) == [None]
    assert writing == [], "what is opened would have to be aborted"
    scene.helper.cut()
    scene.wait(2 * PATIENCE)
    assert isinstance(writing[0].value, UploadClosed)
    assert len(scene.helper.connects) == 1


@pytest.mark.parametrize("fate", FATES)
def test_an_abort_whose_answer_was_lost_is_repeated(fate: str) -> None:
    scene = Scene()
    scene.result(scene.upload.write(DATA[:500]))
    scene.helper.fate = fate_of("abort", fate)
    assert scene.result(scene.upload.abort()) is None
    assert scene.helper.only().ended == "aborted"
    assert scene.told == []


def test_an_abort_whose_helper_is_lost_does_not_wait_for_long() -> None:
    scene = Scene()
    scene.result(scene.upload.write(DATA[:500]))
    scene.helper.fate = lambda _method: "lost"
    before = scene.clock.seconds()
    assert scene.result(scene.upload.abort()) is None
    assert scene.clock.seconds() - before <= 6


# -- the storage index ------------------------------------------------------------------------------------------

SEEDS = b"".join(bytes([2, i, i]) for i in range(5))


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("method", ["assign", "order"])
def test_what_was_told_and_not_answered_is_told_again(method: str, fate: str) -> None:
    scene = Scene()
    scene.helper.open_fields = {"storage-index-needed": int(method == "assign"), "permutation-seeds": SEEDS}
    scene.helper.fate = fate_of(method, fate)
    assert scene.put() == CAP
    assert scene.helper.calls.count(method) == 2
    upload = scene.helper.only()
    assert set(upload.storage_indexes) == {SI}
    assert len(upload.orders) == (0 if method == "assign" else 1 + fate.startswith("done"))


def test_what_was_answered_is_not_told_again() -> None:
    scene = Scene()
    scene.result(scene.upload.write(DATA[:500]))
    scene.wait(1)
    scene.helper.cut()
    assert scene.result(scene.upload.write(DATA[500:])) is None
    assert scene.result(scene.upload.close()) == CAP
    assert scene.helper.calls.count("assign") == 1


@pytest.mark.parametrize("code", ["internal-error", "bad-argument"])
def test_a_refused_order_does_not_end_the_upload(code: str) -> None:
    scene = Scene()
    scene.helper.open_fields = {"storage-index-needed": 0, "permutation-seeds": SEEDS}
    scene.helper.fate = fate_of("order", code)
    assert scene.put() == CAP
    assert scene.helper.calls.count("order") == 1


@pytest.mark.parametrize(("reveal", "calls"), [
    (RevealStorageIndex.AUTO, 1), (RevealStorageIndex.EARLY, 1), (RevealStorageIndex.AT_COMPLETION, 0)])
def test_a_helper_that_comes_back_with_too_few_staging_servers(reveal: RevealStorageIndex, calls: int) -> None:
    scene = Scene(reveal=reveal)
    scene.helper.open_fields = {"storage-index-needed": 0}
    scene.helper.status_fields = {"storage-index-needed": 1}
    for start in range(0, 2000, 500):
        assert scene.result(scene.upload.write(DATA[start:start + 500])) is None
        scene.wait(1)
        scene.helper.cut()
    assert scene.result(scene.upload.close()) == CAP
    assert scene.helper.calls.count("status") == 4
    assert scene.helper.calls.count("assign") == calls
