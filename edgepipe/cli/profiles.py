"""`edgepipe profiles list|show|check`."""

from __future__ import annotations

import json

import click

from edgepipe.cli.options import json_option


@click.group("profiles", help="List, show and check device profiles.")
def command() -> None: ...


@command.command("list")
@json_option
def list_profiles(as_json: bool) -> None:
    """Every profile, and whether this machine is of its kind."""
    from edgepipe.profile import load_profile, profile_names, runs_here

    found = [load_profile(name) for name in profile_names()]
    if as_json:
        click.echo(
            json.dumps(
                [{"name": p.name, "title": p.title, "arch": p.cpu.arch, "runner": p.reach.runner, "runs_here": runs_here(p)} for p in found]
            )
        )
        return
    for profile in found:
        note = "  (proven on this machine)" if runs_here(profile) else ""
        click.echo(f"{profile.name:<16} {profile.title}{note}")


@command.command("show")
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Every fact of a profile, with its source."""
    from edgepipe.profile import load_profile

    profile = load_profile(name)
    if as_json:
        click.echo(json.dumps(profile.model_dump(mode="json"), ensure_ascii=False))
        return
    click.echo(f"{profile.name}: {profile.title}")
    for fact, value in profile.facts().items():
        source = profile.sources.get(fact) or profile.sources.get(fact.split(".")[0], "")
        shown = " ".join(value) if isinstance(value, list) else value
        click.echo(f"  {fact:<22} {shown}\n{'':<25}{source}")
    if profile.notes:
        click.echo(f"  {profile.notes}")


@command.command("check")
@click.argument("file")
@json_option
def check(file: str, as_json: bool) -> None:
    """Check a profile file of your own."""
    from edgepipe.profile import load_profile

    profile = load_profile(file if "/" in file or file.endswith(".toml") else f"./{file}")
    if as_json:
        click.echo(json.dumps({"file": file, "name": profile.name, "facts": len(profile.facts())}))
        return
    click.echo(f"{file}: {profile.name} is a valid profile ({len(profile.facts())} facts)")
