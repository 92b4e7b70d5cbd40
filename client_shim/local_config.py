"""What the nodes of a local grid are configured as: the options of a grid, and node directories made from them.

The directories are as `tahoe create-node` and `tahoe create-introducer` leave them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import attrs

from helper.staging_interfaces import PLUGIN_NAME


@attrs.frozen
class GridOptions:
    """What a LocalGrid is to consist of. k, happy, n and max_segment_size are those of the client nodes."""

    storage_nodes: int = 10
    k: int = 3
    happy: int = 7
    n: int = 10
    max_segment_size: int | None = None
    """Bytes; None for stock's 1 MiB."""
    storage_force_foolscap: bool = False
    """Storage nodes do not offer storage over HTTP."""
    client_force_foolscap: bool = False
    """The client node (not the storage nodes' own clients) does not use storage over HTTP."""
    helper: Literal["streaming", "stock"] | None = "streaming"
    helper_settings: str | None = None
    """Text of the helper node's streaming.cfg."""
    staging_nodes: int = 0
    """How many of the storage nodes, the first ones, have the staging plugin."""
    storage_options: Sequence[str] = ()
    """Lines at the end of every storage node's tahoe.cfg. They stand in [storage]; a section line may be among them."""
    storage_options_of: Mapping[int, Sequence[str]] = attrs.field(factory=dict)
    """Further such lines of single storage nodes, by index."""


def introducer_config(tub_port: int) -> list[str]:
    """The lines of the introducer's tahoe.cfg."""
    return _node_section("introducer", tub_port)


def helper_config(options: GridOptions, tub_port: int, force_foolscap: bool = False) -> list[str]:
    """The lines of a helper node's tahoe.cfg; our helper uses storage over Foolscap whatever they say."""
    lines = [*_node_section("helper", tub_port), *_client_section(options, "", force_foolscap)]
    return [*lines, "[helper]", "enabled = true", "[storage]", "enabled = false"]


def storage_config(options: GridOptions, index: int, tub_port: int) -> list[str]:
    """The lines of a storage node's tahoe.cfg; [storage] comes last."""
    # As a client over HTTP each storage node would poll all the others once a second.
    lines = [*_node_section(f"storage-{index}", tub_port), *_client_section(options, "", True)]
    lines += ["[storage]", "enabled = true", f"force_foolscap = {_flag(options.storage_force_foolscap)}"]
    if index < options.staging_nodes:
        lines.append(f"plugins = {PLUGIN_NAME}")
    return [*lines, *options.storage_options, *options.storage_options_of.get(index, ())]


def client_config(options: GridOptions, nickname: str, helper_furl: str, force_foolscap: bool) -> list[str]:
    """The lines of a client node's tahoe.cfg; an empty `helper_furl` means no helper."""
    lines = [*_node_section(nickname, None), *_client_section(options, helper_furl, force_foolscap)]
    return [*lines, "[storage]", "enabled = false"]


def write_introducer(directory: Path, config: Sequence[str]) -> None:
    """Make an introducer's directory."""
    _write_node(directory, "introducer", config)


def write_client(directory: Path, config: Sequence[str], introducer_furl: str) -> None:
    """Make the directory of any other node; helpers and storage nodes are clients too."""
    _write_node(directory, "client", config)
    introducers = f"introducers:\n  local:\n    furl: {introducer_furl}\n"
    (directory / "private" / "introducers.yaml").write_text(introducers, encoding="ascii")


def _write_node(directory: Path, kind: Literal["client", "introducer"], config: Sequence[str]) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "private").mkdir(mode=0o700, parents=True)
    (directory / f"tahoe-{kind}.tac").write_text("")  # `tahoe run` tells the kind of node by this name
    (directory / "tahoe.cfg").write_text("\n".join(config) + "\n", encoding="utf-8")


def _node_section(nickname: str, tub_port: int | None) -> list[str]:
    port = "disabled" if tub_port is None else f"tcp:{tub_port}:interface=127.0.0.1"
    location = "disabled" if tub_port is None else f"tcp:127.0.0.1:{tub_port}"
    return [
        "[node]",
        f"nickname = {nickname}",
        "web.port = tcp:0:interface=127.0.0.1",
        f"tub.port = {port}",
        f"tub.location = {location}",
    ]


def _client_section(options: GridOptions, helper_furl: str, force_foolscap: bool) -> list[str]:
    lines = ["[client]", f"force_foolscap = {_flag(force_foolscap)}"]
    lines += [f"shares.needed = {options.k}", f"shares.happy = {options.happy}", f"shares.total = {options.n}"]
    if helper_furl:
        lines.append(f"helper.furl = {helper_furl}")
    if options.max_segment_size is not None:
        lines.append(f"shares._max_immutable_segment_size_for_testing = {options.max_segment_size}")
    return lines


def _flag(value: bool) -> str:
    return "true" if value else "false"
