"""`edgepipe cache list|prune`."""

from __future__ import annotations

import json

import click

from edgepipe.cli.options import json_option
from edgepipe.errors import UsageError


@click.group("cache", help="List what edgepipe keeps between runs, or bring it in bounds.")
def command() -> None: ...


@command.command("list")
@json_option
def list_cache(as_json: bool) -> None:
    """Artifacts in the store, least recently used first."""
    from edgepipe.store import Store

    store = Store.default()
    entries = store.entries()
    if as_json:
        click.echo(json.dumps({"root": str(store.root), "size_bytes": store.size_bytes(), "artifacts": entries}))
        return
    for entry in entries:
        click.echo(f"{entry['digest'][:12]}  {entry['size_bytes'] / 1e6:9.1f} MB  used {entry['age_s'] / 3600:7.1f} h ago")
    click.echo(f"{len(entries)} artifacts, {store.size_bytes() / 1e6:.1f} MB on disk in {store.root}")


@command.command("prune")
@click.option(
    "--max-size", required=True, metavar="SIZE", help="Drop the least recently used until the store is this small: 2GB, 500MB, 0."
)
@json_option
def prune(max_size: str, as_json: bool) -> None:
    """Bring the store in bounds; deleting loses nothing but time."""
    from edgepipe.config import parse_bytes
    from edgepipe.store import Store

    try:
        limit = parse_bytes(max_size)
    except ValueError as error:
        raise UsageError(str(error), where="--max-size", fix="for example --max-size 2GB") from None
    store = Store.default()
    freed = store.prune(limit)
    if as_json:
        click.echo(json.dumps({"freed_bytes": freed, "size_bytes": store.size_bytes()}))
        return
    click.echo(f"freed {freed / 1e6:.1f} MB; {store.size_bytes() / 1e6:.1f} MB are left")
