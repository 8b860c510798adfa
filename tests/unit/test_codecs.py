"""The process of the codecs: what a frame does to it costs that frame a coded rejection, and nothing else."""

import json
import mmap
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import uid as uids

from dicomnode.dicom import reader
from dicomnode.domain.errors import DecoderUnavailable, UndecodablePixels
from dicomnode.imaging.codecs import process as module
from dicomnode.imaging.codecs import shared_memory as shared
from dicomnode.imaging.codecs.process import CodecLimits, CodecProcess
from tests.conftest import ROOT
from tests.support.codecs import ABORTS, COLUMNS, EXPECTED, GOOD, ROWS, decoded
from tests.support.decoding import stored_values
from tests.support.make import build, chest, encode, stored, with_frame
from tests.support.processes import alive, wait_until


@pytest.fixture
def codecs() -> Iterator[CodecProcess]:
    process = CodecProcess()
    yield process
    process.stop()


def test_one_process_serves_image_after_image(codecs: CodecProcess) -> None:
    pids = set()
    for _ in range(3):
        assert np.array_equal(decoded(GOOD, codecs), EXPECTED)
        pids.add(codecs.pid)
    assert len(pids) == 1


def test_uncompressed_pixels_need_no_codec(codecs: CodecProcess) -> None:
    decoded(reader.read(encode(build("cr", rows=ROWS, columns=COLUMNS))), codecs)
    assert codecs.pid is None


def test_a_frame_that_aborts_gdcm_is_rejected_and_the_next_is_decoded(
    codecs: CodecProcess, caplog: pytest.LogCaptureFixture
) -> None:
    decoded(GOOD, codecs)
    with pytest.raises(UndecodablePixels, match="SIGABRT"):
        decoded(ABORTS, codecs)
    assert np.array_equal(decoded(GOOD, codecs), EXPECTED)
    # Once in a process that had served, once in a fresh one.
    assert [(one.message, one.frames_before) for one in caplog.records] == [("decoder-died", 1), ("decoder-died", 0)]


def test_a_frame_that_a_codec_refuses_costs_no_process(codecs: CodecProcess, caplog: pytest.LogCaptureFixture) -> None:
    decoded(GOOD, codecs)
    pid = codecs.pid
    broken = with_frame(build("cr", rows=ROWS, columns=COLUMNS), b"\0" * 100, uids.RLELossless)
    with pytest.raises(UndecodablePixels) as refused:
        decoded(broken, codecs)
    assert str(refused.value) == "no decoder could read the compressed frame"
    # The classes of what was raised, and not their messages, which may quote the data set.
    assert [(one.message, one.tried) for one in caplog.records] == [("frame-refused", "pydicom: RuntimeError")]
    assert codecs.pid == pid


def test_a_codec_killed_in_the_middle_of_a_first_image_rejects_it(codecs: CodecProcess) -> None:
    raised = killed_while_decoding(codecs)
    assert "SIGKILL" in str(raised[0])
    assert np.array_equal(decoded(GOOD, codecs), EXPECTED)


def test_a_codec_killed_in_a_later_image_is_replaced_and_the_image_decoded(codecs: CodecProcess) -> None:
    decoded(GOOD, codecs)
    former = codecs.pid
    assert killed_while_decoding(codecs) == []
    assert codecs.pid != former


def wait_until_ready(pid: int) -> None:
    """Wait for the last thing it does before it says so, and for that."""
    limited = re.compile(r"Max open files +32 ")
    wait_until(lambda: limited.search(Path(f"/proc/{pid}/limits").read_text()), 60, "the start of the codecs")
    time.sleep(0.3)


def killed_while_decoding(codecs: CodecProcess) -> list[Exception]:
    """Stop the process so that it is certainly at work on the image when SIGKILL comes."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            assert np.array_equal(decoded(GOOD, codecs), EXPECTED)
        except UndecodablePixels as error:
            raised.append(error)

    codecs.start()
    pid = codecs.pid
    assert pid is not None
    wait_until_ready(pid)
    os.kill(pid, signal.SIGSTOP)
    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.3)
    os.kill(pid, signal.SIGKILL)
    thread.join(60)
    assert not thread.is_alive()
    return raised


@pytest.mark.parametrize(
    "limits",
    [CodecLimits(deadline_s=0.5), CodecLimits(deadline_s=0.0, deadline_s_per_sample=0.5 / (ROWS * COLUMNS))],
    ids=["of every image", "of its samples"],
)
def test_a_codec_that_hangs_is_ended_at_its_deadline(limits: CodecLimits) -> None:
    codecs = CodecProcess(limits)
    try:
        codecs.start()
        pid = codecs.pid
        assert pid is not None
        wait_until_ready(pid)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(UndecodablePixels, match="deadline"):
            decoded(GOOD, codecs)
        assert not alive(pid)
    finally:
        codecs.stop()


def test_a_codec_that_wants_more_than_its_memory_rejects_the_image_alone() -> None:
    """60 MB of samples where 32 MB are admitted above what the process has anyway."""
    large = build("cr", pixels=np.zeros((6000, 5000), np.uint16), window=None)
    large = reader.read(encode(large, uids.JPEGLSLossless))
    codecs = CodecProcess(CodecLimits(memory_bytes=32 << 20, memory_bytes_per_sample=0))
    roomy = CodecProcess()
    try:
        with pytest.raises(UndecodablePixels):
            stored_values(large, codecs, maximum_pixels=80_000_000)
        assert np.array_equal(decoded(GOOD, codecs), EXPECTED)
        assert stored_values(large, roomy, maximum_pixels=80_000_000).shape == (6000, 5000)
    finally:
        codecs.stop()
        roomy.stop()


def test_it_inherits_no_file_no_secret_and_writes_no_file(
    codecs: CodecProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXRNODE_SECRET", "a secret")
    with Path(__file__).open() as held:
        os.set_inheritable(held.fileno(), True)
        decoded(GOOD, codecs)
        process = Path(f"/proc/{codecs.pid}")
        files = {str(entry.readlink()) for entry in (process / "fd").iterdir()}
    assert b"CXRNODE" not in (process / "environ").read_bytes()
    kinds = {name.partition(":")[0] for name in files}
    assert kinds == {"pipe", "/dev/null", "/memfd"}  # no socket, no database
    limits = {line[:25].strip(): line[26:].split()[0] for line in (process / "limits").read_text().splitlines()}
    assert limits["Max file size"] == limits["Max core file size"] == "0"
    assert limits["Max address space"] != "unlimited"


def test_a_process_is_replaced_before_it_grows_old(codecs: CodecProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FRAMES", 2)
    pids = []
    for _ in range(3):
        decoded(GOOD, codecs)
        pids.append(codecs.pid)
    assert pids[0] == pids[1] != pids[2]
    assert not alive(pids[0])


def test_a_fork_gets_a_process_of_its_own(codecs: CodecProcess) -> None:
    decoded(GOOD, codecs)
    former = codecs.pid
    child = os.fork()
    if child == 0:
        ok = np.array_equal(decoded(GOOD, codecs), EXPECTED) and codecs.pid != former
        codecs.stop()
        os._exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(decoded(GOOD, codecs), EXPECTED)
    assert codecs.pid == former


def test_without_a_process_the_image_is_not_to_blame(
    codecs: CodecProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("import no_such_codec")
    monkeypatch.setattr(module, "_CHILD", tmp_path / "broken.py")
    with pytest.raises(DecoderUnavailable, match="before it was ready"):
        decoded(GOOD, codecs)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "absent"))
    with pytest.raises(DecoderUnavailable, match="No such file"):
        decoded(GOOD, codecs)


def test_a_signal_to_the_group_does_not_end_it_in_the_middle_of_an_image(codecs: CodecProcess) -> None:
    decoded(GOOD, codecs)
    pid = codecs.pid
    assert pid is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    decoded(GOOD, codecs)
    assert codecs.pid == pid


def test_it_ends_with_its_owner(codecs: CodecProcess) -> None:
    decoded(GOOD, codecs)
    pid = codecs.pid
    assert pid is not None
    codecs.stop()
    assert not alive(pid)


OWNER = """
import os, signal
from dicomnode.imaging.codecs.process import CodecProcess
from tests.support.codecs import GOOD, decoded
codecs = CodecProcess()
decoded(GOOD, codecs)
print(codecs.pid, flush=True)
os.kill(os.getpid(), signal.{how})
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_it_ends_when_its_owner_is_killed(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OWNER.format(how=how)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    pid = int(done.stdout)
    wait_until(lambda: not alive(pid), 20, "the end of the codecs")


SPEAKS = """
import json, os, sys
print("ready", flush=True)
request = json.loads(sys.stdin.buffer.readline())
if not request["shared_bytes"]:
    sys.stdin.buffer.read(request["frame_bytes"])
shape = [request["rows"], request["columns"]]
{answer}
"""
SHORT = """
print(json.dumps({"dtype": "<u2", "shape": shape, "errors": []}), flush=True)
sys.stdout.buffer.write(bytes(10))
"""
SMALL = """
print(json.dumps({"dtype": "<u2", "shape": [1, 1], "errors": []}), flush=True)
sys.stdout.buffer.write(bytes(2 * shape[0] * shape[1]))
"""


@pytest.mark.parametrize(
    ("answer", "piped"),
    [("print('{}')", False), ("print('noise')", False), (SMALL, False), (SMALL, True), (SHORT, True)],
    ids=["{}", "noise", "small", "small, by a pipe", "short, by a pipe"],
)
def test_a_process_that_does_not_answer_as_agreed_is_replaced(
    answer: str, piped: bool, codecs: CodecProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if piped:
        monkeypatch.delattr(os, "memfd_create")
    child = tmp_path / "child.py"
    child.write_text(SPEAKS.replace("{answer}", answer + "\nsys.stdout.flush()\nsys.stdout.close()"))
    with monkeypatch.context() as patched:
        patched.setattr("dicomnode.imaging.codecs.process._CHILD", child)
        with pytest.raises(UndecodablePixels):
            decoded(GOOD, codecs)
    assert np.array_equal(decoded(GOOD, codecs), EXPECTED)


def shared_memories() -> set[str]:
    """Return what this process shares with others, by its inodes: open files and what is mapped of them."""
    files = (entry for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())
    opened = {str(entry.stat().st_ino) for entry in files if "memfd:cxrnode" in str(entry.readlink())}
    lines = Path("/proc/self/maps").read_text().splitlines()
    return opened | {line.split()[4] for line in lines if "memfd:cxrnode" in line}


def test_memory_that_was_shared_goes_with_a_process_that_is_killed(codecs: CodecProcess) -> None:
    before = shared_memories()  # those of other processes of codecs
    for _ in range(3):
        decoded(GOOD, codecs)
        assert codecs.pid is not None
        assert len(shared_memories() - before) == 1
        os.kill(codecs.pid, signal.SIGKILL)
        with pytest.raises(UndecodablePixels):
            decoded(ABORTS, codecs)
        assert shared_memories() == before


def test_what_a_large_frame_needs_is_shared_and_then_given_back(
    codecs: CodecProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory begins with one page; each frame is larger than the one before."""
    monkeypatch.setattr(shared, "_FIRST_BYTES", mmap.PAGESIZE)
    for rows, columns in ((40, 48), (ROWS, COLUMNS), (800, 640), (ROWS, COLUMNS)):
        ds = reader.read(encode(build("cr", rows=rows, columns=columns), uids.JPEG2000Lossless))
        assert np.array_equal(decoded(ds, codecs), stored(chest(rows, columns), bits=12))
        assert shared_blocks(codecs) <= mmap.PAGESIZE


def shared_blocks(codecs: CodecProcess) -> int:
    """Return how many bytes the memory that is shared takes."""
    files = [entry for entry in Path(f"/proc/{codecs.pid}/fd").iterdir() if "memfd" in str(entry.readlink())]
    return 512 * max(entry.stat().st_blocks for entry in files)


CUTS = """
try:
    os.ftruncate(int(sys.argv[1]), 0)
except PermissionError:
    print(json.dumps({"dtype": "", "shape": [], "errors": ["not permitted"]}))
"""


def test_the_other_process_cannot_cut_short_what_this_one_reads(
    codecs: CodecProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    child = tmp_path / "child.py"
    child.write_text(SPEAKS.replace("{answer}", CUTS))
    monkeypatch.setattr(module, "_CHILD", child)
    with pytest.raises(UndecodablePixels):
        decoded(GOOD, codecs)
    assert [one.tried for one in caplog.records] == ["not permitted"]


def test_without_memory_to_share_frames_go_by_pipes(codecs: CodecProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    before = shared_memories()
    monkeypatch.delattr(os, "memfd_create")
    for _ in range(2):
        assert np.array_equal(decoded(GOOD, codecs), EXPECTED)
    assert shared_memories() == before
    files = {str(entry.readlink()).partition(":")[0] for entry in Path(f"/proc/{codecs.pid}/fd").iterdir()}
    assert files == {"pipe", "/dev/null"}


CHANGED = """
import importlib.util, os, sys, time
spec = importlib.util.spec_from_file_location("codec_child", {child!r})
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
decode = child._decode
def changed(*words):
    {first}
    return decode(*words)
child._decode = changed
sys.exit(child.main())
"""


def changed_child(folder: Path, first: str) -> Path:
    """Return the program of the codecs, which does something first with every frame."""
    child = folder / "child.py"
    child.write_text(CHANGED.format(child=str(module._CHILD), first=first))
    return child


def test_a_codec_that_prints_does_not_speak_to_the_node(
    codecs: CodecProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("dicomnode.imaging.codecs.process._CHILD", changed_child(tmp_path, 'os.write(1, b"noise\\n")'))
    assert np.array_equal(decoded(GOOD, codecs), EXPECTED)


@pytest.mark.parametrize("hangs", [True, False])
def test_a_codec_whose_node_is_gone_ends_itself_and_only_in_the_middle_of_a_frame(tmp_path: Path, hangs: bool) -> None:
    child = changed_child(tmp_path, "time.sleep(600)" if hangs else "raise ValueError")
    request = {"decoders": ["pydicom"], "frame_bytes": 1, "shared_bytes": 0, "limit_bytes": 1 << 30, "limit_s": 1.0}
    process = subprocess.Popen([sys.executable, "-I", str(child)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.stdin.write(json.dumps(request).encode() + b"\nx")
        process.stdin.flush()
        if hangs:
            assert process.wait(60) == -signal.SIGALRM
            return
        assert process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2.0)
        process.stdin.close()
        assert process.wait(60) == 0
