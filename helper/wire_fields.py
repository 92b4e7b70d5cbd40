"""How the fields of an answer stand on the wire: protocol.txt §3.2, §15.2.  (pure)"""

from __future__ import annotations

from collections.abc import Mapping


def wire_fields(fields: Mapping[str, int | str | bytes]) -> dict[bytes, int | bytes]:
    """Keys with dashes, texts in UTF-8."""
    return {key.replace("_", "-").encode("ascii"): value.encode() if isinstance(value, str) else value
            for key, value in fields.items()}
