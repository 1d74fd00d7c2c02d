"""`edgepipe devices list|doctor|setup|measure|show`."""

from __future__ import annotations

import json

import click

from edgepipe.cli.console import progress
from edgepipe.cli.options import json_option, output_options

MARKS = {"measured": "measured", "emulated": "emulated", "predicted": "predicted", "host": "unproven"}


@click.group("devices", help="Set up and look at what devices are judged with.")
def command() -> None: ...


@command.command("list")
@json_option
def list_devices(as_json: bool) -> None:
    """Every profile, and what its figures would be worth here and now."""
    from rich.console import Console
    from rich.table import Table

    from edgepipe.readiness import readiness

    found = readiness()
    if as_json:
        click.echo(json.dumps([entry.to_json() for entry in found], ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("profile", "accuracy", "parity", "memory", "latency", "device"):
        table.add_column(heading, no_wrap=heading != "device")
    for entry in found:
        table.add_row(entry.profile, *(MARKS[entry.axes[axis]] for axis in ("accuracy", "parity", "memory", "latency")), entry.title)
    Console().print(table)
    click.echo("unproven: this machine would stand in; `edgepipe devices doctor` says what is missing")


@command.command("doctor")
@click.argument("names", nargs=-1, metavar="[PROFILE]...")
@json_option
def doctor(names: tuple[str, ...], as_json: bool) -> None:
    """What each profile can be judged with here, what is missing, and the command that gets it."""
    from edgepipe.profile import load_profile
    from edgepipe.readiness import of_profile, readiness

    found = [of_profile(load_profile(name)) for name in names] if names else readiness()
    if as_json:
        click.echo(json.dumps([entry.to_json() for entry in found], ensure_ascii=False))
        return
    for entry in found:
        proved = ", ".join(f"{axis} {MARKS[provenance]}" for axis, provenance in entry.axes.items())
        click.echo(f"{entry.profile}: {proved}")
        for what, fix in entry.lacking:
            click.echo(f"  missing: {what}\n    → {fix}")


@command.command("setup")
@click.argument("names", nargs=-1, required=True, metavar="PROFILE...")
@output_options
def setup(names: tuple[str, ...], quiet: bool, verbose: bool) -> None:
    """Bring what emulates PROFILE (or runs its browser) to this machine: the one step that uses the network.

    Pinned, checked by sha256, without root, into EDGEPIPE_CACHE/devices; goes on where it was cut off, and is not needed again.
    """
    from edgepipe.device_setup import set_up_profile
    from edgepipe.profile import load_profile

    profiles = [load_profile(name) for name in names]
    with progress(quiet=quiet, verbose=verbose) as display:
        told = [(profile.name, set_up_profile(profile, display)) for profile in profiles]
    if not quiet:
        for name, text in told:
            click.echo(f"{name}: {text}")


@command.command("show")
@click.argument("name", metavar="PROFILE")
@json_option
def show(name: str, as_json: bool) -> None:
    """How PROFILE would be judged here, the CPU that stands for it, and the kernel costs known for it."""
    from edgepipe.emulation import can_emulate, qemu_cpu
    from edgepipe.profile import load_profile
    from edgepipe.readiness import of_profile

    profile = load_profile(name)
    entry = of_profile(profile)
    cpu, nearest = qemu_cpu(profile.cpu) if can_emulate(profile) and profile.cpu.arch == "aarch64" else ("", "")
    if as_json:
        click.echo(json.dumps({**entry.to_json(), "emulated_cpu": cpu, "nearest_only": bool(nearest)}, ensure_ascii=False))
        return
    click.echo(f"{profile.name}: {profile.title}")
    click.echo(f"  judged by    {entry.by}: " + ", ".join(f"{axis} {MARKS[value]}" for axis, value in entry.axes.items()))
    if cpu:
        click.echo(f"  emulated as  {cpu}" + (f" (the nearest the emulator has to {profile.cpu.model})" if nearest else ""))
    for what, fix in entry.lacking:
        click.echo(f"  missing      {what} → {fix}")
