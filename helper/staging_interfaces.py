"""The wire schema of protocol.txt part 2 (helper to staging server), as a Foolscap RemoteInterface, and its bounds."""

from __future__ import annotations

from foolscap.api import DictOf, IntegerConstraint, ListOf, RemoteInterface, StringConstraint, TupleOf
from foolscap.schema import ChoiceOf

KiB = 1024
MiB = 1024 * KiB

#: Name of the plugin in tahoe.cfg and in storage announcements.
PLUGIN_NAME = "tahoe-streaming-staging-v1"

STAGING_NAME_SIZE = 32  # bytes
SHARES_MAX = 256
#: Largest `data` of one write.
LARGEST_WRITE = 4 * MiB

_Name = StringConstraint(2 * STAGING_NAME_SIZE)
_Number = IntegerConstraint(8)
_Key = StringConstraint(64)
_Secret = StringConstraint(64)
_Index = StringConstraint(32)

#: code, then fields (protocol.txt §15.2)
Answer = DictOf(_Key, ChoiceOf(_Number, StringConstraint(1024)), maxKeys=16)
#: (share number, state, length written, length synced)
HeldShares = ListOf(TupleOf(_Number, _Key, _Number, _Number), maxLength=SHARES_MAX)
#: (share number, outcome)
AssignedShares = ListOf(TupleOf(_Number, _Key), maxLength=SHARES_MAX)


class RIStagingServer(RemoteInterface):
    """Staged shares on one storage server: protocol.txt §16, one section for each method."""

    __remote_name__ = "RIStagingServer.v1.tahoe-stream"

    def get_version():  # type: ignore[no-untyped-def,misc]
        """Space and limits: protocol.txt §16.1."""
        return Answer

    def stage(name=_Name, shnums=ListOf(_Number, maxLength=SHARES_MAX),  # type: ignore[no-untyped-def]
              size=_Number):
        """Begin shares, or find them again: protocol.txt §16.2."""
        return TupleOf(Answer, HeldShares)

    def write(name=_Name, shnum=_Number, offset=_Number,  # type: ignore[no-untyped-def]
              data=StringConstraint(LARGEST_WRITE)):
        """Write at an offset: protocol.txt §16.3."""
        return Answer

    def held(name=_Name):  # type: ignore[no-untyped-def]
        """What is there, and keep it: protocol.txt §16.4."""
        return TupleOf(Answer, HeldShares)

    def prepare(name=_Name, shnum=_Number, size=_Number,  # type: ignore[no-untyped-def]
                renew_secret=_Secret, cancel_secret=_Secret):
        """All is written: make the share ready to be assigned: protocol.txt §16.5."""
        return Answer

    def assign(name=_Name, storage_index=_Index,  # type: ignore[no-untyped-def]
               shnums=ListOf(_Number, maxLength=SHARES_MAX)):
        """Publish prepared shares: protocol.txt §16.6."""
        return TupleOf(Answer, AssignedShares)

    def abort(name=_Name, shnums=ListOf(_Number, maxLength=SHARES_MAX)):  # type: ignore[no-untyped-def]
        """Remove staged shares: protocol.txt §16.7."""
        return Answer
