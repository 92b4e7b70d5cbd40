"""The gateway's own directory, CLIENTNODE/streaming: one gateway at a time; a node directory for `tahoe -d`.

The stock command line wants two things of a node directory: node.url, and private/ with aliases, the API token and its
database of backups. private/ is a link to the node's own, so that `tahoe -d CLIENTNODE/streaming add-alias` changes the
aliases of both, whatever way the file is replaced.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from client_shim.gateway.errors import BadStateDirectory, GatewayRunning

NAME = "streaming"


class StateDirectory:
    """CLIENTNODE/streaming. `take` it before anything else, and `release` it at the end."""

    def __init__(self, node_directory: Path) -> None:
        self._node_directory = node_directory
        self.path = node_directory / NAME
        self._lock: int | None = None

    def take(self) -> None:
        """Make it, if it is not there, and lock it for this process. Raises GatewayRunning, BadStateDirectory."""
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
            self.path.chmod(0o700)
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise BadStateDirectory(str(self.path), e.strerror or type(e).__name__) from e
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise GatewayRunning(str(self._node_directory)) from None
        except OSError as e:
            os.close(lock)
            raise BadStateDirectory(str(self.path), e.strerror or type(e).__name__) from e
        self._lock = lock
        try:
            self._link_private()
            self._url.unlink(missing_ok=True)  # of a gateway that was killed
        except OSError as e:
            self.release()
            raise BadStateDirectory(str(self.path), e.strerror or type(e).__name__) from e

    def listening(self, url: str) -> None:
        """Write node.url. Raises OSError."""
        new = self.path / "node.url.new"
        new.write_text(f"{url}\n", encoding="ascii")
        new.replace(self._url)

    def release(self) -> None:
        """Remove node.url and let another gateway take the directory. Safe to repeat."""
        lock, self._lock = self._lock, None
        if lock is not None:
            self._url.unlink(missing_ok=True)
            os.close(lock)

    @property
    def _url(self) -> Path:
        return self.path / "node.url"

    def _link_private(self) -> None:
        private = self.path / "private"
        target = Path("..") / "private"
        if private.is_symlink():
            if private.readlink() == target:
                return
            private.unlink()
        private.symlink_to(target)
