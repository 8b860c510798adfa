"""Export of a run together with members of another bundle: see `modeling.joined`."""

import logging
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from dicomnode.bundle.manifest import GateSpec, InputSpec, Manifest
from dicomnode.bundle.reader import CARD, MODEL, Bundle, open_bundle
from dicomnode.domain.errors import ConfigurationError, CxrNodeError
from dicomnode.domain.frame import FloatArray
from modeling.augment import network_inputs
from modeling.calibration import probabilities_of
from modeling.card import CardFacts, Parity, write_card
from modeling.confounding import judged_labels, refit_confounded_outputs
from modeling.devices import alone
from modeling.export import (
    INTENDED_USE,
    LICENCES,
    build_members,
    label_entries,
    parity_images,
    write_golden,
    write_manifest,
)
from modeling.gate import ORIENTATIONS, GateFit, silent_gate, turn_pixels
from modeling.gate_check import measure_gate
from modeling.joined import EnsemblePart, Predicted, calibrated, join, part_calibrations, read_predicted
from modeling.network import Network, build_network
from modeling.onnx_graph import PARITY_TOLERANCE, Ensemble, measure_parity, run_graph, served_trunk, write_graph
from modeling.out_of_fold import build_report, history_of, overfitting_of, store_out_of_fold
from modeling.run import Run
from modeling.training_images import TRAINING_IMAGES, write_training_images

log = logging.getLogger(__name__)

OWN, OTHER, OWN_GRAPH = "own", "other", "own.onnx"
TURNED_IMAGES, BATCH = 400, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Companion:
    """Another bundle, its out-of-fold logits, and how many members the run and the bundle each give."""

    bundle: Path
    out_of_fold: Path
    own_members: int
    members: int


def export_joined(run: Run, folder: Path, companion: Companion, *, created: datetime) -> Manifest:
    """Write the bundle of a finished run and a companion: as `export_bundle`, with the members of both.

    Raises: ConfigurationError when the two do not fit together; CxrNodeError when the graph computes something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network, other = build_network(run, alone(), exact=True), open_bundle(companion.bundle)
    _require_fit(run, other, companion)
    refitted = refit_confounded_outputs(run, network)
    judged = judged_labels(run.labels, run.radiographs.source_px, run.config.confounding.least_source_frequency)
    own = store_out_of_fold(run, network)
    theirs = _aligned(run, other, read_predicted(companion.out_of_fold))
    parts, rounding, parity = _parts(run, network, other, companion, (judged, own, theirs))
    spec = _joined_input(run.config.input)
    (folder / MODEL).write_bytes(join(*parts, source_side=spec.source_side).SerializeToString())
    _check_parts(folder / MODEL, parts, run)
    share = companion.own_members / (companion.own_members + companion.members)
    mean = share * calibrated(parts[0].calibrations, own) + (1 - share) * calibrated(parts[1].calibrations, theirs)
    report = build_report(run.radiographs, run.outputs, judged, mean, seed=run.config.train.seed)
    entries = label_entries(run, report, judged, mean)
    gate = _measured_gate(run, folder / MODEL, other.manifest.gate)
    joined = replace(run, config=run.config.model_copy(update={"input": spec}))
    write_golden(joined, folder)
    write_training_images(folder / TRAINING_IMAGES, run.radiographs.names, run.radiographs.pixels)
    known = run.sources.gate_images
    facts = CardFacts(
        config=run.config,
        radiographs=run.radiographs,
        report=report,
        labels=entries,
        warm_start=True,
        gate=gate,
        foreign=measure_gate(folder / MODEL, spec, gate.spec, known) if known else (),
        parity=Parity(onnx=parity, rounding=rounding),
        refitted=refitted,
        comparison=None,
        history=history_of(run, mean, entries[0], report.confounded),
        overfitting=overfitting_of(run, network, own),
        evaluations=(),
        licences=LICENCES,
        intended_use=INTENDED_USE,
        companion=_in_words(other, companion),
    )
    (folder / CARD).write_text(write_card(facts), encoding="utf-8")
    members = companion.own_members + companion.members
    return write_manifest(joined, entries, gate.spec, folder, created, members=members)


def _require_fit(run: Run, other: Bundle, companion: Companion) -> None:
    manifest = other.manifest
    if tuple(label.name for label in manifest.labels) != run.outputs:
        raise ConfigurationError(f"{companion.bundle} has other outputs than the run")
    if not (0 < companion.members <= manifest.members and 0 < companion.own_members <= run.config.train.folds):
        raise ConfigurationError("each part gives at least one member, and no more than it has")
    if _joined_input(manifest.input) != _joined_input(run.config.input):
        raise ConfigurationError(f"{companion.bundle} prepares its images in another way than the run")


def _joined_input(spec: InputSpec) -> InputSpec:
    """Return how the joined graph's input is made: not enlarged, since each part does that itself."""
    return spec.model_copy(update={"side": spec.source_side})


def _aligned(run: Run, other: Bundle, predicted: Predicted) -> FloatArray:
    """Return the companion's (N, outputs) logits of the run's images, by a member that did not learn from each.

    It never learnt from images that its own predictions lack, so its first member reads those.
    """
    at = {name: row for row, name in enumerate(predicted.names)}
    logits = np.full(run.labels.shape, np.nan, dtype=np.float32)
    known = [row for row, name in enumerate(run.radiographs.names) if name in at]
    logits[known] = predicted.logits[[at[run.radiographs.names[row]] for row in known]]
    missing = np.flatnonzero(np.isnan(logits[:, 0]))
    side = other.manifest.input.side
    for begin in range(0, len(missing), BATCH):
        rows = missing[begin : begin + BATCH]
        images = network_inputs(run.radiographs.pixels[rows], side)
        logits[rows] = run_graph(other.model_path, images)["logits"][:, 0]
    return logits


def _parts(
    run: Run, network: Network, other: Bundle, companion: Companion, known: tuple[FloatArray, FloatArray, FloatArray]
) -> tuple[tuple[EnsemblePart, EnsemblePart], float, float]:
    """Return both parts, the run's first, with what rounding changes and how far its graph is from Keras."""
    judged, own, theirs = known
    members, rounding = build_members(run, network)
    trunk, path = served_trunk(network.trunk), run.folder / OWN_GRAPH
    gate = silent_gate(network.trunk, run.config.input.side)
    ensemble = Ensemble(side=run.config.input.side, trunk=trunk, members=members, gate=gate)
    write_graph(ensemble, path)
    parity = measure_parity(ensemble, path, parity_images(run))
    parts = (
        _part(OWN, path, run.config.input.side, companion.own_members, judged, own),
        _part(OTHER, other.model_path, other.manifest.input.side, companion.members, judged, theirs),
    )
    return parts, rounding, parity


def _part(name: str, path: Path, side: int, members: int, judged: FloatArray, logits: FloatArray) -> EnsemblePart:
    maps = run_graph(path, np.zeros((1, side, side, 1), dtype=np.float32))["maps"]
    return EnsemblePart(
        name=name,
        model=onnx.load(path),
        side=side,
        map_side=maps.shape[1],
        members=members,
        calibrations=part_calibrations(judged, logits),
    )


def _check_parts(path: Path, parts: tuple[EnsemblePart, EnsemblePart], run: Run) -> None:
    """Compare the joined graph's logits with those of the parts.

    Raises: CxrNodeError.
    """
    pixels, source = run.radiographs.pixels[:BATCH], run.config.input.source_side
    logits, at = run_graph(path, network_inputs(pixels, source))["logits"], 0
    for part in parts:
        session = onnxruntime.InferenceSession(part.model.SerializeToString(), providers=["CPUExecutionProvider"])
        (alone_,) = session.run(["logits"], {"image": network_inputs(pixels, part.side)})
        for member in range(part.members):
            expected = calibrated(part.calibrations, alone_[:, member])
            worst = np.abs(logits[:, at] - expected).max() / np.abs(expected).max()
            if worst > PARITY_TOLERANCE:
                raise CxrNodeError(f"the joined graph differs from member {member} of {part.name} by {worst:.1e}")
            at += 1


def _measured_gate(run: Run, path: Path, former: GateSpec) -> GateFit:
    """Return the companion's gate with thresholds anew, each the larger of those of the views, and how often it errs.

    Bedside images (AP) are farther from the training images than upright ones: one quantile of all of them rejects
    more of the former.
    """
    settings, random = run.config.gate, np.random.default_rng((run.config.train.seed, 3))
    rows = random.permutation(len(run.folds))
    typicality, upright, _ = _read_gate(path, run.radiographs.pixels[rows], run.config.input, former)
    views = run.radiographs.views[rows]
    threshold, unusual = (
        max(float(np.quantile(typicality[views == view], share)) for view in np.unique(views))
        for share in (settings.quantile, 1 - settings.unusual)
    )
    spec = former.model_copy(update={"typicality_threshold": threshold, "unusual_threshold": min(threshold, unusual)})
    repaired, unnoticed = {}, {}
    for index, name in enumerate(ORIENTATIONS[1:], start=1):
        turned = turn_pixels(run.radiographs.pixels[rows[:TURNED_IMAGES]], index, run.config.input)
        distance, passing, certainly = _read_gate(path, turned, run.config.input, former)
        repaired[name] = float((certainly == former.orientations.index(name)).mean())
        unnoticed[name] = float((passing & (distance <= threshold)).mean())
    return GateFit(
        gate=None,
        spec=spec,
        rejected=1 - float((upright & (typicality <= threshold)).mean()),
        repaired=repaired,
        unnoticed=unnoticed,
        sample_size=len(rows),
        turned_size=TURNED_IMAGES,
    )


def _read_gate(
    path: Path, pixels: np.ndarray, spec: InputSpec, gate: GateSpec
) -> tuple[FloatArray, np.ndarray, np.ndarray]:
    """Return (N,) typicality, whether the image seems upright, and the class it certainly is of, -1 where none."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found, options = [], onnxruntime.RunOptions()
    options.only_execute_path_to_fetches = True
    for begin in range(0, len(pixels), BATCH):
        images = network_inputs(pixels[begin : begin + BATCH], spec.source_side)
        found.append(session.run(["typicality", "orientation"], {"image": images}, options))
    typicality, logits = (np.concatenate(values) for values in zip(*found, strict=True))
    chances = probabilities_of(logits)
    best = chances.argmax(axis=1)
    certain = np.where(chances.max(axis=1) >= gate.certain, best, -1)
    return typicality, best == gate.orientations.index("upright"), certain


def _in_words(other: Bundle, companion: Companion) -> str:
    manifest = other.manifest
    return (
        f"{companion.own_members} of this run's members and {companion.members} of those of {manifest.name}"
        f" {manifest.version} ({manifest.backbone}, {manifest.provenance.images} images of"
        f" {manifest.provenance.patients} patients of the same hospital, folds of its own) read each image. Each part's"
        " logits are calibrated by its own out-of-fold predictions before their mean is taken. The figures below are of"
        " the weighted mean of two members, one of each part, neither of which learnt from the patient; the calibration"
        " is of that mean too. The gate is that of the other part, its thresholds the larger of those of the views."
    )
