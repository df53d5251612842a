"""Commands that run others as processes of their own end these, however they are ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import ROOT

from mobilesamv2.recipes.processes import sigterm_raises, stop

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked up in /proc")
KILLED = -signal.SIGKILL
COMMANDS = {
    "demo": ["demo", "--scenes=100", "--workers=2"],
    "benchmark": ["benchmark", "--models=mini", "--protocols=sam_points", "dataset=synthetic", "dataset.limit=1000"],
}


def wait_for(holds: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert holds()


def children(pid: int) -> list[int]:
    """Those that run the program, not copies of the parent that are about to."""
    found = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [child for child in found if b"output_dir" in command_line(child) or b"synthesize" in command_line(child)]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()  # empty once it has ended
    except (FileNotFoundError, ProcessLookupError):
        return b""


def listen_to_sigint() -> None:
    """A shell has its background jobs ignore it, and so do those that start these tests, perhaps."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@LINUX
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.parametrize("name", ["demo", pytest.param("benchmark", marks=pytest.mark.slow)])
def test_its_processes_end_with_it(name: str, number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mobilesamv2", *COMMANDS[name], "-o", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=listen_to_sigint
    ) as parent:
        count = 2 if name == "demo" else 1
        wait_for(lambda: len(children(parent.pid)) == count)
        started = children(parent.pid)
        parent.send_signal(number)
        _, said = parent.communicate(timeout=60)
    if number == signal.SIGKILL:  # it could stop nothing; the system does
        wait_for(lambda: not any(map(command_line, started)))
        return
    assert not any(map(command_line, started))
    assert parent.returncode == {signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGINT: 1}[number]
    assert b"Traceback" not in said


def test_a_process_that_does_not_stop_is_killed() -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-S", "-c", deaf], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        stop([process], saving_s=0.1)
        assert process.returncode == KILLED


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_second_signal_ends_at_once(
    number: signal.Signals, error: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    # It is told to stop by the first signal's handler; the user's second one comes while it goes on.
    goes_on = f"signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getppid(), {int(number)}))"
    program = f"import os, signal, time; {goes_on}; print(flush=True); time.sleep(60); time.sleep(60)"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    begin = time.monotonic()
    try:
        with subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(error), sigterm_raises():
                stop([process], saving_s=50)
            assert process.returncode == KILLED
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begin < 30
    assert "Ctrl-C again ends them at once" in capsys.readouterr().err


def test_what_has_ended_is_not_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        process.wait()
        stop([process])
    assert process.returncode == 0
    assert not capsys.readouterr().err


def test_sigterm_is_an_exception_for_a_while() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)), sigterm_raises():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
