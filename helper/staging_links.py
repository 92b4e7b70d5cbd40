"""Ways to the staging plugins of the grid's storage nodes: one live reference for each, kept for all uploads.

A node says in its storage announcement where its plugin is (protocol.txt §14). Looked for whenever the node
is connected; when the plugin cannot be reached the node is as good as stock, and is tried again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from helper.sinks import CONNECTION_LOST
from helper.staging_interfaces import PLUGIN_NAME
from helper.stock import short_name

#: A plugin that could not be reached is tried again after so many seconds, doubled each time up to the second.
RETRY_FIRST, RETRY_MOST = 1.0, 300.0
#: Removals of staged shares of ended uploads that one absent server still has to hear of; the rest expires there.
ABORTS_MAX = 10_000


def plugin_furl(announcement: Any) -> str | None:
    """The plugin's furl in a node's storage announcement, if it has the plugin."""
    options = announcement.get("storage-options", []) if isinstance(announcement, dict) else []
    for option in options if isinstance(options, list) else []:
        if isinstance(option, dict) and option.get("name") == PLUGIN_NAME:
            furl = option.get("storage-server-FURL")
            return furl if isinstance(furl, str) else None
    return None


class PluginLink:
    """The way to one node's plugin; `rref` is None while there is none."""

    log = Logger()

    def __init__(self, name: str, get_reference: Callable[[str], Deferred[Any]], clock: IReactorTime,
                 on_change: Callable[[], None]) -> None:
        self.rref: Any = None
        self._name = name
        self._get_reference = get_reference
        self._clock = clock
        self._on_change = on_change
        self._furl: str | None = None
        self._node: Any = None  # the node's own connection, over which it was seen last
        self._attempt: Deferred[Any] | None = None
        self._retry: IDelayedCall | None = None
        self._delay = RETRY_FIRST
        self._stopped = self._unreachable = False
        self._aborts: list[tuple[bytes, tuple[int, ...]]] = []

    @property
    def connecting(self) -> bool:
        """Whether it will soon be known whether the plugin can be reached. Not while it is only tried again."""
        return self._attempt is not None and not self._unreachable

    def abort_later(self, name: bytes, *shnums: int) -> None:
        """See StagingLink."""
        if len(self._aborts) < ABORTS_MAX:
            self._aborts.append((name, shnums))
        if self.rref is not None:
            self._send_aborts()

    def connect(self, furl: str, node: Any) -> None:
        """The node is connected (`node` is another object for each connection): see whether its plugin is. No-op
        while it is, is being tried, or could not be reached and will be tried again."""
        anew = furl != self._furl or node is not self._node
        if furl != self._furl:
            self._furl, self.rref = furl, None
        self._node = node
        if anew:
            self._unreachable = False
        if anew or self._retry is None:
            self._try()

    def stop(self) -> None:
        """Try no more."""
        self._stopped = True
        self._cancel_retry()

    def _try(self) -> None:
        if self.rref is not None or self._attempt is not None or self._furl is None or self._stopped:
            return
        self._cancel_retry()
        self._attempt = d = self._get_reference(self._furl)
        d.addCallbacks(self._connected, self._failed, callbackArgs=(self._furl,))

    def _connected(self, rref: Any, furl: str) -> None:
        self._attempt = None
        if furl != self._furl:  # announced anew meanwhile
            self._try()
            return
        self._delay, self._unreachable = RETRY_FIRST, False
        self.rref = rref
        rref.notifyOnDisconnect(self._lost, rref)
        self._send_aborts()
        self._on_change()

    def _failed(self, failure: Failure) -> None:
        self._attempt, self._unreachable = None, True
        self.log.warn("the staging plugin of storage server {server} cannot be reached: {kind}",
                      server=self._name, kind=type(failure.value).__name__)
        if not self._stopped:
            self._retry = self._clock.callLater(self._delay, self._again)
        self._delay = min(RETRY_MOST, 2 * self._delay)
        self._on_change()  # its node counts as stock now

    def _lost(self, rref: Any) -> None:
        if self.rref is rref:
            self.rref = None
            self._try()

    def _again(self) -> None:
        self._retry = None
        self._try()

    def _cancel_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _send_aborts(self) -> None:
        aborts, self._aborts = self._aborts, []
        for name, shnums in aborts:
            self.rref.callRemote("abort", name, list(shnums)).addErrback(self._abort_failed, self.rref, name, shnums)

    def _abort_failed(self, failure: Failure, rref: Any, name: bytes, shnums: tuple[int, ...]) -> None:
        """What was refused expires there. If the connection was lost we may not have been told so yet."""
        if not failure.check(*CONNECTION_LOST):
            return
        if len(self._aborts) < ABORTS_MAX:
            self._aborts.append((name, shnums))
        if self.rref is not None and self.rref is not rref:
            self._send_aborts()


class StagingLinks:
    """The links to all staging servers. `get_reference` is that of a Tub; `on_change` is called when it has become
    known whether a plugin can be reached."""

    def __init__(self, get_reference: Callable[[str], Deferred[Any]], clock: IReactorTime,
                 on_change: Callable[[], None]) -> None:
        self._get_reference = get_reference
        self._clock = clock
        self._on_change = on_change
        self._links: dict[bytes, PluginLink] = {}

    def link(self, native: Any) -> PluginLink | None:
        """The link to a connected node's plugin, if it has the plugin."""
        furl = plugin_furl(native.get_announcement())
        if furl is None:
            return None
        server_id = bytes(native.get_serverid())
        link = self._links.get(server_id)
        if link is None:
            link = self._links[server_id] = PluginLink(
                short_name(native), self._get_reference, self._clock, self._on_change)
        link.connect(furl, native.get_rref())
        return link

    def stop(self) -> None:
        """Try no more."""
        for link in self._links.values():
            link.stop()
