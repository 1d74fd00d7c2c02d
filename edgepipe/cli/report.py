"""`edgepipe report`: a finished bundle's verdicts and page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgepipe.cli.options import json_option, junit_option
from edgepipe.errors import ModelError


@click.command("report")
@click.argument("bundles", nargs=-1, required=True)
@click.option("--out", metavar="FILE", help="Write one page for all the bundles there (default: none is written).")
@junit_option
@json_option
def command(bundles: tuple[str, ...], out: str | None, junit: str | None, as_json: bool) -> None:
    """Show the verdicts of BUNDLES again, several side by side too; with --out, as one page."""
    from edgepipe.cli.outcome import write_junit, write_page
    from edgepipe.report.terminal import print_result
    from edgepipe.report.terminal_matrix import print_matrix

    manifests = [read_manifest(Path(bundle)) for bundle in bundles]
    if out:
        write_page(Path(out), manifests, [read_json(Path(bundle) / "measurements.json") for bundle in bundles])
    if junit:
        write_junit(Path(junit), manifests, strict=False)
    if as_json:
        click.echo(json.dumps(manifests[0] if len(manifests) == 1 else manifests, ensure_ascii=False))
        return
    for bundle, manifest in zip(bundles, manifests, strict=True):
        print_result(manifest, bundle=Path(bundle), report=Path(out) if out else Path(bundle) / "report.html")
    if len(bundles) > 1:
        print_matrix(manifests, places=[("report", Path(out))] if out else ())


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a bundle folder, or that file itself."""
    file = path if path.is_file() else path / "manifest.json"
    manifest = read_json(file)
    if not isinstance(manifest.get("results"), list) or not {"profile", "verdict", "source"} <= set(manifest):
        raise ModelError("that is no manifest of edgepipe", where=str(file), fix="name the folder `edgepipe compress` wrote")
    return manifest


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(data, dict):
            return data
    except (OSError, ValueError):
        pass
    raise ModelError("no bundle can be read there", where=str(path), fix="name the folder `edgepipe compress` wrote")
