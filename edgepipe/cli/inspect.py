"""`edgepipe inspect MODEL`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgepipe.cli.options import json_option


@click.command("inspect")
@click.argument("model")
@click.option("--profile", "profiles", multiple=True, metavar="NAME|FILE", help="Say what would bind there.")
@json_option
def command(model: str, profiles: tuple[str, ...], as_json: bool) -> None:
    """Show MODEL's parameters, bytes by part, operators and arithmetic, and what would bind on a device."""
    from edgepipe.config import resolve_path
    from edgepipe.inspection import binding, inspect_model
    from edgepipe.profile import load_profile

    found = inspect_model(resolve_path(model, Path.cwd()))
    bounds = [binding(found, load_profile(name)) for name in profiles]
    if as_json:
        click.echo(json.dumps({**found, "binding": bounds}, ensure_ascii=False))
        return
    parameters = f"{found['parameters']:,} parameters" if found["parameters"] else "parameters unknown (.bin weights)"
    click.echo(f"{model}: {' '.join(filter(None, [found['format'], found['family']]))}, {parameters}, {found['size_bytes'] / 1e6:.1f} MB")
    for entry in found["parts"][:16]:
        click.echo(f"  {entry['part']:<48} {entry['parameters']:>12,}  {entry['bytes'] / 1e6:8.2f} MB")
    if found["operators"]:
        click.echo("operators  " + ", ".join(f"{name} {count}" for name, count in found["operators"].items()))
    counted = "" if found["flops"] is None else f"{found['flops'] / 1e9:.3f} GFLOP: "
    click.echo(f"arithmetic {counted}{found['flops_at']}")
    for bound in bounds:
        floors = {"arithmetic": bound["arithmetic_floor_ms"], "reading weights": bound["bandwidth_floor_ms"]}
        known = ", ".join(f"{what} ≥ {floor:.2f} ms" for what, floor in floors.items() if floor is not None)
        click.echo(f"on {bound['profile']}: what binds is {bound['binds']} ({known}), {bound['share_of_ram']:.1%} of RAM")
