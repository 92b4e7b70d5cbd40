"""The wire schema of protocol.txt part 1, as Foolscap RemoteInterfaces, and its bounds.

Both sides of the wire import this file, so the schema exists once. A bound in the Foolscap schema is
there so that a peer's oversized argument is dropped before it is buffered; it is never tighter than
the bound that protocol.txt states, because a breach of a stated bound is answered with a stable code
(see errors.py) and not with a Foolscap Violation.
"""

from __future__ import annotations

from foolscap.api import DictOf, IntegerConstraint, ListOf, RemoteInterface, StringConstraint, TupleOf
from foolscap.schema import ChoiceOf

KiB = 1024
MiB = 1024 * KiB

#: Key in the stock helper's get_version() under which we announce ourselves (protocol.txt §2).
VERSION_KEY = b"tahoe-streaming-upload-v1"
VERSION_FURL = b"furl"
VERSION_LARGEST_MESSAGE = b"largest-message"

UPLOAD_ID_SIZE = 32  # bytes; unguessable: whoever knows it owns the upload
STORAGE_INDEX_SIZE = 16  # bytes
HASH_SIZE = 32  # bytes, SHA-256d
KEY_SIZE = 16  # bytes, AES-128

#: Files of up to this many bytes are URI:LIT and never reach a helper (allmydata.immutable.upload).
LITERAL_MAX = 55

#: Most shares zfec can make of one file.
SHARES_MAX = 256
#: 8 MiB: one segment is held in memory on every reader and writer of the file.
SEGMENT_SIZE_MAX = 8 * MiB
#: Sizes and offsets on the wire; 2**53 keeps them exact in every language that may ever read them.
SIZE_MAX = 2**53

#: Bounds of the largest `data` of one put_ciphertext that a helper may announce (protocol.txt §2).
LARGEST_MESSAGE_MIN = 16 * KiB
LARGEST_MESSAGE_MAX = 4 * MiB
#: What we announce: large enough that Foolscap's cost per message does not matter.
LARGEST_MESSAGE = 2 * MiB

_Id = StringConstraint(2 * UPLOAD_ID_SIZE)
_Index = StringConstraint(2 * STORAGE_INDEX_SIZE)
_Hash = StringConstraint(2 * HASH_SIZE)
_Number = IntegerConstraint(8)
_Key = StringConstraint(64)
_Data = StringConstraint(LARGEST_MESSAGE_MAX)

#: Parameters of `open`: k, happy, n, max-segment-size and, when known, size.
OpenParameters = DictOf(_Key, _Number, maxKeys=16)

#: Bytes of the longest list of permutation seeds, and of an order of servers: protocol.txt §4.1, §4.7.
SEEDS_MAX = 64 * KiB
_Order = StringConstraint(SEEDS_MAX)

#: Most bytes of a sealed record, and most of them that one answer names: protocol.txt §4.8, §4.10.
RECORD_MAX = 256
RECORDS_TOLD_MAX = 4
#: Most bytes of a URI extension block that is passed on; stock's have some 400.
UEB_MAX = 4 * KiB
_Record = StringConstraint(2 * RECORD_MAX)

#: Fields of an answer: b"code" always; numbers and byte strings (protocol.txt §3.2).
AnswerFields = DictOf(_Key, ChoiceOf(_Number, StringConstraint(SEEDS_MAX)), maxKeys=32)
#: (share number, server name, state, bytes of ciphertext placed), of `status` and `finish`.
ShareList = ListOf(TupleOf(_Number, _Key, _Key, _Number), maxLength=SHARES_MAX)
Answer = TupleOf(AnswerFields, ShareList)


class RIStreamingHelper(RemoteInterface):
    """Streaming uploads, client to helper: protocol.txt §4, one section for each method."""

    __remote_name__ = "RIStreamingHelper.v1.tahoe-stream"

    def open(upload_id=_Id, parameters=OpenParameters):  # type: ignore[no-untyped-def]
        """Begin an upload, or find it again: protocol.txt §4.1."""
        return Answer

    def put_ciphertext(upload_id=_Id, offset=_Number, data=_Data):  # type: ignore[no-untyped-def]
        """Store ciphertext; answered when it is durable: protocol.txt §4.2."""
        return Answer

    def status(upload_id=_Id):  # type: ignore[no-untyped-def]
        """What the helper holds of an upload: protocol.txt §4.3."""
        return Answer

    def assign(upload_id=_Id, storage_index=_Index):  # type: ignore[no-untyped-def]
        """Tell the storage index before `finish`: protocol.txt §4.4."""
        return Answer

    def order(upload_id=_Id, order=_Order):  # type: ignore[no-untyped-def]
        """In which order readers will ask the servers: protocol.txt §4.7."""
        return Answer

    def finish(upload_id=_Id, size=_Number, storage_index=_Index,  # type: ignore[no-untyped-def]
               crypttext_hash=_Hash, crypttext_root_hash=_Hash):
        """Complete the upload: protocol.txt §4.5."""
        return Answer

    def abort(upload_id=_Id):  # type: ignore[no-untyped-def]
        """Give the upload up: protocol.txt §4.6."""
        return Answer

    def look_up(upload_id=_Id, convergent_storage_index=_Index):  # type: ignore[no-untyped-def]
        """Is the file stored already?: protocol.txt §4.8."""
        return Answer

    def adopt(upload_id=_Id, storage_index=_Index):  # type: ignore[no-untyped-def]
        """Take a file that is stored already instead of this upload: protocol.txt §4.9."""
        return Answer

    def leave_record(upload_id=_Id, convergent_storage_index=_Index, record=_Record):  # type: ignore[no-untyped-def]
        """Leave a sealed record of a finished upload, for those who have the same file: protocol.txt §4.10."""
        return Answer
