"""`edgepipe plan`: the recipe, with a reason on every line and what was left out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from edgepipe.cli.options import build_options, json_option, output_options, request_of
from edgepipe.errors import UsageError

if TYPE_CHECKING:
    from edgepipe.build import Request


@click.command("plan")
@build_options
@click.option("--write", metavar="FILE", help="Write the recipe there instead of to stdout.")
@json_option
@output_options
def command(write: str | None, as_json: bool, quiet: bool, verbose: bool, **arguments: Any) -> int:
    """Write the recipe for MODEL on a device as TOML; `compress --recipe FILE` runs exactly that."""
    request = request_of(arguments)
    return show_plans(request, as_json=as_json, quiet=quiet, write=write)


def show_plans(request: Request, *, as_json: bool, quiet: bool, write: str | None = None) -> int:
    from pathlib import Path

    from edgepipe.build import prepare, recipe_for
    from edgepipe.config import dump_recipe
    from edgepipe.pipeline import check_recipe
    from edgepipe.profile import load_profile
    from edgepipe.store import write_atomic

    if not request.profiles:
        raise UsageError("no profile is given", where="--profile", fix="name the device: --profile rpi4, or --profile host for this machine")
    prepared = prepare(request, with_data=False)
    found = []
    for name in request.profiles:
        profile = load_profile(name)
        recipe = recipe_for(prepared, profile)
        check_recipe(recipe, prepared.artifact, request.recipe or "recipe")
        found.append((profile, recipe))
    if write:
        if len(found) > 1:
            raise UsageError("--write takes one profile at a time", where="--write", fix="name one --profile")
        write_atomic(Path(write).absolute(), dump_recipe(found[0][1]).encode())
        return 0
    if as_json:
        plans = [{"profile": profile.name, **recipe.model_dump(mode="json", by_alias=True)} for profile, recipe in found]
        click.echo(json.dumps(plans[0] if len(plans) == 1 else plans, ensure_ascii=False))
    elif not quiet:
        for profile, recipe in found:
            click.echo(f"# recipe for {profile.name} ({profile.title})\n{dump_recipe(recipe)}")
    return 0
