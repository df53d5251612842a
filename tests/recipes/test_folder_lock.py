"""Two programs never write into one folder at once."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.runs import evaluate_here, train

from mobilesamv2.recipes import folder_lock
from mobilesamv2.recipes.folder_lock import LOCK, locked


def write_lock(folder: Path, **owner: object) -> Path:
    path = folder / LOCK
    path.write_text(json.dumps(folder_lock._owner() | owner))
    return path


def test_a_second_program_is_refused_by_name(tmp_path: Path) -> None:
    script = "import sys, time; from pathlib import Path; from mobilesamv2.recipes.folder_lock import locked\n"
    script += f"with locked(Path({str(tmp_path)!r})): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        said = rf"^Process {other.pid} on \S+ writes into {re.escape(str(tmp_path))} since 20.* Name another output_dir"
        with pytest.raises(ValueError, match=said), locked(tmp_path):
            pass
        other.kill()
        other.wait()
    with locked(tmp_path):  # the lock of a process that is gone
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("task", ["cache_teacher", "distill", "evaluate_proposals"])
def test_no_program_begins_in_a_folder_that_another_one_writes_into(tmp_path: Path, task: str) -> None:
    given = [f"task={task}", "dataset=synthetic", "model=mini", f"output_dir={tmp_path}"]
    run = evaluate_here if task.startswith("evaluate") else train
    given += [] if run is evaluate_here else ["model@teacher=mini"]
    with locked(tmp_path), pytest.raises(SystemExit, match=rf"error: Process {os.getpid()} on \S+ writes into"):
        run(*given)
    assert {path.name for path in tmp_path.iterdir()} <= {"data"}


def test_a_lock_goes_with_an_error_and_another_owners_stays(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken"), locked(tmp_path):
        raise RuntimeError("broken")
    assert not (tmp_path / LOCK).exists()
    with locked(tmp_path):
        write_lock(tmp_path, pid=1)  # somebody deleted ours, and began
    assert (tmp_path / LOCK).exists()


def test_stale_locks_are_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lock(tmp_path, started="1")  # a process of the same number, before
    with locked(tmp_path):
        pass
    path = write_lock(tmp_path, host="elsewhere")
    with pytest.raises(ValueError, match="on elsewhere writes into"), locked(tmp_path):
        pass
    os.utime(path, (time.time() - 400,) * 2)
    with locked(tmp_path):
        pass
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    write_lock(tmp_path, host="elsewhere", restarts="0")  # the same job, before it was requeued
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_two_processes_of_one_slurm_job_do_not_write_into_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with locked(tmp_path), pytest.raises(ValueError, match=f"^Process {os.getpid()} on"), locked(tmp_path):
        pass
    write_lock(tmp_path, host="elsewhere")  # another node of the job
    with pytest.raises(ValueError, match="on elsewhere writes into"), locked(tmp_path):
        pass


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "5", '{"host": "elsewhere"}', '{"host": 1, "pid": -1, "since": 1}']
)
def test_a_damaged_lock_is_of_a_process_that_died_while_it_wrote(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock.time, "sleep", lambda seconds: None)
    (tmp_path / LOCK).write_text(content)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def leave_a_claim(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process leaves that is killed while it takes over a stale lock."""

    def killed(*_: object) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        patch.setattr(folder_lock, "_start_time", lambda pid: "2")
        with pytest.raises(InterruptedError):
            locked(folder).__enter__()
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("judged", [LOCK, "claim"])
def test_a_lock_that_another_process_took_over_meanwhile_is_left_alone(
    judged: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two judge one lock to be stale; the slow one removes it only after the other has taken it over."""
    write_lock(tmp_path, started="1")
    if judged == "claim":
        leave_a_claim(tmp_path, monkeypatch)
    is_stale, judging, other_holds = folder_lock._is_stale, threading.Event(), threading.Event()
    held: list[str] = []
    refused: list[str] = []

    def slowly(path: Path, holder: dict[str, object]) -> bool:
        verdict = is_stale(path, holder)
        if threading.current_thread().name == "slow" and verdict and (path.name == LOCK) == (judged == LOCK):
            judging.set()
            assert other_holds.wait(10)
        return verdict

    def run_slowly() -> None:
        try:
            with locked(tmp_path):
                held.append("slow")
        except ValueError as error:
            refused.append(str(error))

    monkeypatch.setattr(folder_lock, "_is_stale", slowly)
    slow = threading.Thread(target=run_slowly, name="slow")
    slow.start()
    assert judging.wait(10)
    with locked(tmp_path):
        other_holds.set()
        slow.join()
        assert held == []
        assert f"Process {os.getpid()} on" in refused[0]
    assert list(tmp_path.iterdir()) == []


def test_parts_of_files_that_a_kill_left_are_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    old, young = tmp_path / "checkpoints" / "a.partial", tmp_path / "b.partial"
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (time.time() - 400,) * 2)
    with locked(tmp_path):
        assert not old.exists()
        assert young.exists()


def test_a_held_lock_shows_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "HEARTBEAT_S", 0.01)
    with locked(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        for _ in range(500):
            if (tmp_path / LOCK).stat().st_mtime > 0:
                break
            time.sleep(0.01)
        assert (tmp_path / LOCK).stat().st_mtime > 0


def test_one_of_several_that_begin_together_holds_the_folder(tmp_path: Path) -> None:
    begin, held, refused = threading.Barrier(8), [], []

    def run() -> None:
        begin.wait()
        try:
            with locked(tmp_path):
                held.append(1)
                time.sleep(0.5)
        except ValueError:
            refused.append(1)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)
