"""The token stream of a Foolscap connection: where tokens and messages end, and that they keep to bounds (pure).

The format is that of foolscap.banana. Every token is a header (a number in base 128, low digit first, at most 64
digits), a type byte, and for some types a body. OPEN and CLOSE nest; what is between an outermost pair is a message:

    call     OPEN "call" request-number object-number method-name OPEN "arguments" count ... CLOSE CLOSE
    answer   OPEN "answer" request-number value CLOSE
    error    OPEN "error" request-number failure CLOSE
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from helper.interfaces import LARGEST_MESSAGE_MAX, KiB, MiB

HEADER_DIGITS = 64
LIST, INT, STRING, NEG, FLOAT, LONGINT, LONGNEG, VOCAB = 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87
OPEN, CLOSE, ABORT, ERROR, PING, PONG = 0x88, 0x89, 0x8A, 0x8D, 0x8E, 0x8F
_BARE = frozenset((INT, NEG, VOCAB, ABORT, PING, PONG))
_FLOAT_BODY = 8

#: Object number of the connection itself, whose methods (getReferenceByName and the like) have small arguments.
_CONNECTION = 0
#: Tokens of an answer up to and including its value; those of a call are numbers of the request and the object.
_ANSWER_TOKENS = 3
#: Tokens of a call up to and including the OPEN of its arguments.
_CALL_TOKENS = 5


@attrs.frozen
class TokenBounds:
    """The most that a peer may send. Sizes in bytes; a charge is an estimate of what a thing takes in memory."""

    name: int
    """Method names, names in furls, types of sequences: ours have at most 64."""
    value: int
    """Any other byte string, but for arguments of calls. The largest that stock peers send are the pieces of
    ciphertext that the stock helper asks for (50 KiB) and announcements of storage servers."""
    argument: int
    """Byte strings that are themselves arguments of a call: `data` of put_ciphertext."""
    number: int
    """Bodies of large numbers; turning them into numbers takes time that grows with the square of the size."""
    depth: int
    """Nested sequences. Announcements have 5, answers to `upload_chk` 4."""
    children: int
    """Tokens in one sequence: an introducer sends its storage servers in one set."""
    message: int
    """Charge of one message."""


#: Who has a reference to something of ours, or owes us an answer.
KNOWN_PEER = TokenBounds(name=1 * KiB, value=64 * KiB, argument=LARGEST_MESSAGE_MAX, number=16, depth=10,
                         children=4096, message=8 * MiB)
#: Everybody else can only ask for the object that a furl names.
STRANGER = TokenBounds(name=1 * KiB, value=1 * KiB, argument=1 * KiB, number=16, depth=4, children=64,
                       message=16 * KiB)

#: A storage server that we asked something. The largest answers are blocks: a segment (8 MiB) where k is 1, with what
#: readers ask for in the same piece. It has no reason to send arguments.
STORAGE_SERVER = TokenBounds(name=1 * KiB, value=9 * MiB, argument=64 * KiB, number=16, depth=10, children=4096,
                             message=10 * MiB)

#: What Foolscap's and Python's objects take beside the bytes.
TOKEN_CHARGE = 64
OPEN_CHARGE = 1 * KiB


class OverBound(Exception):
    """A peer sent, or announced, more than it may. `came` and `limit` are numbers; there is no content."""

    def __init__(self, what: str, came: int, limit: int) -> None:
        super().__init__(f"{what}: at most {limit} expected, {came} came")
        self.what = what
        self.came = came
        self.limit = limit


@attrs.frozen
class Cut:
    """Where a large token or a message ends."""

    end: int
    """Index in the data that was fed."""
    message: int | None
    """Charge of the message that ends here, if one does."""


class TokenScanner:
    """Feed it what comes, in any pieces. After OverBound it must not be used again."""

    #: A token with a larger body is cut off from what follows.
    LARGE = 4 * KiB

    def __init__(self) -> None:
        self._digits = bytearray()
        self._body_left = 0
        self._large = False
        self._children: list[int] = []
        self._object = _CONNECTION
        self._charge = 0
        self.token_end = 0
        """Index, in the data last fed, at which the last complete token ends (0: none does)."""

    @property
    def depth(self) -> int:
        """Sequences that are open."""
        return len(self._children)

    @property
    def in_message(self) -> bool:
        """Whether a message, or a token, is incomplete."""
        return bool(self._children or self._digits or self._body_left)

    @property
    def charge(self) -> int:
        """Of what came of the message that is incomplete."""
        return self._charge - self._body_left

    def feed(self, data: bytes, bounds: TokenBounds) -> list[Cut]:
        """Raises OverBound before the body of a token that is too large."""
        self.token_end = 0
        return list(self._cuts(data, bounds))

    def passes_over(self, data: bytes) -> bool:
        """Whether all of `data` lies within the body of a token, which goes on; if so it is fed, else it is not.

        There is nothing in it to look at, nor to refuse: this is `feed` for most of what comes.
        """
        if len(data) >= self._body_left:
            return False
        self._body_left -= len(data)
        return True

    def _cuts(self, data: bytes, bounds: TokenBounds) -> Iterator[Cut]:
        at, size = 0, len(data)
        while at < size:
            if self._body_left:
                step = min(self._body_left, size - at)
                at += step
                self._body_left -= step
                if self._body_left:
                    return
                self.token_end = at
                if self._large:
                    yield Cut(at, None)
                continue
            byte = data[at]
            at += 1
            if byte < 0x80:
                self._digits.append(byte)
                _check("digits of a header", len(self._digits), HEADER_DIGITS)
                continue
            before = len(self._children)
            self._body_left = self._body_size(byte, bounds)
            self._digits.clear()
            self._large = self._body_left > self.LARGE
            if not self._body_left:
                self.token_end = at
            if before and not self._children:
                yield Cut(at, self._charge)
                self._charge = 0

    def _body_size(self, kind: int, bounds: TokenBounds) -> int:
        """The header is complete: count the token, and return the size of its body."""
        if kind == CLOSE:
            if not self._children:
                raise OverBound("CLOSE tokens without OPEN", 1, 0)
            self._children.pop()
            return 0
        if kind in (ABORT, PING, PONG):
            return 0
        self._count_token(bounds)
        if kind == OPEN:
            self._add(OPEN_CHARGE, bounds)
            if not self._children:
                self._object = _CONNECTION
            self._children.append(0)
            _check("nested sequences", len(self._children), bounds.depth)
            return 0
        if kind in _BARE:
            if self.depth == 1 and self._children[0] == 3:
                self._object = self._number() if kind != VOCAB else _CONNECTION
            return 0
        size = self._announced(kind, bounds)
        self._add(size, bounds)
        return size

    def _count_token(self, bounds: TokenBounds) -> None:
        if self._children:
            self._children[-1] += 1
            _check("tokens in a sequence", self._children[-1], bounds.children)
        self._add(TOKEN_CHARGE, bounds)

    def _add(self, charge: int, bounds: TokenBounds) -> None:
        self._charge += charge
        _check("bytes of a message", self._charge, bounds.message)

    def _announced(self, kind: int, bounds: TokenBounds) -> int:
        if kind == FLOAT:
            return _FLOAT_BODY
        size = self._number()
        if kind == STRING:
            _check("bytes of a string", size, self._string_bound(bounds))
        elif kind in (LONGINT, LONGNEG):
            _check("bytes of a number", size, bounds.number)
        elif kind == ERROR:
            _check("bytes of an error", size, bounds.name)
        else:
            raise OverBound("tokens of an unknown type", 1, 0)
        return size

    def _string_bound(self, bounds: TokenBounds) -> int:
        if self.depth < 2:
            return bounds.value if self._children and self._children[0] == _ANSWER_TOKENS else bounds.name
        is_argument = self.depth == 2 and self._children[0] == _CALL_TOKENS and self._children[1] > 2
        if self._children[0] == _CALL_TOKENS and self._object == _CONNECTION:
            return bounds.name
        return bounds.argument if is_argument else bounds.value

    def _number(self) -> int:
        number = 0
        for digit in reversed(self._digits):
            number = number << 7 | digit
        return number


def _check(what: str, came: int, limit: int) -> None:
    if came > limit:
        raise OverBound(what, came, limit)
