"""Every error: its code, its fields, and its text word for word, as a user or operator reads it."""

from __future__ import annotations

import inspect
from typing import Any

import attrs
import pytest

from client_shim import errors as client_errors
from client_shim.errors import (
    BadFurl,
    BadNodeDirectory,
    CommandFailed,
    DeclaredSize,
    HelperLost,
    HelperMisbehaved,
    HelperRefused,
    HelperUnreachable,
    NodeNotRunning,
    NoHelperConfigured,
    NoNodeDirectory,
    NoStreamingHelper,
    SourceChanged,
    StatusError,
    StatusUnreadable,
    StockHelper,
    UploadClosed,
    UploadError,
    UploadInterrupted,
    VerifyFailed,
    Waiting,
    WrongUEB,
)
from helper import errors as helper_errors
from helper.errors import (
    BY_CODE,
    Aborted,
    AlreadyFinishing,
    AlreadyPublishing,
    BadArgument,
    BadStorageIndex,
    BadUploadId,
    ConflictingData,
    CreditExceeded,
    Deduplicated,
    Expired,
    HashMismatch,
    HelperFault,
    HelperStopping,
    InternalError,
    LiteralSize,
    MemoryShort,
    MessageTooLarge,
    NotFinished,
    NotOffered,
    OffsetGap,
    ParametersDiffer,
    QuotaExceeded,
    Refusal,
    SizeExceeded,
    SizeMismatch,
    SpoolFailed,
    SpoolFull,
    StorageIndexBusy,
    StorageIndexConflict,
    StreamingError,
    TooFewServers,
    TooFewShares,
    TooManyUploads,
    UnknownUpload,
    fault_of,
)

#: error, code, text
OF_THE_HELPER: list[tuple[StreamingError, str, str]] = [
    (BadArgument("k", "a number from 1 to 10", "11"), "bad-argument", "k: expected a number from 1 to 10, got 11"),
    (BadUploadId(32, 5), "bad-upload-id", "an upload ID is 32 random bytes, got 5 bytes"),
    (NotFinished("open"), "not-finished",
     "the upload is open: a sealed record can be left of a finished one only"),
    (NotOffered(), "not-offered",
     ("the helper does not answer for this file: the last look_up of this upload did not name it, the helper was "
      "restarted since, or its shares could not be kept from expiring; finish the upload")),
    (Deduplicated(), "deduplicated", "the client took a file that was stored already; this upload was dropped"),
    (UnknownUpload(), "unknown-upload",
     "no upload in progress has this upload ID; it may have expired, or the helper was restarted"),
    (ParametersDiffer("n", 10, 11), "parameters-differ",
     "this upload was opened with n = 10, now 11; use a new upload ID for another upload"),
    (ParametersDiffer("size", -1, 100), "parameters-differ",
     "this upload was opened with size = unknown, now 100; use a new upload ID for another upload"),
    (ParametersDiffer("size", 0, -1), "parameters-differ",
     "this upload was opened with size = 0, now unknown; use a new upload ID for another upload"),
    (TooManyUploads(10000), "too-many-uploads",
     "the helper already has 10000 uploads open, its limit; try again later"),
    (SpoolFull(10, 1000), "spool-full",
     ("the helper's spool has room for 10 bytes, 1000 are wanted; uploads in progress fill it, or its disk; "
      "try again later")),
    (QuotaExceeded(10, 11), "quota-exceeded",
     "one upload may have at most 10 bytes at this helper, this one would have 11"),
    (TooFewShares(2, 3), "too-few-shares",
     "2 shares can be placed, but shares.needed is 3; more storage servers are needed, or servers with more room"),
    (TooFewServers(3, 7), "too-few-servers",
     ("shares can be placed on 3 storage servers, but shares.happy asks for 7; more servers are needed, or a "
      "smaller shares.happy")),
    (MessageTooLarge(1048576, 1048577), "message-too-large",
     "a message holds at most 1048576 bytes of ciphertext, got 1048577"),
    (OffsetGap(100, 200), "offset-gap", "the next offset is 100, got 200; ask for status and go on from there"),
    (ConflictingData(100, 50), "conflicting-data",
     "the 50 bytes at offset 100 differ from those held; a repeat must send the identical ciphertext"),
    (CreditExceeded(8388608, 8400000), "credit-exceeded",
     "at most 8388608 bytes may wait for acknowledgement, with this message it would be 8400000; wait for answers"),
    (MemoryShort(), "memory-short",
     ("the upload waits, and others need the memory that its messages would take meanwhile; ask for status and go on "
      "from there, in some seconds")),
    (SizeExceeded(1000, 1001), "size-exceeded", "the declared size is 1000 bytes, this message would reach 1001"),
    (SizeMismatch(1000, 999), "size-mismatch", "finish says 999 bytes, expected 1000"),
    (LiteralSize(55, 12), "literal-size", "a file of 12 bytes is a URI:LIT cap (up to 55 bytes) and needs no helper"),
    (BadStorageIndex(16, 17), "bad-storage-index", "a storage index has 16 bytes, got 17"),
    (StorageIndexConflict(), "storage-index-conflict",
     "another storage index was assigned to this upload before; it cannot change"),
    (StorageIndexBusy(), "storage-index-busy",
     "another upload in progress has this storage index; wait for it to end"),
    (HashMismatch("crypttext_hash"), "hash-mismatch",
     ("crypttext_hash of finish is not that of the ciphertext held; what arrived is not what was sent, or the client "
      "hashed something else")),
    (AlreadyFinishing("completing"), "already-finishing",
     "the upload is completing: it takes no more ciphertext after finish"),
    (AlreadyPublishing("publishing"), "already-publishing",
     "the upload is publishing: its shares are being published and it can no longer be aborted"),
    (Aborted(), "aborted", "the upload was aborted"),
    (Expired(604800), "expired", "the upload was idle for 604800 seconds and has expired"),
    (SpoolFailed("ENOSPC (No space left on device)"), "spool-failed",
     "the helper could not store ciphertext on its disk: ENOSPC (No space left on device)"),
    (HelperStopping(), "helper-stopping", "the helper is shutting down"),
    (InternalError("KeyError"), "internal-error", "the helper failed (KeyError); its log says more"),
]

OF_THE_CLIENT: list[tuple[StreamingError, str, str]] = [
    (NoHelperConfigured("/n/tahoe.cfg"), "no-helper-configured",
     "/n/tahoe.cfg has no helper.furl in section [client]; put the furl of a streaming helper there"),
    (BadNodeDirectory("/n", "there is no tahoe.cfg in it"), "bad-node-directory",
     "/n cannot be used as a client node's directory: there is no tahoe.cfg in it"),
    (StockHelper(), "stock-helper",
     ("the configured helper is a stock Tahoe helper, which cannot take a stream; run `tahoe-stream helper run` "
      "there, or configure another helper.furl")),
    (BadFurl("it is not a furl"), "bad-furl", "the configured helper.furl cannot be used: it is not a furl"),
    (HelperUnreachable("ConnectionRefusedError"), "helper-unreachable",
     "no connection to the helper (ConnectionRefusedError); is it running, and is helper.furl its present one?"),
    (HelperLost(), "helper-lost",
     "the connection to the helper broke before the upload was complete; there is no cap"),
    (HelperLost(3600), "helper-lost",
     ("the connection to the helper broke before the upload was complete, and it was not found again for 3600 seconds; "
      "there is no cap")),
    (HelperMisbehaved("its answer has no number 'credit'"), "helper-misbehaved",
     "the helper broke the protocol: its answer has no number 'credit'; there is no cap"),
    (HelperRefused("offset-gap", "the next offset is 100, got 200", {"expected": 100, "came": 200}), "offset-gap",
     "the next offset is 100, got 200"),
    (WrongUEB("crypttext_hash"), "wrong-ueb",
     ("the helper's result is not that of the file that was sent (crypttext_hash differs); the helper is faulty or "
      "lies, and there is no cap")),
    (Waiting(2, 3, 3600), "waiting-too-long",
     "shares could be placed on 2 of 3 servers for 3600 seconds; the helper goes on trying, but there is no cap yet"),
    (DeclaredSize(100, 101), "declared-size", "more bytes came than were declared: 101, expected 100"),
    (DeclaredSize(100, 99), "declared-size", "fewer bytes came than were declared: 99, expected 100"),
    (SourceChanged(1048578), "source-changed",
     "the file changed while it was being read, in the segment at offset 1048578; nothing of that segment was sent"),
    (CommandFailed(3), "command-failed", "the command exited with status 3; its output was not stored"),
    (CommandFailed(-15), "command-failed", "the command was killed by signal 15; its output was not stored"),
    (VerifyFailed("the client node answered 410 for bytes 0 to 9"), "verify-failed",
     "reading the file back through the client node failed: the client node answered 410 for bytes 0 to 9"),
    (UploadClosed(), "upload-closed", "the upload was closed or aborted before"),
    (UploadInterrupted("CancelledError"), "upload-interrupted",
     "a call was ended by CancelledError before it was done, so that bytes may be missing; there is no cap"),
    (NoNodeDirectory("/n", "there is no tahoe.cfg in it"), "no-node-directory",
     "/n is not the directory of a Tahoe node: there is no tahoe.cfg in it"),
    (NodeNotRunning("/n", "there is no node.url in it"), "node-not-running",
     ("the node in /n does not run, or has no web port (there is no node.url in it); start it with `tahoe-stream "
      "helper run`")),
    (NoStreamingHelper("/n"), "no-streaming-helper",
     ("the node in /n runs, but is no streaming helper; -d names the helper's directory, which `tahoe-stream helper "
      "run` was given")),
    (StatusUnreadable("/n", "status 200", "status 500"), "status-unreadable",
     "the node in /n did not tell its status: expected status 200, got status 500"),
]

ABSTRACT = {StreamingError, Refusal, HelperFault, UploadError, StatusError}


def classes_of(module: Any) -> set[type[StreamingError]]:
    return {
        value for _name, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, StreamingError) and value.__module__ == module.__name__}


def identifier(value: object) -> str:
    return type(value).__name__ if isinstance(value, StreamingError) else ""


@pytest.mark.parametrize(("error", "code", "text"), OF_THE_HELPER + OF_THE_CLIENT, ids=identifier)
def test_code_and_text(error: StreamingError, code: str, text: str) -> None:
    assert error.code == code
    assert error.text() == text
    assert str(error) == f"{code}: {text}"
    with pytest.raises(type(error)) as caught:
        raise error
    assert caught.value is error


def test_the_table_is_complete() -> None:
    assert {type(error) for error, _code, _text in OF_THE_HELPER} == set(BY_CODE.values())
    assert classes_of(helper_errors) == set(BY_CODE.values()) | ABSTRACT - {UploadError, StatusError}
    assert {type(error) for error, _code, _text in OF_THE_CLIENT} == classes_of(client_errors) - ABSTRACT


def test_codes_are_unique_and_stable_in_form() -> None:
    helper_codes = [cls.code for cls in BY_CODE.values()]
    client_codes = [cls.code for cls in classes_of(client_errors) - ABSTRACT - {HelperRefused}]
    codes = helper_codes + client_codes
    assert len(set(codes)) == len(codes)
    assert all(code == code.lower() and set(code) <= set("abcdefghijklmnopqrstuvwxyz-") for code in codes)
    assert all(BY_CODE[cls.code] is cls for cls in BY_CODE.values())
    # what is on the wire beside a refusal's code is neither refusal nor part of the client's list
    assert not {"ok", "waiting"} & set(codes)


@pytest.mark.parametrize("error", [error for error, _code, _text in OF_THE_HELPER], ids=identifier)
def test_fields_are_typed_and_go_over_the_wire(error: StreamingError) -> None:
    cls: Any = type(error)
    types = {a.name: a.type for a in attrs.fields(cls)}
    fields = error.fields()
    assert list(fields) == list(types)
    for name, value in fields.items():
        assert types[name] == type(value).__name__  # annotations are strings here
        assert isinstance(value, int | str)
    assert not {"code", "text"} & set(fields)  # they have their own place in an answer
    assert cls(**fields).text() == error.text()


@pytest.mark.parametrize("error", [error for error, _code, _text in OF_THE_CLIENT], ids=identifier)
def test_fields_of_the_clients_errors(error: StreamingError) -> None:
    assert all(isinstance(value, int | str) for value in error.fields().values())


def test_a_refusal_of_the_helper_keeps_its_code_and_fields() -> None:
    refused = HelperRefused("too-few-servers", "because", {"have": 1, "need": 2})
    assert refused.code == "too-few-servers"
    assert refused.fields() == {"have": 1, "need": 2}
    assert HelperRefused("offset-gap", "", {}).code == "offset-gap"  # its own, not the class's


def test_whose_fault_it_is() -> None:
    ours = {SpoolFailed, HelperStopping, InternalError}
    assert {cls for cls in BY_CODE.values() if issubclass(cls, HelperFault)} == ours
    assert {cls for cls in BY_CODE.values() if issubclass(cls, Refusal)} == set(BY_CODE.values()) - ours
    assert all(issubclass(cls, (UploadError, StatusError)) for cls in classes_of(client_errors))


def test_fault_of() -> None:
    refusal = OffsetGap(1, 2)
    assert fault_of(refusal) is refusal
    fault = fault_of(KeyError("secret"))
    assert (fault.code, fault.fields()) == ("internal-error", {"kind": "KeyError"})
    assert "secret" not in str(fault)


def test_errors_are_themselves_only() -> None:
    """Two errors with equal fields are two errors: they carry tracebacks, and stand in sets and dicts."""
    assert OffsetGap(1, 2) != OffsetGap(1, 2)
    assert len({OffsetGap(1, 2), OffsetGap(1, 2)}) == 2


@pytest.mark.parametrize("cls", [Refusal, HelperFault])
def test_abstract_errors_have_no_text(cls: type[StreamingError]) -> None:
    with pytest.raises(NotImplementedError, match=cls.__name__):
        cls().text()
