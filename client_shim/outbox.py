"""Where the ciphertext of an upload is: not sent yet, on its way, durable; and what to send next.  (pure)"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import attrs

from client_shim.errors import HelperMisbehaved
from client_shim.window import WINDOW_MIN, SendWindow

#: A piece that was given is sent as it is, uncopied, if it is at least this part of a message and no more than one.
ENOUGH = 0.75


@attrs.frozen
class Message:
    """The `data` of one put_ciphertext, and its offset in the ciphertext."""

    offset: int
    data: bytes

    @property
    def end(self) -> int:
        return self.offset + len(self.data)

    def cut(self, offset: int) -> tuple[Message, Message]:
        """What is before `offset`, and what is from there on."""
        length = offset - self.offset
        return Message(self.offset, self.data[:length]), Message(offset, self.data[length:])


class Outbox:
    """Ciphertext between the encryptor and the helper's disk.

    It holds what is not known to be durable, and forgets the rest. So when a connection is lost, the identical
    bytes are sent again over the next: nothing is ever encrypted twice (protocol.txt §10.4).

    A new process that goes on with an upload begins with what the old one had: `durable` bytes were acknowledged, and
    `ring` is the ciphertext that follows. How much of that was sent nobody knows, so it counts as sent.
    """

    def __init__(self, durable: int = 0, ring: Iterable[bytes] = ()) -> None:
        self.sent = durable
        """Length of what was ever sent."""
        self.durable = durable
        """Length of what was acknowledged, over whatever connection."""
        self.window_size = WINDOW_MIN
        """Bytes that may be on their way, as last known."""
        self._window: SendWindow | None = None  # while there is a connection
        self._again: deque[Message] = deque()  # sent over a connection that was lost; contiguous, as what follows
        for ciphertext in ring:
            self._again.append(Message(self.sent, ciphertext))
            self.sent += len(ciphertext)
        self._on_their_way: deque[Message] = deque()
        self._unsent: deque[bytes | memoryview] = deque()
        self._unsent_length = 0
        self._complete = False

    def add(self, ciphertext: bytes) -> None:
        """The next bytes."""
        if ciphertext:
            self._unsent.append(ciphertext)
            self._unsent_length += len(ciphertext)

    def complete(self) -> None:
        """No more will come: what is less than a message is worth sending."""
        self._complete = True

    @property
    def must_wait(self) -> bool:
        """Whether there is something that should be sent and cannot be sent yet (ask when `next_message` gave none).

        While there is none: what is held is bounded by the window and one message.
        """
        return self._window is None or self._worth_sending(self._window) > 0

    def next_message(self, now: float) -> Message | None:
        """What to send now, if anything: it is on its way then."""
        window = self._window
        if window is None:
            return None
        length = self._worth_sending(window)
        if length == 0 or not window.may_send(length):
            return None
        if self._again:
            message = self._again.popleft()
            if len(message.data) > length:
                message, rest = message.cut(message.offset + length)
                self._again.appendleft(rest)
        else:
            message = Message(self.sent, self._take(length))
            self.sent += length
        window.sent(length, now)
        self._on_their_way.append(message)
        return message

    def _take(self, length: int) -> bytes:
        """The first bytes that were not sent; copied once at most."""
        self._unsent_length -= length
        parts: list[bytes | memoryview] = []
        while length > 0:
            part = self._unsent.popleft()
            if len(part) > length:
                view = memoryview(part)
                self._unsent.appendleft(view[length:])
                part = view[:length]
            parts.append(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else b"".join(parts)

    def _worth_sending(self, window: SendWindow) -> int:
        """Length of the next message. Less than a full one waits for more bytes, or until nothing is on its way."""
        if self._again:
            return min(len(self._again[0].data), window.message_size)
        length = min(self._unsent_length, window.message_size)
        if length == window.message_size:
            return self._up_to_a_whole_message(length)
        return length if self._complete or window.in_flight == 0 else 0

    def _up_to_a_whole_message(self, most: int) -> int:
        """Length of a message that ends with a piece if it is long enough then, or if the next makes one by itself."""
        length = 0
        for piece in self._unsent:
            if length and length + len(piece) > most and (
                    length >= ENOUGH * most or ENOUGH * most <= len(piece) <= most):
                return length
            length += len(piece)
            if length >= most:
                break
        return most

    def acknowledged(self, message: Message, durable: int, now: float) -> None:
        """`message` was answered, with this length durable. Raises HelperMisbehaved."""
        if durable < message.end:
            raise HelperMisbehaved(f"it acknowledged bytes up to {message.end} and says that {durable} are durable")
        if self._window is not None:
            self._window.acknowledged(len(message.data), now)
            self.window_size = self._window.size
        self._forget(min(durable, self.sent))

    def all_acknowledged(self) -> None:
        """The helper has all that was sent."""
        self._again.clear()
        self._forget(self.sent)

    def disconnected(self) -> None:
        """The connection was lost: whether what was on its way arrived is not known."""
        self._window = None
        self._again.extendleft(reversed(self._on_their_way))
        self._on_their_way.clear()

    def connected(self, window: SendWindow, durable: int) -> None:
        """Go on over a new connection, with a new window, from what the helper says is durable.

        Raises HelperMisbehaved if that cannot be: what was acknowledged is gone here.
        """
        if durable < self.durable:
            raise HelperMisbehaved(f"it says that {durable} bytes are durable, after it acknowledged {self.durable}")
        if durable > self.sent:
            raise HelperMisbehaved(f"it says that {durable} bytes are durable, of {self.sent} that were sent")
        self._forget(durable)
        self._window = window

    def _forget(self, durable: int) -> None:
        self.durable = max(self.durable, durable)
        for messages in (self._again, self._on_their_way):
            while messages and messages[0].end <= self.durable:
                messages.popleft()
        if self._again and self._again[0].offset < self.durable:
            self._again[0] = self._again[0].cut(self.durable)[1]
