"""Linking the finished file of an upload handle: handle.LinkFile, through the client node."""

from __future__ import annotations

from client_shim.gateway.handles import LinkTarget
from client_shim.gateway.linking import Linker
from client_shim.gateway.upload_errors import BadLink, LinkRefused
from client_shim.gateway.upload_requests import place_in


class HandleLinks:
    """To be called with what a handle was made with, and its cap; again after a restart that came in between."""

    def __init__(self, linker: Linker) -> None:
        self._linker = linker

    async def __call__(self, target: LinkTarget, cap: bytes) -> None:
        """Raises NodeAway, LinkRefused."""
        place = place_in(target.dircap.decode("utf-8"), target.name)
        if place is None:
            raise BadLink("the write cap of a directory, and a filename without slashes")
        status = await self._linker.link(place, cap)
        if status != 200:
            raise LinkRefused(status)
