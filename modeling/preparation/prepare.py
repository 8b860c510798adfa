"""`cxrnode data prepare`: check images and labels, assign folds, write records, and list what was left out."""

import errno
import fcntl
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dicomnode.domain.errors import ConfigurationError, DiskFull
from modeling.files import open_source, write_durably
from modeling.preparation.dataset import DATASET, MANIFEST, DatasetInfo, ShardInfo, manifest_text
from modeling.preparation.plan import (
    ImageFormat,
    Matched,
    Pixels,
    PlannedImage,
    PlannedShard,
    digest,
    match,
    plan_shards,
    without_counterpart,
)
from modeling.preparation.problems import Kind, Problem, as_csv, counted
from modeling.preparation.records import FINDINGS, SUFFIX
from modeling.preparation.shards import (
    STATE_FOLDER,
    ReportProgress,
    WorkerPool,
    WrittenShard,
    probe_files,
    worker_pool,
    write_shard,
)
from modeling.preparation.splits import (
    TRAIN_VAL,
    SplitShares,
    assign_folds,
    few_positives,
    random_split,
    read_official_split,
    require_no_shared_patient,
    require_positives,
    write_lists,
)
from modeling.preparation.tables import read_binary_labels, read_table

REPORT, PROBLEMS = "report.json", "problems.csv"
_PLAN = "plan.json"
_PROBED_AT_ONCE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparationRequest:
    """What to prepare, and how.

    `binary_labels`: lists of `NAME 0|1` for the binary head, which otherwise learns "any of the 14 findings".
    `min_side`: images with a shorter side are left out; `side` when None, so that nothing is enlarged.
    `min_positives`: of each finding that occurs, in each fold. `random_split`: shares of a split by patient, in place
    of the official one; its lists are written beside the records.
    """

    images: Path
    labels: Path
    out: Path
    official_split: Path | None = None
    random_split: SplitShares | None = None
    binary_labels: tuple[Path, ...] = ()
    folds: int = 5
    side: int = 256
    min_side: int | None = None
    image_format: ImageFormat = "png"
    shard_size: int = 1000
    min_positives: int = 1
    processes: int = 1
    seed: int = 0

    @property
    def pixels(self) -> Pixels:
        """Return how images are stored."""
        min_side = self.side if self.min_side is None else self.min_side
        return Pixels(side=self.side, min_side=min_side, image_format=self.image_format)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The result. `problems` counts problems by kind; `problems.csv` of `folder` lists them."""

    folder: Path
    info: DatasetInfo
    problems: dict[str, int]


def prepare(request: PreparationRequest, progress: ReportProgress) -> Prepared:
    """Write the records of a data set, or continue an interrupted run.

    Raises: ConfigurationError when the input or the output folder cannot be used; DiskFull.
    """
    try:
        with _claimed(request.out):
            return _prepare(request, progress)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFull(f"no space left on the device of {request.out}") from error
        where = error.filename or request.out
        raise ConfigurationError(f"{where}: {error.strerror or error}") from error


def _prepare(request: PreparationRequest, progress: ReportProgress) -> Prepared:
    matched, problems = _matched(request)
    with worker_pool(request.images, request.processes, progress) as pool:
        images = _probed(request, pool, matched, problems)
        _note_positives(images, request.min_positives, problems, request.out)
        shards = plan_shards(images, shard_size=request.shard_size, seed=request.seed)
        plan = _claim_plan(request, shards)
        written = pool.run("writing", _Write(request.pixels, request.out), shards, len(images))
    written_names = {name for shard in written for name in shard.names}
    problems += [problem for shard in written for problem in shard.problems]
    remaining = [image for image in images if image.matched.entry.name in written_names]
    problems = [problem for problem in problems if problem.kind is not Kind.FEW_POSITIVES]
    _note_positives(remaining, request.min_positives, problems, request.out)
    info = _info(request, shards, written, plan)
    write_durably(request.out / MANIFEST, manifest_text(shards, written).encode())
    # Written last: a folder that contains it is complete.
    write_durably(request.out / DATASET, (info.model_dump_json(indent=2) + "\n").encode())
    return Prepared(folder=request.out, info=info, problems=counted(problems))


@dataclass(frozen=True, slots=True)
class _Write:
    """Writes one record file, in a worker."""

    pixels: Pixels
    folder: Path

    def __call__(self, shard: PlannedShard) -> WrittenShard:
        return write_shard(shard, self.pixels, self.folder)


def _matched(request: PreparationRequest) -> tuple[list[Matched], list[Problem]]:
    """Return the images that have all they need, and everything wrong with the others."""
    table = read_table(request.labels)
    split = None if request.official_split is None else read_official_split(request.official_split)
    if request.random_split is not None:
        split = random_split(table.entries, request.random_split, seed=request.seed)
        write_lists(request.out, split)
    if split is not None:
        require_no_shared_patient(table.entries, split)
    binary = read_binary_labels(list(request.binary_labels)) if request.binary_labels else None
    with open_source(request.images) as source:
        sizes = source.sizes()
    matched, problems = match(table.entries, sizes, split, binary)
    # A row with a problem of its own counts as a row: its image is not listed as without one.
    names = {entry.name for entry in table.entries} | {problem.subject for problem in table.problems}
    problems += [*table.problems, *without_counterpart(names, sizes, split, binary)]
    if not matched:
        _write_report(request.out, problems)
        raise ConfigurationError(
            f"not one of the {len(table.entries)} rows of {request.labels} has an image among the {len(sizes)} of "
            f"{request.images}; see {request.out / PROBLEMS}"
        )
    return matched, problems


def _probed(
    request: PreparationRequest, pool: WorkerPool, matched: Sequence[Matched], problems: list[Problem]
) -> list[PlannedImage]:
    """Return the images large enough, with their sizes and folds; add the others to the problems."""
    files = [image.file for image in matched]
    pieces = [files[start : start + _PROBED_AT_ONCE] for start in range(0, len(files), _PROBED_AT_ONCE)]
    shapes = [shape for piece in pool.run("checking", probe_files, pieces, len(files)) for shape in piece]
    usable: list[tuple[Matched, tuple[int, int]]] = []
    for image, shape in zip(matched, shapes, strict=True):
        problem = _problem_of(image, shape, request.pixels.min_side)
        if problem is not None:
            problems.append(problem)
        elif not isinstance(shape, str):
            usable.append((image, shape))
    if not usable:
        _write_report(request.out, problems)
        raise ConfigurationError(
            f"not one of the {len(matched)} images can be used ({_in_words(problems)}); see {request.out / PROBLEMS}"
        )
    return _with_folds(request, usable)


def _problem_of(image: Matched, shape: tuple[int, int] | str, min_side: int) -> Problem | None:
    if isinstance(shape, str):
        return Problem(kind=Kind.IMAGE_UNREADABLE, subject=image.entry.name, detail=shape)
    if min(shape) < min_side:
        detail = f"{shape[1]}x{shape[0]}, below {min_side}"
        return Problem(kind=Kind.IMAGE_TOO_SMALL, subject=image.entry.name, detail=detail)
    return None


def _with_folds(request: PreparationRequest, usable: Sequence[tuple[Matched, tuple[int, int]]]) -> list[PlannedImage]:
    training = [(image, shape) for image, shape in usable if image.split == TRAIN_VAL]
    folds: dict[str, int] = {}
    if training:
        entries, px = [image.entry for image, _ in training], [max(shape) for _, shape in training]
        assigned = assign_folds(entries, px, folds=request.folds, seed=request.seed)
        folds = {entry.name: int(fold) for entry, fold in zip(entries, assigned, strict=True)}
    return [
        PlannedImage(matched=image, rows=rows, columns=columns, fold=folds.get(image.entry.name))
        for image, (rows, columns) in usable
    ]


def _note_positives(images: Sequence[PlannedImage], minimum: int, problems: list[Problem], out: Path) -> None:
    """Add findings with too few positives in a fold to the problems, write the report, and refuse unless allowed."""
    positives: dict[int, Counter[str]] = defaultdict(Counter)
    for image in images:
        if image.fold is not None:
            positives[image.fold].update(image.matched.entry.findings)
    few = few_positives(positives, max(minimum, 1)) if positives else ()
    problems += few
    _write_report(out, problems)
    if minimum:
        require_positives(few)


def _info(
    request: PreparationRequest, shards: Sequence[PlannedShard], written: Sequence[WrittenShard], plan: str
) -> DatasetInfo:
    described = [
        ShardInfo(
            file=there.file,
            fold=shard.images[0].fold,
            count=len(there.names),
            size_bytes=there.size_bytes,
            sha256=there.sha256,
        )
        for shard, there in zip(shards, written, strict=True)
    ]
    return DatasetInfo(
        schema_version=1,
        side=request.side,
        image_format=request.image_format,
        folds=request.folds,
        seed=request.seed,
        findings=FINDINGS,
        binary_head="lists" if request.binary_labels else "any-finding",
        plan=plan,
        shards=tuple(described),
    )


def _claim_plan(request: PreparationRequest, shards: Sequence[PlannedShard]) -> str:
    """Bind the output folder to this plan. Raises: ConfigurationError when it belongs to another plan."""
    folder, plan = request.out, digest(shards, request.pixels)
    note = folder / STATE_FOLDER / _PLAN
    if note.is_file():
        former = json.loads(note.read_bytes()).get("plan")
        if former != plan:
            raise ConfigurationError(
                f"{folder} was started with other images, labels or options: give another --out, or remove it"
            )
    elif any(folder.glob(f"*{SUFFIX}")):
        raise ConfigurationError(f"{folder} holds records that this command did not write: give another --out")
    else:
        write_durably(note, json.dumps({"plan": plan}).encode())
    return plan


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Lock the output folder against a second run, and remove partial files of a killed run."""
    (folder / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
    with (folder / STATE_FOLDER / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(f"another run is writing to {folder}") from error
        for partial in (*folder.glob(".*.partial"), *(folder / STATE_FOLDER).glob(".*.partial")):
            partial.unlink(missing_ok=True)
        yield


def _write_report(folder: Path, problems: Sequence[Problem]) -> None:
    skipped = {problem.subject for problem in problems if problem.skipped}
    report = {"problems": counted(problems), "subjects_left_out": len(skipped), "listed_in": PROBLEMS}
    write_durably(folder / PROBLEMS, as_csv(problems).encode())
    write_durably(folder / REPORT, (json.dumps(report, indent=2) + "\n").encode())


def _in_words(problems: Sequence[Problem]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in counted(problems).items())
