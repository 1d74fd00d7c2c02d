"""`edgepipe plan`: the recipe, with a reason on every line and what was left out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from edgepipe.cli.options import build_options, json_option, output_options, request_of
from edgepipe.errors import UsageError

if TYPE_CHECKING:
    from edgepipe.request import Request


@click.command("plan")
@build_options
@click.option("--write", metavar="FILE", help="Write the recipe there instead of to stdout.")
@json_option
@output_options
def command(write: str | None, as_json: bool, quiet: bool, verbose: bool, **arguments: Any) -> int:
    """Write the recipe for MODEL on a device as TOML; `compress --recipe FILE` runs exactly that."""
    request = request_of(arguments)
    return show_plans(request, whole=False, as_json=as_json, quiet=quiet, write=write)


def show_plans(request: Request, *, whole: bool, as_json: bool, quiet: bool, write: str | None = None) -> int:
    """Print or write the plans; `whole`: check samples and output folder too, as the build would."""
    from pathlib import Path

    from edgepipe.config import dump_recipe
    from edgepipe.request import planned
    from edgepipe.store import write_atomic

    _, builds = planned(request, whole=whole)
    if write:
        if len(builds) > 1:
            raise UsageError("--write takes one profile at a time", where="--write", fix="name one --profile")
        write_atomic(Path(write).absolute(), dump_recipe(builds[0].recipe).encode())
        return 0
    if as_json:
        plans = [{"profile": build.profile.name, **build.recipe.model_dump(mode="json", by_alias=True)} for build in builds]
        click.echo(json.dumps(plans[0] if len(plans) == 1 else plans, ensure_ascii=False))
    elif not quiet:
        for build in builds:
            click.echo(f"# recipe for {build.profile.name} ({build.profile.title})\n{dump_recipe(build.recipe)}")
    return 0
