"""The files that make a bundle a page: the same driver.js the browser runner judged, its runtime, and a form to type in.

    OUT/index.html  serve.py     the page, and a server that sends the headers it needs
    OUT/browser/…                driver.js, onnxruntime-web, tokenizers.js, their licences

14.4 MB beside the model, 14.2 of them onnxruntime-web's WebAssembly. Nothing is fetched from elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepipe.browser_setup import checked_runtime, pinned_files, runtime_folder, wrong_file
from edgepipe.resources import resource

if TYPE_CHECKING:
    from pathlib import Path

    from edgepipe.profile import Profile

FOLDER = "browser"


def has_page(profile: Profile) -> bool:
    """Whether the profile's bundles hold a page: where its runtime is onnxruntime-web, and that is set up."""
    return profile.runtime.name == "onnxruntime-web" and not wrong_file(runtime_folder())


def browser_files() -> dict[str, Path]:
    """{path in the bundle: file to copy there}. Raises `DeviceError` when the browser runtime is not set up."""
    page, runtime = resource("export") / "browser", checked_runtime()
    files = {"index.html": page / "index.html", "serve.py": page / "serve.py"}
    files |= {f"{FOLDER}/{name}": page / name for name in ("page.js", "NOTICE.txt")}
    files[f"{FOLDER}/driver.js"] = resource("devices") / "browser" / "driver.js"
    return files | {f"{FOLDER}/{name}": runtime / name for name in sorted(pinned_files())}
