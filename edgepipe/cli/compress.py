"""`edgepipe compress`: build, validate, hand over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgepipe.cli.console import progress
from edgepipe.cli.options import build_options, json_option, junit_option, output_options, request_of, strict_option


@click.command("compress")
@build_options
@click.option("--out", metavar="DIR", help="Where the bundle goes (default: build, or the project file's).")
@click.option("--force", is_flag=True, help="Replace the bundle that is there.")
@strict_option
@click.option("--archive", is_flag=True, help="Write OUT.tar.gz too, reproducible.")
@click.option("--dry-run", is_flag=True, help="Read and check everything, show the plan, run nothing.")
@junit_option
@json_option
@output_options
def command(
    out: str | None, force: bool, strict: bool, archive: bool, dry_run: bool, junit: str | None, as_json: bool, quiet: bool, verbose: bool, **arguments: Any
) -> int:
    """Compress MODEL for a device and prove the result there.

    MODEL is a model folder, an ONNX file or hf://org/name@revision; what is not given comes from edgepipe.toml.
    Exit code 0: no budget broke (some axes may be unproven; --strict refuses that). 10-15: the first axis that broke.
    """
    from edgepipe.build import compress

    request = request_of(arguments, out=out, force=force, strict=strict, archive=archive)
    if dry_run:
        from edgepipe.cli.plan import show_plans

        return show_plans(request, whole=True, as_json=as_json, quiet=quiet)
    with progress(quiet=quiet or as_json, verbose=verbose) as display:
        results = compress(request, display)
    manifests = [result.manifest for result in results]
    if junit:
        write_junit(Path(junit), manifests, strict=strict)
    if as_json:
        click.echo(json.dumps(manifests[0] if len(manifests) == 1 else manifests, ensure_ascii=False))
    elif not quiet:
        from edgepipe.report.terminal import print_result

        for result in results:
            print_result(result.manifest, bundle=result.bundle, report=result.report)
    return min((result.exit_code for result in results if result.exit_code), default=0)


def write_junit(path: Path, manifests: list[dict[str, Any]], *, strict: bool) -> None:
    from edgepipe.report.junit import junit_xml
    from edgepipe.store import write_atomic

    write_atomic(path.absolute(), junit_xml(manifests, strict=strict).encode())
