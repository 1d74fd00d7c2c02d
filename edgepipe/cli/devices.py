"""`edgepipe devices list|doctor|setup|measure|show`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from edgepipe.cli.console import progress
from edgepipe.cli.options import json_option, output_options

if TYPE_CHECKING:
    from edgepipe.cost.table import CostTable

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


@command.command("measure")
@click.argument("name", metavar="PROFILE")
@click.option("--device", "devices", multiple=True, metavar="ADDRESS", help="Time the kernels on the device itself.")
@click.option("--out", metavar="FILE", help="Write the table there instead of EDGEPIPE_CACHE/devices/PROFILE/costs.json.")
@json_option
@output_options
def measure(name: str, devices: tuple[str, ...], out: str | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Make the table of kernel costs that plans for PROFILE quote: timed on the device, or from counted instructions."""
    from pathlib import Path

    from edgepipe.cost.table import own_path
    from edgepipe.kernel_costs import measure_kernels
    from edgepipe.profile import load_profile, with_devices
    from edgepipe.store import write_atomic

    (profile,) = with_devices([load_profile(name)], devices)
    with progress(quiet=quiet or as_json, verbose=verbose) as display:
        table = measure_kernels(profile, display)
    path = Path(out).absolute() if out else own_path(profile.name)
    text = json.dumps(table.to_json(), indent=1)
    write_atomic(path, (text + "\n").encode())
    if as_json:
        click.echo(text)
    elif not quiet:
        _print_costs(table)
        click.echo(f"written to {path}")


def _print_costs(table: CostTable) -> None:
    from rich.console import Console
    from rich.table import Table

    from edgepipe.cost.kernels import PRECISIONS, kernels

    shown = Table(
        box=None, pad_edge=False, title=f"{table.profile}: kernels on one thread, ms ({table.source}, {table.runtime}, {table.cpu})"
    )
    for heading in ("kernel", *PRECISIONS):
        shown.add_column(heading, justify="left" if heading == "kernel" else "right")
    for kernel in kernels():
        if kernel.precision != "float32":
            continue
        times = [table.ms(kernel.kind, precision, kernel.shape) for precision in PRECISIONS]
        base = times[0]
        cells = [f"{ms:.3f}" + (f" ({base / ms:.1f} ×)" if base and index else "") if ms else "" for index, ms in enumerate(times)]
        shown.add_row(kernel.title, *cells)
    Console().print(shown)


@command.command("show")
@click.argument("name", metavar="PROFILE")
@json_option
def show(name: str, as_json: bool) -> None:
    """How PROFILE would be judged here, the CPU that stands for it, and the kernel costs known for it."""
    from edgepipe.cost.table import load_table
    from edgepipe.emulation import can_emulate, qemu_cpu
    from edgepipe.profile import load_profile
    from edgepipe.readiness import of_profile

    profile = load_profile(name)
    entry, table = of_profile(profile), load_table(profile)
    cpu, nearest = qemu_cpu(profile.cpu) if can_emulate(profile) and profile.cpu.arch == "aarch64" else ("", "")
    if as_json:
        costs = table.to_json() if table else None
        click.echo(json.dumps({**entry.to_json(), "emulated_cpu": cpu, "nearest_only": bool(nearest), "costs": costs}, ensure_ascii=False))
        return
    click.echo(f"{profile.name}: {profile.title}")
    click.echo(f"  judged by    {entry.by}: " + ", ".join(f"{axis} {MARKS[value]}" for axis, value in entry.axes.items()))
    if cpu:
        click.echo(f"  emulated as  {cpu}" + (f" (the nearest the emulator has to {profile.cpu.model})" if nearest else ""))
    for what, fix in entry.lacking:
        click.echo(f"  missing      {what} → {fix}")
    if table is not None:
        _print_costs(table)
