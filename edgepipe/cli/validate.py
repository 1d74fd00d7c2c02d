"""`edgepipe validate`: judge a bundle again."""

from __future__ import annotations

from pathlib import Path

import click

from edgepipe.cli.console import progress
from edgepipe.cli.options import json_option, junit_option, output_options, project_option, strict_option, target_options
from edgepipe.cli.outcome import show_outcome
from edgepipe.errors import UsageError


@click.command("validate")
@click.argument("bundle")
@click.option("--profile", "profiles", multiple=True, metavar="NAME|FILE", help="Judge it on these (default: the bundle's own).")
@click.option("--data", metavar="FILE", help="Test data (default: the project file's).")
@click.option("--budget", multiple=True, metavar="KEY=VALUE", help="A limit over the one the bundle was built with.")
@click.option("--report", metavar="FILE", help="Write a page of the verdicts there, several profiles side by side.")
@project_option
@target_options
@strict_option
@junit_option
@json_option
@output_options
def command(
    bundle: str,
    profiles: tuple[str, ...],
    data: str | None,
    budget: tuple[str, ...],
    report: str | None,
    project: str | None,
    devices: tuple[str, ...],
    target_samples: int | None,
    strict: bool,
    junit: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Judge BUNDLE again, on its own device or others. A bundle whose files were changed is refused."""
    from edgepipe.revalidate import revalidate

    if report and Path(report).resolve().is_relative_to(Path(bundle).resolve()):
        raise UsageError(
            "a page inside the bundle would change what its checksums stand for", where=report, fix="name a file outside the bundle"
        )
    with progress(quiet=quiet or as_json, verbose=verbose) as display:
        results = revalidate(
            Path(bundle),
            profiles,
            test=data,
            budget=budget,
            project=project,
            strict=strict,
            devices=devices,
            target_samples=target_samples,
            progress=display,
        )
    return show_outcome(results, junit=junit, strict=strict, as_json=as_json, quiet=quiet, bundles=False, page=report, verbose=verbose)
