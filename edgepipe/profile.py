"""Device profiles: the facts of one target as data, each with its source; a user's own may extend another."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from edgepipe.errors import UsageError, nearest
from edgepipe.resources import resource
from edgepipe.toml import Table, located, parse, read_toml

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

HOST = "host"
DECIDING = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve"}  # features that choose kernels
DOT_PRODUCTS = {"asimddp", "i8mm", "avx512_vnni", "avx_vnni", "wasm_relaxed_simd"}


def int8_saturates(arch: str, isa: Iterable[str]) -> bool:
    """Whether u8 × s8 products are summed in 16 bits first: x86 without VNNI."""
    return arch == "x86_64" and not DOT_PRODUCTS & set(isa)


def needs_exact_sums(profile: Profile) -> bool:
    """Whether int8 products saturate on this machine but not on the profile's CPU, so that standing in for it takes the
    runtime's slower kernels."""
    return host_profile().cpu.int8_saturates and not profile.cpu.int8_saturates


class Cpu(Table):
    """The processor that runs inference: of unlike cores, the cluster inference is pinned to."""

    model: str = Field(description="core, as QEMU or the vendor names it: cortex-a72")
    arch: Literal["aarch64", "x86_64", "wasm32"]
    isa: tuple[str, ...] = Field(description="features that kernels ask for, in Linux's names: asimd, asimddp, avx2, avx512_vnni")
    cores: int = Field(gt=0)
    clock_mhz: int = Field(gt=0)
    l1d_kib: int | None = Field(default=None, gt=0, description="per core")
    l2_kib: int | None = Field(default=None, gt=0, description="per core, or per cluster where shared")
    l3_kib: int | None = Field(default=None, gt=0)

    @property
    def int8_dot_product(self) -> bool:
        """Whether one instruction multiplies and adds 8-bit values into 32-bit sums."""
        return bool(DOT_PRODUCTS & set(self.isa))

    @property
    def int8_saturates(self) -> bool:
        return int8_saturates(self.arch, self.isa)


class Memory(Table):
    ram_bytes: int = Field(gt=0, description="what the board or tab has in all")
    bandwidth_gb_s: float | None = Field(default=None, gt=0, description="to main memory, peak of the interface")


class Runtime(Table):
    name: Literal["onnxruntime", "onnxruntime-web"] = "onnxruntime"
    version: str = "1.32.0"
    provider: str = "CPUExecutionProvider"
    operators: str = Field(default="onnxruntime-cpu", description="support table in export/operators/")
    threads: int = Field(gt=0)


class Reach(Table):
    runner: Literal["local", "ssh", "adb", "browser", "emulated"] = Field(description="how edgepipe gets at the device")
    address: str = Field(default="", description="where: USER@HOST[:PORT] for ssh, a serial number or HOST:PORT for adb")


class Profile(Table):
    """One device. Facts stand in `cpu`, `memory`, `runtime`; `sources` says where each comes from."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="also the folder's where several are built")
    title: str
    cpu: Cpu
    memory: Memory
    runtime: Runtime
    reach: Reach
    notes: str = ""
    sources: dict[str, str] = Field(description='fact → where it comes from, e.g. "cpu.l2_kib" = "https://…"')

    @model_validator(mode="after")
    def _facts_have_sources(self) -> Profile:
        unsourced = sorted(fact for fact in self.facts() if not _covered(fact, self.sources))
        if unsourced:
            raise ValueError(f"no source for {', '.join(unsourced)}; name one in [sources]")
        return self

    def facts(self) -> dict[str, Any]:
        """Every stated fact by dotted name: `cpu.isa`, `memory.ram_bytes`, …"""
        return {
            f"{table}.{key}": value
            for table in ("cpu", "memory", "runtime")
            for key, value in getattr(self, table).model_dump(mode="json").items()
            if value is not None
        }


def _covered(fact: str, sources: Mapping[str, str]) -> bool:
    return fact in sources or fact.split(".")[0] in sources


def load_profile(name: str) -> Profile:
    """A profile by name (`rpi4`, `host`), or by path to a TOML file (which may say `extends = "rpi4"`).

    Raises `UsageError` naming the nearest profile, or file, line and key.
    """
    if name == HOST:
        return host_profile()
    if name.endswith(".toml") or os.sep in name:
        return _from_file(Path(name))
    path = resource("profiles") / f"{name}.toml"
    if name not in profile_names():
        raise UsageError(f'unknown profile "{name}"', where="--profile", fix=nearest(name, profile_names()))
    if not path.is_file():
        return _installed()[name]
    return parse(Profile, _resolved(path, ()), source=path)


def with_devices(profiles: Sequence[Profile], devices: Sequence[str]) -> list[Profile]:
    """The profiles with the addresses of `--device [PROFILE=]ADDRESS`. Raises `UsageError` for one that names no profile
    of these, or a device that has no address."""
    found = {profile.name: profile for profile in profiles}
    if twice := next((name for name in found if sum(profile.name == name for profile in profiles) > 1), ""):
        raise UsageError(f'two profiles are named "{twice}"', where="--profile", fix="name each device once")
    for given in devices:
        name, sign, address = given.rpartition("=")
        if not sign and len(found) == 1:
            name = next(iter(found))
        if not address or name not in found:
            what = f'"{given}" names no profile of this run' if sign else f'"{given}": which of the profiles is it?'
            what = what if address else f'"{given}" names no address'
            raise UsageError(what, where="--device", fix=f"write PROFILE=ADDRESS with one of {', '.join(found)}")
        profile = found[name]
        if profile.reach.runner == "browser" or name == HOST:
            raise UsageError(f"{name} has no address: it is on this machine", where=f"--device {given}", fix="leave --device out")
        reach = Reach(runner="adb" if profile.reach.runner == "adb" else "ssh", address=address)
        found[name] = profile.model_copy(update={"reach": reach})
    return list(found.values())


def _from_file(path: Path) -> Profile:
    profile = parse(Profile, _resolved(path, ()), source=path)
    if profile.name == HOST:
        raise UsageError('"host" is this machine, whatever it is', where=located(path, ("name",)), fix="give the profile a name of its own")
    return profile


def profile_names() -> list[str]:
    """Names that `load_profile` takes: shipped, installed by packages, and `host`."""
    shipped = {path.stem for path in resource("profiles").glob("*.toml")}
    return sorted(shipped | set(_installed()) | {HOST})


def _installed() -> dict[str, Profile]:
    """Profiles of installed packages: entry points in `edgepipe.profiles` that give a path to a TOML file."""
    from importlib.metadata import entry_points

    found: dict[str, Profile] = {}
    for point in entry_points(group="edgepipe.profiles"):
        path = Path(str(point.load()))
        found[point.name] = parse(Profile, _resolved(path, ()), source=path)
    return found


def _resolved(path: Path, seen: tuple[str, ...]) -> dict[str, Any]:
    """The file's data with what it extends filled in below it."""
    data = read_toml(path)
    base_name = data.pop("extends", None)
    if base_name is None:
        return data
    seen_here = (*seen, str(path.resolve()))
    if seen_here[-1] in seen:
        raise UsageError("profiles extend each other in a circle", where=str(path), fix='change one "extends"')
    if base_name == HOST:
        base = host_profile().model_dump(mode="json")
    elif base_name in profile_names() and (resource("profiles") / f"{base_name}.toml").is_file():
        base = _resolved(resource("profiles") / f"{base_name}.toml", seen_here)
    elif (path.parent / str(base_name)).is_file():
        base = _resolved(path.parent / str(base_name), seen_here)
    else:
        raise UsageError(
            f'extends unknown profile "{base_name}"', where=located(path, ("extends",)), fix=nearest(str(base_name), profile_names())
        )
    sources = {
        f"{table}.{key}": f"{path.name} (the user's own)" for table in ("cpu", "memory", "runtime") for key in _subtable(data, table)
    }
    merged = _merged(base, data)
    if isinstance(data.get("sources", {}), dict):  # else validation says what is wrong with it
        merged["sources"] = {**_subtable(base, "sources"), **sources, **_subtable(data, "sources")}
    return merged


def _subtable(data: dict[str, Any], name: str) -> dict[str, Any]:
    found = data.get(name)
    return found if isinstance(found, dict) else {}


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result


@cache
def host_profile() -> Profile:
    """This machine, read from the operating system."""
    from edgepipe.machine import cache_kib, clock_mhz, cpu_flags, cpu_model, ram_bytes, usable_cores

    arch = {"AMD64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}.get(platform.machine(), "")
    if not arch:
        raise UsageError(f"this machine is a {platform.machine()}; edgepipe knows x86_64 and aarch64", where="--profile host")
    return Profile.model_validate(
        {
            "name": HOST,
            "title": f"this machine ({cpu_model()})",
            "cpu": {
                "model": cpu_model(),
                "arch": arch,
                "isa": cpu_flags(),
                "cores": usable_cores(),
                "clock_mhz": clock_mhz(),
                "l1d_kib": cache_kib(1),
                "l2_kib": cache_kib(2),
                "l3_kib": cache_kib(3),
            },
            "memory": {"ram_bytes": ram_bytes()},
            "runtime": {"version": _installed_runtime(), "threads": usable_cores()},
            "reach": {"runner": "local"},
            "sources": {"cpu": "detected", "memory": "detected", "runtime": "detected"},
        }
    )


def _installed_runtime() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("onnxruntime")
    except PackageNotFoundError:
        return str(Runtime.model_fields["version"].default)


def runs_here(profile: Profile) -> bool:
    """Whether this machine is of the profile's kind: same architecture, and the same answer for every feature
    that decides which kernels run."""
    here = host_profile().cpu
    there = profile.cpu
    if profile.reach.runner not in ("local", "ssh") or here.arch != there.arch:  # phones and browsers are more than a CPU
        return False
    return set(here.isa) & DECIDING == set(there.isa) & DECIDING
