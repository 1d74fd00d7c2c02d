"""Fixtures that every test may use. Nothing a test does touches the user's own cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from edgepipe.config import Data, Task
from edgepipe.device_setup import set_up
from edgepipe.emulation import parts_of
from edgepipe.intake import find_source, make_artifact
from edgepipe.profile import host_profile, load_profile
from edgepipe.progress import Silent
from edgepipe.store import Store, cache_root
from edgepipe.tasks import load_task
from tests.models import write_classifier
from tests.onnx_models import write_onnx_classifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgepipe.artifact import Artifact

USER_CACHE = cache_root()  # read before any fixture runs
GOLDEN = Path(__file__).parent / "golden"

# The same examples each time, and no clocks: a busy machine fails no test. `--hypothesis-profile=search` looks further.
settings.register_profile("edgepipe", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edgepipe")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="Write what tests/golden/ should hold instead of comparing with it.")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """EDGEPIPE_CACHE for the whole session: a folder of its own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPIPE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def user_cache() -> Path:
    """The cache folder that was in force before the tests began: downloads for end-to-end tests lie there."""
    return USER_CACHE


@pytest.fixture(scope="session")
def emulation_cache(tmp_path_factory: pytest.TempPathFactory, user_cache: Path) -> Path:
    """A cache where the emulation of ARM and x86 is set up: links to the user's, set up there first where it is not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPIPE_CACHE", str(user_cache))
        profile = load_profile("rpi4")
        homes = [set_up(part, Silent()) for part in parts_of(profile)]
    folder = tmp_path_factory.mktemp("emulation-cache")
    (folder / "devices").mkdir()
    for home in homes:
        (folder / "devices" / home.name).symlink_to(home)
    return folder


@pytest.fixture
def emulation(emulation_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """EDGEPIPE_CACHE, with emulation set up, for one test."""
    monkeypatch.setenv("EDGEPIPE_CACHE", str(emulation_cache))
    return emulation_cache


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with a file of tests/golden/; `pytest --update-golden` writes it."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), f"{path} differs; look at the change, then pytest --update-golden"

    return compare


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT text classifier, as transformers saves it. Read only."""
    return write_classifier(tmp_path_factory.mktemp("models") / "classifier")


@pytest.fixture(scope="session")
def onnx_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bag-of-words text classifier as model.onnx, its config and tokenizer. Read only."""
    return write_onnx_classifier(tmp_path_factory.mktemp("models") / "onnx")


@pytest.fixture(scope="session")
def torch_artifact(classifier: Path) -> Artifact:
    return read_classifier(classifier)


@pytest.fixture(scope="session")
def onnx_artifact(onnx_classifier: Path) -> Artifact:
    return read_classifier(onnx_classifier)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def read_classifier(folder: Path, **data: object) -> Artifact:
    """The artifact that a text classifier's folder makes."""
    assert os.environ["EDGEPIPE_CACHE"] != str(USER_CACHE)
    source = find_source(str(folder))
    return make_artifact(source, (), load_task(Task(name="text-classification")), source.labels, Data(**data), None)


@pytest.fixture
def on_x86_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine as a Linux PC with VNNI, whatever it is."""
    here = host_profile()
    cpu = here.cpu.model_copy(update={"arch": "x86_64", "isa": ("avx2", "avx512f", "avx512_vnni")})
    monkeypatch.setattr("edgepipe.profile.host_profile", lambda: here.model_copy(update={"cpu": cpu}))
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
