"""What we need of a Tahoe client node's directory; the node itself need not run.

tahoe.cfg is read here and not by allmydata.client, which takes a second to import.
"""

from __future__ import annotations

import configparser
from pathlib import Path

import attrs
from allmydata.util import base32

from client_shim.errors import BadNodeDirectory, NoHelperConfigured
from client_shim.settings import ClientSettings, read_client_settings
from helper.errors import BadArgument
from helper.parameters import Parameters
from helper.streaming_cfg import SettingsError

# allmydata.client._Client.DEFAULT_ENCODING_PARAMETERS
_DEFAULTS = {"shares.needed": 3, "shares.happy": 7, "shares.total": 10,
             "shares._max_immutable_segment_size_for_testing": 1024 * 1024}


@attrs.frozen
class NodeConfig:
    """A client node's configuration. `parameters` has no size; `settings` are those of its streaming.cfg."""

    directory: Path
    parameters: Parameters
    _helper_furl: str | None
    settings: ClientSettings = attrs.field(factory=ClientSettings)

    @property
    def helper_furl(self) -> str:
        """Raises NoHelperConfigured."""
        if self._helper_furl is None:
            raise NoHelperConfigured(str(self.directory / "tahoe.cfg"))
        return self._helper_furl

    def convergence_secret(self) -> bytes:
        """Raises BadNodeDirectory if the node never ran and has none."""
        text = self._read(Path("private") / "convergence")
        try:
            return bytes(base32.a2b(text.strip().encode("ascii")))
        except (ValueError, AssertionError):
            # not `from`: the text of these quotes the secret
            raise BadNodeDirectory(str(self.directory), "private/convergence is not base32") from None

    def node_url(self) -> str:
        """Where the running node's web API is, with a slash at the end. Raises BadNodeDirectory."""
        return self._read(Path("node.url")).strip().rstrip("/") + "/"

    def _read(self, name: Path) -> str:
        try:
            return (self.directory / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise BadNodeDirectory(str(self.directory), f"{name} cannot be read") from e


def read_node_config(directory: Path) -> NodeConfig:
    """Raises BadNodeDirectory, naming what is wrong."""
    directory = directory.expanduser()
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with (directory / "tahoe.cfg").open(encoding="utf-8-sig") as f:
            parser.read_file(f)
    except FileNotFoundError as e:
        raise BadNodeDirectory(str(directory), "there is no tahoe.cfg in it") from e
    except (OSError, UnicodeDecodeError, configparser.Error) as e:
        raise BadNodeDirectory(str(directory), f"tahoe.cfg cannot be read ({type(e).__name__})") from e
    numbers = {}
    for key, default in _DEFAULTS.items():
        text = parser.get("client", key, fallback=str(default))
        try:
            numbers[key] = int(text)
        except ValueError as e:
            raise BadNodeDirectory(str(directory), f"{key} = {text!r} in tahoe.cfg is not a number") from e
    needed, happy, total, segment = numbers.values()
    try:
        parameters = Parameters.from_wire(Parameters(needed, happy, total, segment).to_wire())
    except BadArgument as e:
        raise BadNodeDirectory(str(directory), f"encoding parameters in tahoe.cfg: {e.text()}") from e
    furl = parser.get("client", "helper.furl", fallback="").strip()
    try:
        settings = read_client_settings(directory)
    except SettingsError as e:
        raise BadNodeDirectory(str(directory), str(e)) from e
    return NodeConfig(directory, parameters, None if furl in ("", "None") else furl, settings)
