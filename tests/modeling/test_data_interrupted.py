"""`cxrnode data prepare`, ended at any step: what is finished stays, and the next run goes on."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dicomnode.domain.errors import ConfigurationError, DiskFull
from modeling.preparation.dataset import open_prepared
from modeling.preparation.records import read_records, record_files
from tests.modeling.nih_release import make_release
from tests.modeling.preparing import content, prepared
from tests.support.processes import alive

pytestmark = pytest.mark.training


def command(folder: Path, out: Path, *options: str) -> list[str]:
    given = ["--images", str(folder / "images"), "--labels", str(folder / "Data_Entry_2017.csv"), "--out", str(out)]
    given += ["--folds", "2", "--side", "64", "--min-positives", "0", "--processes", "2", *options]
    return [sys.executable, "-m", "dicomnode", "data", "prepare", *given]


@pytest.fixture
def started() -> Iterator[Callable[[list[str]], "subprocess.Popen[bytes]"]]:
    processes: list[subprocess.Popen[bytes]] = []

    def start(arguments: list[str]) -> "subprocess.Popen[bytes]":
        # A job that a shell put into the background ignores Ctrl-C, and so would its children.
        former = signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            processes.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        finally:
            signal.signal(signal.SIGINT, former)
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def children_of(pid: int) -> set[int]:
    children = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            children.add(int(path.parent.name))
    return children


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """Wait as `processes.wait_until` does, and look so often that a short run is met in the middle."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def test_a_killed_run_goes_on_and_gives_the_same_files_as_an_undisturbed_one(
    tmp_path: Path, started: Callable[[list[str]], "subprocess.Popen[bytes]"]
) -> None:
    folder = make_release(tmp_path / "nih", patients=116)
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    subprocess.run(command(folder, undisturbed, "--shard-size", "1"), check=True, capture_output=True)
    # More than a hundred files of one prefix: no number is lost.
    assert len(record_files(undisturbed, "fold0-")) > 100
    for finished in (5, 100):
        run = started(command(folder, out, "--shard-size", "1"))
        wait_until(lambda n=finished: len(list(out.glob("*.tfrec"))) >= n, "records appear")  # type: ignore[misc]
        workers = children_of(run.pid)
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        wait_until(lambda held=workers: not any(map(alive, held)), "workers end with their parent")  # type: ignore[misc]
        assert not (out / "dataset.json").exists()
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tfrec")}
    assert len(before) < 232
    (out / ".fold0-00.1.partial").write_bytes(b"what a kill leaves")
    subprocess.run(command(folder, out, "--shard-size", "1"), check=True, capture_output=True)
    assert content(out) == content(undisturbed)
    noted = {json.loads(path.read_bytes())["file"] for path in (out / "state").glob("fold*.json")}
    assert noted == {path.name for path in out.glob("*.tfrec")}
    # Finished files were not written again.
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before


class Killed(BaseException):
    """What stands for SIGKILL at one exact step."""


@pytest.mark.parametrize("step", range(6))
def test_a_kill_at_any_step_of_a_file_loses_nothing_and_leaves_no_file_without_its_note(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    from modeling.files import open_source
    from modeling.preparation import shards
    from modeling.preparation.plan import Pixels, PlannedImage, match, plan_shards
    from modeling.preparation.tables import read_table

    (tmp_path / "out" / "state").mkdir(parents=True)
    steps_left = [step]

    def killing(genuine: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            steps_left[0] -= 1
            if steps_left[0] == -1:
                raise Killed
            return genuine(*arguments, **named)

        return call

    pixels = Pixels(side=64, min_side=64, image_format="png")
    with open_source(release / "images") as source, monkeypatch.context() as patch:
        matched, _ = match(read_table(release / "Data_Entry_2017.csv").entries[:4], source.sizes(), None, None)
        images = [PlannedImage(matched=image, rows=72, columns=72, fold=0) for image in matched]
        (shard,) = plan_shards(images, shard_size=9, seed=0)
        patch.setattr(shards, "source", lambda: source)
        patch.setattr(shards, "count", lambda images: None)
        # Steps: records synced; note synced, renamed, its folder synced; records renamed, their folder synced.
        patch.setattr(os, "fsync", killing(os.fsync))
        patch.setattr(Path, "replace", killing(Path.replace))
        with pytest.raises(Killed):
            shards.write_shard(shard, pixels, tmp_path / "out")
        named = list((tmp_path / "out").glob("*.tfrec"))
        assert len(named) == (1 if step == 5 else 0)
        assert not named or (tmp_path / "out" / "state" / "fold0-00.json").exists()
        written = shards.write_shard(shard, pixels, tmp_path / "out")
    (path,) = record_files(tmp_path / "out")
    assert (path.name, len(written.names)) == ("fold0-00-4.tfrec", 4)
    assert [record.name for record in read_records(path)] == list(written.names)


def test_ctrl_c_ends_the_workers_too(tmp_path: Path, started: Callable[[list[str]], "subprocess.Popen[bytes]"]) -> None:
    # Large enough not to be done before this process has had its turn on a busy machine.
    folder, out = make_release(tmp_path / "nih", patients=116), tmp_path / "out"
    run = started(command(folder, out, "--shard-size", "1"))
    wait_until(lambda: any(out.glob("*.tfrec")), "records appear")
    # Held, so that it cannot end by itself before the signal reaches it.
    run.send_signal(signal.SIGSTOP)
    workers = children_of(run.pid)
    run.send_signal(signal.SIGINT)
    run.send_signal(signal.SIGCONT)
    assert run.wait(timeout=60) != 0
    wait_until(lambda: not any(map(alive, workers)), "workers end")


def test_a_worker_that_dies_ends_the_run_with_a_reason_and_the_next_one_goes_on(
    release: Path, tmp_path: Path, started: Callable[[list[str]], "subprocess.Popen[bytes]"]
) -> None:
    out = tmp_path / "out"
    run = started(command(release, out, "--shard-size", "1"))
    wait_until(lambda: any(out.glob("*.tfrec")), "records appear")
    for worker in children_of(run.pid):
        if b"spawn_main" in Path(f"/proc/{worker}/cmdline").read_bytes():
            os.kill(worker, signal.SIGKILL)
    _, told = run.communicate(timeout=30)
    assert run.returncode == 1
    assert b"a worker process died" in told
    subprocess.run(command(release, out, "--shard-size", "1"), check=True, capture_output=True)
    assert sum(shard.count for shard in open_prepared(out).info.shards) == len(list((release / "images").glob("*.png")))


def test_a_full_disk_is_called_that(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("modeling.preparation.prepare.write_durably", full)
    with pytest.raises(DiskFull, match="no space left"):
        prepared(release, tmp_path / "out")


def test_a_finished_file_that_was_damaged_is_written_again(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepared(release, out)
    first = content(out)
    victim = record_files(out)[1]
    raw = bytearray(victim.read_bytes())
    raw[100] ^= 1
    victim.write_bytes(raw)
    record_files(out)[2].unlink()
    prepared(release, out)
    assert content(out) == first


def test_another_plan_does_not_mix_with_what_is_there(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepared(release, out)
    with pytest.raises(ConfigurationError, match="other images, labels or options"):
        prepared(release, out, side=48)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "train00-0.tfrec").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="did not write"):
        prepared(release, tmp_path / "theirs")


def test_two_runs_on_one_folder_do_not_meet(release: Path, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "out" / "state").mkdir(parents=True)
    with (tmp_path / "out" / "state" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigurationError, match="another run"):
            prepared(release, tmp_path / "out")
