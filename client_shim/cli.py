"""`tahoe-stream`: the command line. Caps alone go to standard output, everything else to standard error.

Every command imports what it needs when it runs: `put` should start quickly.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

_node_directory = click.option(
    "-d", "--node-directory", type=click.Path(path_type=Path, file_okay=False), default=Path("~/.tahoe"),
    show_default=True, help="The directory of the Tahoe client node.")


def _duration(_context: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    from client_shim.settings import DURATION
    from helper.streaming_cfg import duration_of

    if text is None:
        return None
    try:
        seconds = duration_of(text)
    except ValueError:
        seconds = -1
    if seconds < 0:
        raise click.BadParameter(f"{text!r}: expected {DURATION}")
    return seconds


@click.group()
@click.version_option(package_name="tahoe-stream")
def main() -> None:
    """Streaming uploads for Tahoe-LAFS."""


@main.group()
def helper() -> None:
    """The helper daemon."""


@helper.command("run", context_settings={"ignore_unknown_options": True})
@click.argument("nodedir", type=click.Path(path_type=Path))
@click.option("--allow-stdin-close", is_flag=True, help="Do not exit when standard input closes.")
@click.argument("twistd_arguments", nargs=-1, type=click.UNPROCESSED)
def helper_run(nodedir: Path, allow_stdin_close: bool, twistd_arguments: tuple[str, ...]) -> None:
    """Run the Tahoe node in NODEDIR in the foreground, with the streaming helper.

    The node's tahoe.cfg says `[helper] enabled = true`. Options after NODEDIR go to twistd.
    """
    from helper.service import run_helper

    sys.exit(run_helper(nodedir, allow_stdin_close, twistd_arguments))


@main.command()
@_node_directory
@click.option("--convergent", is_flag=True,
              help="Read FILE twice and encrypt it under the key that `tahoe put` would use: the same cap.")
@click.option("--verify", is_flag=True,
              help="Read random segments back through the client node before printing the cap.")
@click.option("--from-command", is_flag=True,
              help="Upload the output of a command (after --); no cap if it fails.")
@click.option("--reveal-storage-index", "reveal", type=click.Choice(["auto", "early", "at-completion"]),
              help="When the helper is told the storage index: when it cannot do without (auto, the default), at "
                   "once, or with the last byte. The default is a setting: streaming.cfg, [client].")
@click.option("--patience", metavar="DURATION", callback=_duration,
              help="How long a helper that was lost is looked for before the upload is given up, such as 1 hour (the "
                   "default) or 0 seconds. The default is a setting: streaming.cfg, [client].")
@click.option("--json", "as_json", is_flag=True, help="Progress and errors as JSON lines on standard error.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[FILE|-] [-- COMMAND...]")
def put(node_directory: Path, convergent: bool, verify: bool, from_command: bool, reveal: str | None,
        patience: int | None, as_json: bool, arguments: tuple[str, ...]) -> None:
    """Stream FILE, standard input or a command's output to the grid, and print its read cap."""
    if from_command:
        if not arguments:
            raise click.UsageError("--from-command needs a command, after --")
        if convergent:
            raise click.UsageError("--convergent needs a regular file: a command's output cannot be read twice")
        file, command = None, arguments
    else:
        if len(arguments) > 1:
            raise click.UsageError("one FILE only")
        file = Path(arguments[0]) if arguments and arguments[0] != "-" else None
        command = ()
        if convergent and (file is None or not file.is_file()):
            raise click.UsageError("--convergent needs a regular file: it is read twice")
    from client_shim.disclosure import RevealStorageIndex
    from client_shim.put import PutOptions, run_put
    from client_shim.report import Report

    options = PutOptions(node_directory, file, command, convergent, verify,
                         None if reveal is None else RevealStorageIndex(reveal), patience)
    sys.exit(run_put(options, Report(sys.stderr, as_json), lambda cap: print(cap, flush=True)))


@main.group()
def gateway() -> None:
    """The HTTP gateway."""


@gateway.command("run")
@_node_directory
@click.option("--listen", metavar="ENDPOINT",
              help="Where to listen, as a Twisted endpoint. The default is a setting (streaming.cfg, [gateway]), and "
                   "that of the setting tcp:3457:interface=127.0.0.1.")
def gateway_run(node_directory: Path, listen: str | None) -> None:
    """Run the HTTP gateway of a client node in the foreground.

    It streams uploads to the node's helper and passes everything else on to the node. `tahoe -d
    NODE_DIRECTORY/streaming` uses it.
    """
    from client_shim.gateway.service import run_gateway

    sys.exit(run_gateway(node_directory, listen, sys.stderr))


@main.command()
@click.option("-d", "--node-directory", type=click.Path(path_type=Path), default=Path("~/.tahoe"), show_default=True,
              help="The directory of the Tahoe node that runs the streaming helper.")
@click.option("-v", "--verbose", is_flag=True, help="Below each upload a line for each of its shares.")
@click.option("--json", "as_json", is_flag=True, help="What the helper tells, as JSON; errors as a JSON line.")
def status(node_directory: Path, verbose: bool, as_json: bool) -> None:
    """Show the uploads of a streaming helper that runs on this machine: how far each is, and why one is paused."""
    from client_shim.status import run_status

    sys.exit(run_status(node_directory, verbose=verbose, as_json=as_json, out=sys.stdout, err=sys.stderr))


@main.command()
@click.option("--storage-nodes", type=click.IntRange(1, 50), default=10, show_default=True)
@click.option("--stock-servers", is_flag=True,
              help="Storage nodes without our plugin: they want the storage index first.")
@click.option("--keep", is_flag=True, help="Leave the grid's directory behind.")
@click.argument("file", required=False)
def demo(storage_nodes: int, stock_servers: bool, keep: bool, file: str | None) -> None:
    """Build a whole grid on this machine, stream FILE (default: 64 MiB of random bytes) through it, and read it
    back with a stock Tahoe client. Needs no configuration and leaves nothing behind."""
    from client_shim.demo import run_demo

    sys.exit(run_demo(None if file is None else "-" if file == "-" else Path(file),
                      storage_nodes=storage_nodes, stock_servers=stock_servers, keep=keep))


if __name__ == "__main__":
    main()
