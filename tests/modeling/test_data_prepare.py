"""`cxrnode data prepare`: patient-wise folds, records that are whole or absent, and every problem listed."""

import csv
import errno
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dicomnode.domain.errors import ConfigurationError, DiskFull
from modeling.preparation.dataset import open_prepared
from modeling.preparation.prepare import Prepared, Request, prepare
from modeling.preparation.records import decode_pixels, read_records, record_files
from tests.conftest import ROOT
from tests.modeling.nih_release import make_release, table_rows, write_table

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_release(tmp_path_factory.mktemp("release") / "nih")


@pytest.fixture
def own_release(release: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may damage."""
    return Path(shutil.copytree(release, tmp_path / "nih"))


def request_of(folder: Path, out: Path, **over: object) -> Request:
    request = Request(
        images=folder / "images", labels=folder / "Data_Entry_2017.csv", out=out, folds=3, side=64, shard_size=10
    )
    return replace(request, min_positives=0, **over)  # type: ignore[arg-type]


def quietly(what: str, done: int, total: int) -> None:
    pass


def prepared(folder: Path, out: Path, **over: object) -> Prepared:
    return prepare(request_of(folder, out, **over), quietly)


def manifest(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def problems(out: Path) -> list[tuple[str, str]]:
    with (out / "problems.csv").open(newline="") as file:
        return [(row["problem"], row["subject"]) for row in csv.DictReader(file)]


def problems_of_images(out: Path) -> list[tuple[str, str]]:
    return [problem for problem in problems(out) if problem[0] != "few-positives"]


def found(result: Prepared) -> dict[str, int]:
    """Return the problems of images and rows; so small a release has few positives in some fold."""
    return {kind: number for kind, number in result.problems.items() if kind != "few-positives"}


def content(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != "lock"
    }


@pytest.fixture(scope="module")
def whole(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder prepared of the undamaged release with its official split."""
    out = tmp_path_factory.mktemp("whole") / "out"
    prepared(release, out, official_split=release, processes=2)
    return out


def test_every_image_is_in_one_record_with_its_row_and_its_pixels(whole: Path, release: Path) -> None:
    rows = {str(row[0]): row for row in table_rows(release / "Data_Entry_2017.csv")}
    records = {record.name: record for path in record_files(whole) for record in read_records(path)}
    assert set(records) == set(rows)
    assert problems_of_images(whole) == []
    for name, record in records.items():
        _, findings, _, patient, age, sex, view = rows[name]
        assert (record.patient, record.age, record.sex, record.view) == (patient, int(str(age)), sex, view)
        assert record.labels is not None
        assert sum(record.labels) == (0 if findings == "No Finding" else str(findings).count("|") + 1)
        assert record.label == int(findings != "No Finding")
        assert record.mask == (1,) * 14
        assert decode_pixels(record.image).shape == (64, 64)


def test_pixels_of_the_stored_size_are_stored_exactly(release: Path, tmp_path: Path) -> None:
    prepared(release, tmp_path / "out", side=72)
    for path in record_files(tmp_path / "out"):
        for record in read_records(path):
            original = np.asarray(Image.open(release / "images" / record.name))
            np.testing.assert_array_equal(decode_pixels(record.image), original)


def test_no_patient_is_in_two_folds_and_the_test_is_in_none(whole: Path, release: Path) -> None:
    test_list = set((release / "test_list.txt").read_text().split())
    folds: dict[str, set[str]] = {}
    for row in manifest(whole):
        folds.setdefault(row["patient"], set()).add(row["fold"])
        assert (row["split"] == "test") == (row["image"] in test_list) == (row["fold"] == "")
    assert {len(held) for held in folds.values()} == {1}
    assert {fold for held in folds.values() for fold in held} == {"", "0", "1", "2"}


def test_manifest_records_and_description_agree(whole: Path) -> None:
    opened = open_prepared(whole)
    stated = {row["image"]: (row["shard"], row["fold"]) for row in manifest(whole)}
    there = {
        record.name: (path.name, "" if record.fold is None else str(record.fold))
        for path in (*opened.files(), *opened.files(test=True))
        for record in read_records(path)
    }
    assert there == stated
    assert sum(shard.count for shard in opened.info.shards) == len(stated)
    assert {path.name.split("-")[0] for path in opened.files(folds=(1,))} == {"fold1"}
    assert {path.name.split("-")[0] for path in opened.files(test=True)} == {"test"}


def test_folds_hold_alike_shares_of_images_and_of_a_common_finding(whole: Path) -> None:
    rows = [row for row in manifest(whole) if row["fold"]]
    for wanted in ("", "Atelectasis"):
        counts = [sum(row["fold"] == fold and wanted in row["labels"] for row in rows) for fold in "012"]
        assert max(counts) <= 1.5 * min(counts)


def test_archive_directory_and_any_number_of_processes_give_the_same_files(release: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((release / "images").iterdir()):
            archive.write(path, f"images/{path.name}")
    prepared(release, tmp_path / "a", processes=1)
    prepared(release, tmp_path / "b", images=tmp_path / "images.zip", processes=2)
    of_a, of_b = content(tmp_path / "a"), content(tmp_path / "b")
    # The plan names files as their source does.
    for differing in ("state/plan.json", "dataset.json"):
        of_a.pop(differing)
        of_b.pop(differing)
    assert of_a == of_b


def test_gzip_tables_and_lists_are_read_too(own_release: Path, whole: Path, tmp_path: Path) -> None:
    for name in ("Data_Entry_2017.csv", "train_val_list.txt", "test_list.txt"):
        (own_release / f"{name}.gz").write_bytes(gzip.compress((own_release / name).read_bytes()))
        (own_release / name).unlink()
    labels = own_release / "Data_Entry_2017.csv.gz"
    prepared(own_release, tmp_path / "out", labels=labels, official_split=own_release)
    assert content(tmp_path / "out") == content(whole)


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


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Killed(BaseException):
    """What stands for SIGKILL at one exact step."""


@pytest.mark.parametrize("step", range(6))
def test_a_kill_at_any_step_of_a_file_loses_nothing_and_leaves_no_file_without_its_note(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    from modeling.preparation import shards
    from modeling.preparation.plan import Pixels, PlannedImage, match, plan_shards
    from modeling.preparation.sources import open_source
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
    release: Path, whole: Path, tmp_path: Path, started: Callable[[list[str]], "subprocess.Popen[bytes]"]
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
    assert sum(shard.count for shard in open_prepared(out).info.shards) == len(manifest(whole))


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


def test_every_problem_is_listed_and_every_other_image_kept(own_release: Path, tmp_path: Path) -> None:
    images, table = own_release / "images", own_release / "Data_Entry_2017.csv"
    rows = table_rows(table)
    names = [str(row[0]) for row in rows]
    (images / names[0]).unlink()
    (images / names[1]).write_bytes((images / names[1]).read_bytes()[:-400])
    (images / names[2]).write_bytes(b"not an image")
    (images / names[3]).write_bytes(b"")
    Image.fromarray(np.zeros((63, 90), dtype=np.uint8)).save(images / names[4])
    (images / "again").mkdir()
    shutil.copy(images / names[5], images / "again" / names[5])
    shutil.copy(images / names[5], images / "unheard_of.png")
    rows[6] = (names[6], "Pneumonitis", *rows[6][2:])
    rows[7] = (names[7], "No Finding|Mass", *rows[7][2:])
    rows[8] = (names[8], rows[8][1], 0, "", *rows[8][4:])
    rows[9] = (*rows[9][:4], "414", *rows[9][5:])
    rows += [rows[10], (names[11], "Hernia", *rows[11][2:])]
    write_table(table, rows)
    result = prepared(own_release, tmp_path / "out")
    assert problems_of_images(tmp_path / "out") == [
        ("age-implausible", names[9]),
        ("image-missing", names[0]),
        ("image-too-small", names[4]),
        ("image-twice", f"again/{names[5]}"),
        *(("image-unreadable", name) for name in sorted(names[1:4])),
        ("image-without-row", "unheard_of.png"),
        ("label-unknown", names[6]),
        ("labels-contradict", names[7]),
        ("row-incomplete", names[8]),
        ("row-twice", names[10]),
        ("rows-contradict", names[11]),
    ]
    assert result.problems["image-unreadable"] == 3
    assert {row["image"] for row in manifest(tmp_path / "out")} == set(names) - {*names[:5], *names[6:9], names[11]}
    ages = {row["image"]: row["age"] for row in manifest(tmp_path / "out")}
    assert (ages[names[9]], ages[names[10]]) == ("", str(rows[10][4]))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report == {"problems": result.problems, "subjects_left_out": 10, "listed_in": "problems.csv"}


def test_small_images_are_admitted_when_asked_for(own_release: Path, tmp_path: Path) -> None:
    name = next((own_release / "images").iterdir())
    Image.fromarray(np.zeros((40, 40), dtype=np.uint8)).save(name)
    assert found(prepared(own_release, tmp_path / "a")) == {"image-too-small": 1}
    assert found(prepared(own_release, tmp_path / "b", min_side=40)) == {}


def test_a_patient_on_both_sides_is_an_error_that_says_how_many(own_release: Path, tmp_path: Path) -> None:
    both = [own_release / f"{side}_list.txt" for side in ("train_val", "test")]
    train_val, test = (path.read_text().split() for path in both)
    for index, path in ((0, both[0]), (1, both[1])):
        moved = (test[1:3] + train_val, test[:1] + test[3:])[index]
        path.write_text("\n".join(moved))
    with pytest.raises(ConfigurationError, match="2 patients are on both sides"):
        prepared(own_release, tmp_path / "out", official_split=own_release)


def test_an_image_in_both_lists_is_an_error(own_release: Path, tmp_path: Path) -> None:
    with (own_release / "test_list.txt").open("a") as file:
        file.write((own_release / "train_val_list.txt").read_text().split()[0] + "\n")
    with pytest.raises(ConfigurationError, match="1 images stand in both lists"):
        prepared(own_release, tmp_path / "out", official_split=own_release)


def test_images_in_no_list_and_names_without_a_row_are_listed(own_release: Path, tmp_path: Path) -> None:
    path = own_release / "train_val_list.txt"
    names = path.read_text().split()
    path.write_text("\n".join(["99999999_000.png", *names[1:]]))
    result = prepared(own_release, tmp_path / "out", official_split=own_release)
    assert found(result) == {"in-no-list": 1, "listed-without-row": 1}


def test_too_few_positives_for_a_fold_is_an_error_that_names_them(own_release: Path, tmp_path: Path) -> None:
    table = own_release / "Data_Entry_2017.csv"
    rows = [row if "Hernia" not in str(row[1]) else (row[0], "Mass", *row[2:]) for row in table_rows(table)]
    rows[0] = (rows[0][0], "Hernia", *rows[0][2:])
    write_table(table, rows)
    request = replace(request_of(own_release, tmp_path / "out"), min_positives=1)
    with pytest.raises(ConfigurationError, match=r"Hernia: fold \d holds 0 of 1 positives, needs 1"):
        prepare(request, quietly)
    assert list((tmp_path / "out").glob("*.tfrec")) == []
    assert ("few-positives", "Hernia") in problems(tmp_path / "out")
    prepare(replace(request, min_positives=0), quietly)
    assert ("few-positives", "Hernia") in problems(tmp_path / "out")


def test_binary_labels_of_lists_replace_any_finding(release: Path, tmp_path: Path) -> None:
    names = [str(row[0]) for row in table_rows(release / "Data_Entry_2017.csv")]
    lists = tmp_path / "train.txt", tmp_path / "val.txt"
    lists[0].write_text("".join(f"{name} {index % 2}\n" for index, name in enumerate(names[:60])))
    lists[1].write_text("".join(f"{name} 1\n" for name in names[60:80]))
    result = prepared(release, tmp_path / "out", binary_labels=lists)
    assert found(result) == {"no-binary-label": 40}
    assert result.info.binary_head == "lists"
    stated = {row["image"]: int(row["label"]) for row in manifest(tmp_path / "out")}
    assert stated == {name: index % 2 if index < 60 else 1 for index, name in enumerate(names[:80])}
    lists[1].write_text(f"{names[0]} 1\n")
    with pytest.raises(ConfigurationError, match="labelled 0 and 1"):
        prepared(release, tmp_path / "other", binary_labels=lists)


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"labels": Path("none.csv")}, "cannot be read"),
        ({"images": Path("none.zip")}, "neither a directory nor a readable ZIP"),
        ({"official_split": Path("nowhere")}, "lacks train_val_list.txt"),
        ({"folds": 61}, "61 folds need at least as many patients, not 60"),
        ({"side": 100}, "120 image-too-small"),
    ],
)
def test_input_that_cannot_be_used_is_a_clear_error(
    release: Path, tmp_path: Path, over: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        prepared(release, tmp_path / "out", **over)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Image Index,Finding Labels\na.png,Mass\n", "lacks the column Patient ID"),
        ("Image Index,Finding Labels,Patient ID\n", "holds no rows"),
        ("Image Index,Finding Labels,Patient ID\nelsewhere.png,Mass,1\n", "not one of the 1 rows"),
    ],
)
def test_a_table_that_cannot_be_used_is_a_clear_error(release: Path, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ConfigurationError, match=says):
        prepared(release, tmp_path / "out", labels=tmp_path / "table.csv")


@pytest.mark.parametrize(("written", "years"), [("058Y", 58), ("011M", 0), ("030M", 2), ("58", 58), ("", None)])
def test_ages_are_read_as_both_releases_write_them(tmp_path: Path, written: str, years: int | None) -> None:
    from modeling.preparation.tables import read_table

    write_table(tmp_path / "table.csv", [("a.png", "Mass", 0, 1, written, "M", "PA")])
    assert read_table(tmp_path / "table.csv").entries[0].age == years


def test_an_unfinished_or_incomplete_folder_is_not_opened(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigurationError, match="not prepared, or not finished"):
        open_prepared(out)
    prepared(release, out)
    record_files(out)[0].unlink()
    with pytest.raises(ConfigurationError, match="missing, or not the file that was written"):
        open_prepared(out)


def test_the_trainer_gets_from_records_what_it_gets_from_the_images(release: Path, tmp_path: Path) -> None:
    from dicomnode.bundle.manifest import InputSpec
    from modeling.nih import read_radiographs
    from modeling.preparation.training_set import training_set

    prepared(release, tmp_path / "out", side=72, official_split=release)
    spec = InputSpec(side=64, source_side=64)
    expected = read_radiographs(release / "images", release / "Data_Entry_2017.csv", spec)
    of_name = {name: row for row, name in enumerate(expected.names)}
    folder = open_prepared(tmp_path / "out")
    (training, folds), (test, none) = (training_set(folder, spec, test=test) for test in (False, True))
    assert sorted((*training.names, *test.names)) == sorted(expected.names)
    assert (set(folds), set(none)) == ({0, 1, 2}, {-1})
    for part in (training, test):
        rows = [of_name[name] for name in part.names]
        for field in ("pixels", "labels", "patients", "views", "source_px"):
            np.testing.assert_array_equal(getattr(part, field), getattr(expected, field)[rows])
    with pytest.raises(ConfigurationError, match="of 72 px, the model's input needs 128"):
        training_set(folder, InputSpec(side=192))


def test_real_radiographs_round_trip_with_their_labels_and_no_patient_crosses(
    shared_data: Path, tmp_path: Path
) -> None:
    nih = shared_data / "nih"
    with zipfile.ZipFile(nih / "nih-train_val.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")][:6000:20]
        for name in names:
            archive.extract(name, tmp_path / "real")
    request = Request(
        images=tmp_path / "real",
        labels=nih / "Data_Entry_2017_v2020.csv.gz",
        official_split=nih,
        out=tmp_path / "out",
        side=128,
        min_side=64,
        shard_size=50,
        min_positives=0,
        processes=2,
    )
    result = prepare(request, quietly)
    assert result.problems["image-missing"] == 112120 - 300
    assert "image-unreadable" not in result.problems
    rows = manifest(tmp_path / "out")
    assert len(rows) == 300
    folds: dict[str, set[str]] = {}
    for row in rows:
        folds.setdefault(row["patient"], set()).add(row["fold"])
    assert {len(held) for held in folds.values()} == {1}
    of_size = {row["image"] for row in rows if (row["rows"], row["columns"]) == ("128", "128")}
    assert of_size
    by_stem = {path.stem: path for path in (tmp_path / "real").rglob("*.jpg")}
    for path in open_prepared(tmp_path / "out").files():
        for record in read_records(path):
            if record.name in of_size:
                original = np.asarray(Image.open(by_stem[Path(record.name).stem]).convert("L"))
                np.testing.assert_array_equal(decode_pixels(record.image), original)


def test_train_takes_a_prepared_folder_with_the_folds_it_was_written_with(release: Path, tmp_path: Path) -> None:
    from modeling.commands import training_images
    from modeling.config import read_config

    prepared(release, tmp_path / "out", side=72)
    recipe = (ROOT / "conf" / "train" / "smoke.toml").read_text()
    (tmp_path / "three.toml").write_text(recipe.replace("folds = 2", "folds = 3"))
    settings = read_config(tmp_path / "three.toml")
    radiographs, folds = training_images(tmp_path / "out", None, settings)
    expected = {entry["image"]: entry["fold"] for entry in manifest(tmp_path / "out")}
    assert {name: str(fold) for name, fold in zip(radiographs.names, folds, strict=True)} == expected
    with pytest.raises(ConfigurationError, match="leave --labels out"):
        training_images(tmp_path / "out", release / "Data_Entry_2017.csv", settings)
    with pytest.raises(ConfigurationError, match="has 3 folds, the configuration asks for 2"):
        training_images(tmp_path / "out", None, read_config(ROOT / "conf" / "train" / "smoke.toml"))
