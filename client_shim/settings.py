"""The client's settings: section [client] of `streaming.cfg` in its node directory (helper/streaming_cfg.py)."""

from __future__ import annotations

from pathlib import Path

import attrs

from client_shim.disclosure import RevealStorageIndex
from helper.streaming_cfg import Key, read_section

SECTION = "client"


@attrs.frozen
class ClientSettings:
    """What holds for every upload that does not say otherwise."""

    #: When the storage index of an upload is told.
    reveal: RevealStorageIndex = RevealStorageIndex.AUTO


_KEYS = {
    "reveal-storage-index": Key("reveal", RevealStorageIndex,
                                " or ".join(each.value for each in RevealStorageIndex)),
}


def read_client_settings(node_directory: Path) -> ClientSettings:
    """The settings in `streaming.cfg` of a node directory; defaults where it or a key is missing.

    Raises SettingsError for an unknown section or key and for a value that cannot be used.
    """
    return ClientSettings(**read_section(node_directory, SECTION, _KEYS))
