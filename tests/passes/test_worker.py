"""The worker process: whatever a pass does to it, the parent lives on, names the pass, and goes on with a fresh one."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from edgepipe.errors import EdgepipeError, PassError, ResourceError
from edgepipe.progress import Silent
from edgepipe.worker_process import WorkerProcess
from tests.passes.running import artifact_of, job_for, run_pass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgepipe.artifact import Artifact

PLUGIN = """
import os, signal, sys

import edgepipe

class Do(edgepipe.PassOptions):
    what: str

@edgepipe.register_pass("act", takes={"model": "onnx"}, gives={"model": "onnx"}, options=Do, checks=())
def act(artifact, options, ctx):
    exec(options.what)
    return artifact.with_program(pid=os.getpid())
"""


class Recorded(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def update(self, stage: str, what: str, done: int = 0, total: int = 0) -> None:
        self.said.append((stage, what, done, total))


class Bench:
    def __init__(self, artifact: Artifact, folder: Path) -> None:
        self.artifact, self.folder, self.progress = artifact, folder, Recorded()
        (folder / "plugin.py").write_text(PLUGIN)
        self.log = folder / "run.log"
        self.worker = WorkerProcess(self.log, self.progress)

    def act(self, what: str = "pass") -> int:
        """Run the pass that does this, and give the id of the process it ran in."""
        job = job_for("act", self.artifact, self.folder, plugins=[self.folder / "plugin.py"], what=what)
        return int(self.worker.ask(job, "act").value.program["pid"])

    def fails(self, what: str) -> EdgepipeError:
        with pytest.raises(EdgepipeError) as caught:
            self.act(what)
        assert caught.value.where == "pass act"
        return caught.value


@pytest.fixture
def bench(exported: Artifact, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(exported, tmp_path)
    yield bench
    bench.worker.close(kill=True)


def test_passes_run_in_one_other_process(bench: Bench) -> None:
    first, second = bench.act(), bench.act()

    assert first == second != os.getpid()


@pytest.mark.parametrize(
    ("crash", "kind", "said"),
    [
        ("os.abort()", PassError, "signal 6"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", PassError, "signal 11"),
        ("os._exit(3)", PassError, "exit code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", ResourceError, "was killed"),
    ],
)
def test_crash_names_the_pass_and_the_next_job_gets_a_fresh_worker(crash: str, kind: type[EdgepipeError], said: str, bench: Bench) -> None:
    before = bench.act()

    error = bench.fails(crash)

    assert type(error) is kind
    assert said in error.what
    after = bench.act()
    assert after != before
    assert not psutil.pid_exists(before)


def test_crash_quotes_the_last_words_of_the_log(bench: Bench) -> None:
    error = bench.fails('print("kernel 7 went wrong", file=sys.stderr, flush=True); os.abort()')

    assert "kernel 7 went wrong" in error.what


@pytest.mark.parametrize(
    "shortage",
    ["bytearray(2**62)", "raise MemoryError", 'raise RuntimeError("[enforce fail] DefaultCPUAllocator: can\'t allocate memory")'],
)
def test_memory_that_runs_out_is_a_resource_error(shortage: str, bench: Bench) -> None:
    error = bench.fails(shortage)

    assert type(error) is ResourceError
    assert error.exit_code == 6
    assert bench.act()  # and the next pass runs


def test_error_in_a_pass_leaves_the_worker_running(bench: Bench) -> None:
    before = bench.act()

    error = bench.fails("1 / 0")

    assert type(error) is PassError
    assert bench.act() == before
    assert "ZeroDivisionError" in bench.log.read_text()  # the traceback


@pytest.mark.parametrize("noise", ['print("noise" * 10000)', 'os.write(1, b"noise" * 10000)', 'os.system("echo noise")'])
def test_what_a_pass_prints_goes_to_the_log(noise: str, bench: Bench) -> None:
    assert bench.act(noise)

    bench.worker.close()  # flushes
    assert "noise" in bench.log.read_text()


def test_progress_of_a_pass_reaches_the_parent(bench: Bench) -> None:
    bench.act('ctx.progress("counting", 3, 7)')

    assert ("act", "counting", 3, 7) in bench.progress.said


def test_nothing_in_the_worker_may_reach_for_the_network(bench: Bench) -> None:
    assert bench.act('assert os.environ["HF_HUB_OFFLINE"] == os.environ["TRANSFORMERS_OFFLINE"] == "1"')


def test_closing_ends_the_process(bench: Bench) -> None:
    running = bench.act()

    bench.worker.close()

    assert not psutil.pid_exists(running)


def test_busy_worker_does_not_outlive_a_parent_that_is_killed(bench: Bench) -> None:
    note, request = bench.folder / "pid", bench.folder / "job"
    what = f"import time; from pathlib import Path; Path({str(note)!r}).write_text(str(os.getpid())); time.sleep(600)"
    request.write_bytes(pickle.dumps(job_for("act", bench.artifact, bench.folder, plugins=[bench.folder / "plugin.py"], what=what)))
    script = (
        "import pickle, sys; from pathlib import Path; from edgepipe.progress import Silent; from edgepipe.worker_process import WorkerProcess; "
        "WorkerProcess(Path(sys.argv[1]), Silent()).ask(pickle.loads(Path(sys.argv[2]).read_bytes()), 'act')"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(bench.log), str(request)])
    wait_until(lambda: note.exists() and note.read_text() != "")
    worker = psutil.Process(int(note.read_text()))

    parent.kill()
    parent.wait()

    wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


def wait_until(reached: Callable[[], bool]) -> None:
    """Fails only where it never happens."""
    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_whole_recipe_in_the_worker_gives_what_it_gives_here(classifier: Path, adapter: Path, bench: Bench) -> None:
    here = there = artifact_of(classifier, adapters=[adapter])

    for name in ("merge-lora", "export-onnx", "optimize-graph", "quantize-dynamic"):
        here = run_pass(name, here, bench.folder)
        there = bench.worker.ask(job_for(name, there, bench.folder), name).value

    assert there.digest == here.digest


def test_each_pass_tells_its_time_and_its_memory(bench: Bench) -> None:
    done = bench.worker.ask(job_for("optimize-graph", bench.artifact, bench.folder), "optimize-graph")

    assert done.seconds > 0
    assert done.peak_rss_bytes > 10_000_000
