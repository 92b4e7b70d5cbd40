"""The client's settings: section [client] of `streaming.cfg` in its node directory (helper/streaming_cfg.py)."""

from __future__ import annotations

from pathlib import Path

import attrs

from client_shim.dedup import DedupMode
from client_shim.disclosure import RevealStorageIndex
from helper.streaming_cfg import Key, duration_of, read_section

SECTION = "client"

#: What is expected of a duration, here and on the command line.
DURATION = "a duration such as 1 hour"


@attrs.frozen
class ClientSettings:
    """What holds for every upload that does not say otherwise. Durations in seconds."""

    #: When the storage index of an upload is told.
    reveal: RevealStorageIndex = RevealStorageIndex.AUTO
    #: How long a helper that was lost during an upload is looked for.
    patience: int = 3600
    #: Whether files that are stored already are looked for.
    dedup: DedupMode = DedupMode.ON


_KEYS = {
    "reveal-storage-index": Key("reveal", RevealStorageIndex,
                                " or ".join(each.value for each in RevealStorageIndex)),
    "dedup": Key("dedup", DedupMode, " or ".join(each.value for each in DedupMode)),
    "patience": Key("patience", duration_of, DURATION, least=0),
}


def read_client_settings(node_directory: Path) -> ClientSettings:
    """The settings in `streaming.cfg` of a node directory; defaults where it or a key is missing.

    Raises SettingsError for an unknown section or key and for a value that cannot be used.
    """
    return ClientSettings(**read_section(node_directory, SECTION, _KEYS))
