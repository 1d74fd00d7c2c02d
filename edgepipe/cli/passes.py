"""`edgepipe passes list|show`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgepipe.cli.options import json_option

plugin_option = click.option("--plugin", "plugins", multiple=True, metavar="FILE", help="Python file that registers passes.")


@click.group("passes", help="List the passes, or show one with its options.")
def command() -> None: ...


def _load(plugins: tuple[str, ...]) -> None:
    from edgepipe.passes import load_plugin

    for plugin in plugins:
        load_plugin(Path(plugin))


@command.command("list")
@plugin_option
@json_option
def list_passes(plugins: tuple[str, ...], as_json: bool) -> None:
    """Every pass: built in, of installed packages and of plugins."""
    from edgepipe.passes import passes

    _load(plugins)
    found = passes()
    if as_json:
        click.echo(json.dumps([_describe(name) for name in found], ensure_ascii=False))
        return
    for name, spec in found.items():
        takes = ", ".join(f"{role}: {kind}" for role, kind in spec.takes.items())
        click.echo(f"{name:<18} {takes} → {', '.join(spec.gives.values())}\n{'':<19}{spec.summary}")


@command.command("show")
@click.argument("name")
@plugin_option
@json_option
def show(name: str, plugins: tuple[str, ...], as_json: bool) -> None:
    """One pass: what it takes and gives, its options, what must hold after it."""
    _load(plugins)
    described = _describe(name)
    if as_json:
        click.echo(json.dumps(described, ensure_ascii=False))
        return
    click.echo(f"{name}: {described['summary']}")
    for key in ("takes", "gives", "after", "before", "data", "facts"):
        if described[key]:
            click.echo(f"  {key:<8} {_words(described[key])}")
    for check in described["checks"]:
        click.echo(f"  check    {check['name']}" + (f" ≤ {check['limit']}" if check["limit"] is not None else ""))
    for option, entry in described["options"].items():
        click.echo(f"  option   {option} = {json.dumps(entry.get('default'))}  {entry.get('description', '')}")


def _describe(name: str) -> dict[str, Any]:
    from edgepipe.passes import get_pass

    spec = get_pass(name)
    return {
        "name": name,
        "summary": spec.summary,
        "takes": dict(spec.takes),
        "gives": dict(spec.gives),
        "after": list(spec.after),
        "before": list(spec.before),
        "data": list(spec.data),
        "facts": [*spec.facts, *spec.costs],
        "checks": [{"name": check.name, "limit": check.limit} for check in spec.checks],
        "options": spec.options.model_json_schema().get("properties", {}),
    }


def _words(value: Any) -> str:
    return ", ".join(f"{role}: {kind}" for role, kind in value.items()) if isinstance(value, dict) else ", ".join(value)
