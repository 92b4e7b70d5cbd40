"""What a session is told (events) and what it decides (commands): protocol.txt §6.  (pure)

session.py turns the one into the other; uploads.py brings the events and carries out the commands.
A `call` is a number that the driver gave to a call of the client, to be answered once.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from helper import errors
from helper.ciphertext import CiphertextHashes

# -- events ---------------------------------------------------------------------------------------


@attrs.frozen
class PutReceived:
    call: int
    offset: int
    data: bytes


@attrs.frozen
class Stored:
    """Everything below `durable` is durable in the spool."""

    durable: int


@attrs.frozen
class StoreFailed:
    """The spool could not make bytes durable; nothing more can be stored."""

    reason: str


@attrs.frozen
class Compared:
    """Answer to Compare: whether the bytes were those held."""

    call: int
    same: bool


@attrs.frozen
class PushedTo:
    """The share that completes the answer rule has come to `position` (bytes of ciphertext), by `in_a_second` of them
    within the last second."""

    position: int
    in_a_second: int = 0


@attrs.frozen
class StagingEnough:
    """Whether shares on staging servers alone can meet the answer rule, so that no storage index is needed yet."""

    enough: bool


@attrs.frozen
class AssignReceived:
    call: int
    storage_index: bytes


@attrs.frozen
class FinishReceived:
    call: int
    size: int
    storage_index: bytes
    crypttext_hash: bytes
    crypttext_root_hash: bytes


@attrs.frozen
class AdoptReceived:
    """The client takes another file, stored under `storage_index`, instead of this upload."""

    call: int
    storage_index: bytes


@attrs.frozen
class Completed:
    """Answer to Complete: the hashes of all ciphertext held, and the URI extension block it will have."""

    hashes: CiphertextHashes
    ueb: bytes


@attrs.frozen
class SharesReady:
    """Shares that meet the answer rule are complete and acknowledged by their servers."""


@attrs.frozen
class PublishRecorded:
    """Answer to RecordPublishing."""


@attrs.frozen
class AnswerRuleMet:
    """Closed shares meet the answer rule, and no share has closed for a moment (or all have)."""


@attrs.frozen
class TooFewServers:
    """Shares can be placed on no more than `have` servers of `need`."""

    have: int
    need: int


@attrs.frozen
class TooFewShares:
    """No more than `have` shares of `need` can be placed."""

    have: int
    need: int


@attrs.frozen
class AbortReceived:
    call: int


@attrs.frozen
class Abandoned:
    """Answer to AbandonShares: every server that answers has let its shares go."""


@attrs.frozen
class IdleFor:
    """No call has come for so many seconds; nor, once publication was decided, has any share come further."""

    seconds: int
    limit: int
    limit_if_empty: int


@attrs.frozen
class ResultRecorded:
    """Answer to RecordResult."""


@attrs.frozen
class Resumed:
    """First event of an upload of an earlier run of the helper: what was recorded, and what the spool holds.

    `state` is a value of session.State. `storage_index` was assigned before `finish`, or came with it; `finish`
    and `ueb` are those of an upload whose publication was decided. `unplaced`: shares are still to be published.
    `staging_enough` as StagingEnough said last; None if it is not known.
    """

    state: str
    durable: int
    storage_index: bytes | None
    finish: FinishReceived | None
    ueb: bytes | None
    error: errors.StreamingError | None
    unplaced: bool
    staging_enough: bool | None = None


@attrs.frozen
class Stopping:
    """The helper stops; it will go on with the upload when it runs again."""


@attrs.frozen
class YieldIndex:
    """Another upload wants the storage index of this one, for which nobody has called for a while."""


@attrs.frozen
class MemoryWanted:
    """Others want what messages of this upload hold that wait. The driver has let go of the last `unstored` bytes
    that it was given by Store, and had no room for."""

    unstored: int


@attrs.frozen
class Failed:
    """Something in the helper broke in a way that this upload cannot survive, unless it is published already: then
    perhaps a share."""

    error: errors.StreamingError


@attrs.frozen
class CannotComplete:
    """The ciphertext cannot be read or encoded: no share can be completed."""

    error: errors.StreamingError


# -- commands -------------------------------------------------------------------------------------


@attrs.frozen
class Reply:
    call: int
    fields: Mapping[str, int | str | bytes]


@attrs.frozen
class Refuse:
    call: int
    error: errors.StreamingError


@attrs.frozen
class Store:
    """Append `data` to the spool; Stored tells when it is durable."""

    data: bytes


@attrs.frozen
class Compare:
    """Compare `data` with the durable bytes at `offset`; Compared tells."""

    call: int
    offset: int
    data: bytes


@attrs.frozen
class BeginPlacing:
    """Contact storage servers and push what is durable to them; to those that need no storage index, or to all
    once UseStorageIndex has told it."""


@attrs.frozen
class UseStorageIndex:
    """The client has revealed the storage index early: stock storage servers may be told."""

    storage_index: bytes


@attrs.frozen
class Complete:
    """Hash and encode the last segment of a file of `size` bytes; Completed tells."""

    size: int


@attrs.frozen
class ForgetCompletion:
    """The file goes on after all: Complete will come again."""


@attrs.frozen
class ForgetStorageIndex:
    """Servers that were told it let go of their shares, and wait until UseStorageIndex comes again."""


@attrs.frozen
class SealShares:
    """Complete every share: trailer and header; SharesReady tells when enough are."""

    storage_index: bytes


@attrs.frozen
class RecordPublishing:
    """Make the decision to publish durable; PublishRecorded tells."""


@attrs.frozen
class RecordResult:
    """Make it durable that the upload is finished; ResultRecorded tells."""


@attrs.frozen
class PublishShares:
    """Close shares that are complete, now and as they become so; AnswerRuleMet tells."""


@attrs.frozen
class AbandonShares:
    """Let go of every share on every server; Abandoned tells."""


@attrs.frozen
class DropSpool:
    """Remove the spooled ciphertext."""


Command = (Reply | Refuse | Store | Compare | BeginPlacing | UseStorageIndex | Complete | ForgetCompletion
           | ForgetStorageIndex | SealShares | RecordPublishing | RecordResult | PublishShares | AbandonShares
           | DropSpool)
