"""The gateway's settings: section [gateway] of `streaming.cfg` in the client node's directory."""

from __future__ import annotations

from pathlib import Path

import attrs

from client_shim.dedup import DedupMode
from client_shim.gateway.handle_settings import HANDLE_KEYS, HandleSettings
from helper.streaming_cfg import Key, count_of, duration_of, read_section, size_of

SECTION = "gateway"

#: On loopback, beside the 3456 that `tahoe create-node` gives to the node's own web port.
DEFAULT_LISTEN = "tcp:3457:interface=127.0.0.1"

_DURATION = "a duration such as 30 seconds"
_HANDLES = HandleSettings()


@attrs.frozen
class GatewaySettings:
    """Durations in seconds."""

    #: A Twisted endpoint.
    listen: str = DEFAULT_LISTEN
    #: In which the head of a request must be complete.
    head_timeout: int = 30
    #: In which a body must bring something. A pipe into curl may be silent for long, and an upload that waits costs
    #: little; the connections that wait are limited, and TCP finds out about peers that are gone.
    body_timeout: int = 24 * 3600
    #: How long a connection is kept open for the next request.
    idle_timeout: int = 60
    #: For how long a helper that is away is looked for before a new upload is refused.
    helper_wait: int = 10
    #: Connections at a time, of all peers and of one.
    connections_max: int = 1000
    connections_per_host: int = 750
    #: Whether files that are stored already are looked for; None: as the setting of [client] says.
    dedup: DedupMode | None = None
    #: Further names in Host headers that are ours.
    hosts: tuple[str, ...] = ()
    #: Origins (https://name) whose pages may write here.
    allow_origins: tuple[str, ...] = ()
    #: Of upload handles: see HandleSettings.
    handles_max: int = _HANDLES.handles_max
    handle_expiry: int = _HANDLES.handle_expiry
    result_retention: int = _HANDLES.result_retention
    ring_memory: int = _HANDLES.ring_memory
    #: Bytes of one body of tus that comes with a checksum, which stays in memory until it is verified.
    checksum_body_max: int = 8 * 1024 * 1024

    @property
    def handles(self) -> HandleSettings:
        """What holds for upload handles."""
        return HandleSettings(self.handles_max, self.handle_expiry, self.result_retention, self.ring_memory,
                              self.helper_wait)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.replace(",", " ").split())


def _origins(text: str) -> tuple[str, ...]:
    """Raises ValueError for what browsers would never send as Origin."""
    origins = tuple(origin.lower() for origin in _words(text))
    for origin in origins:
        scheme, separator, rest = origin.partition("://")
        if scheme not in ("http", "https") or not separator or not rest or set(rest) & set("/?#*@"):
            raise ValueError(origin)
    return origins


def _listen(text: str) -> str:
    if not text.strip():
        raise ValueError("empty")
    return text.strip()


_KEYS = {
    "listen": Key("listen", _listen, f"a Twisted endpoint such as {DEFAULT_LISTEN}"),
    "head-timeout": Key("head_timeout", duration_of, _DURATION),
    "body-timeout": Key("body_timeout", duration_of, _DURATION),
    "idle-timeout": Key("idle_timeout", duration_of, _DURATION),
    "helper-wait": Key("helper_wait", duration_of, _DURATION, least=0),
    "connections-max": Key("connections_max", count_of, "a number of connections"),
    "connections-per-host": Key("connections_per_host", count_of, "a number of connections"),
    "dedup": Key("dedup", DedupMode, " or ".join(mode.value for mode in DedupMode)),
    "hosts": Key("hosts", _words, "names of hosts, with spaces between them"),
    "allow-origins": Key("allow_origins", _origins,
                         "origins such as https://uploads.example, with spaces between them"),
    **HANDLE_KEYS,
    "checksum-body-max": Key("checksum_body_max", size_of, "a size such as 8 MiB"),
}


def read_gateway_settings(node_directory: Path) -> GatewaySettings:
    """The settings in `streaming.cfg` of a client node's directory; defaults where it or a key is missing.

    Raises SettingsError for an unknown section or key and for a value that cannot be used.
    """
    return GatewaySettings(**read_section(node_directory, SECTION, _KEYS))
