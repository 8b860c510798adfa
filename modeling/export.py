"""From a finished run to the bundle the node serves."""

import logging
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt

from dicomnode.bundle.manifest import CodeEntry, GateSpec, LabelEntry, Manifest, Provenance, ScoreReference
from dicomnode.bundle.phantom import draw_chest
from dicomnode.bundle.preprocess import preprocess
from dicomnode.bundle.reader import CARD, GOLDEN, MANIFEST, MODEL, file_sha256
from dicomnode.bundle.scores import SCORE_BOUNDS, score_counts
from dicomnode.domain.finding import Code
from dicomnode.domain.frame import FloatArray
from dicomnode.domain.terminology import NIH_TERMS
from modeling.augment import network_inputs
from modeling.calibration import DERIVED_ON, fit_calibration, operating_points, probabilities, with_frequency
from modeling.card import DEFAULT, CardFacts, Parity, write_card
from modeling.card_evaluations import StoredEvaluation
from modeling.confounding import judged_labels, refit_confounded_outputs
from modeling.devices import alone
from modeling.evaluation.assess import measurable
from modeling.evaluation.curves import curves_of, with_intervals
from modeling.evaluation.intervals import Resampler
from modeling.gate import Gate, fit_gate, fitted, sample_features
from modeling.gate_check import measure_gate
from modeling.network import Network, build_network, load_fold
from modeling.onnx_graph import Ensemble, measure_parity, run_graph, served_member, served_trunk, write_graph
from modeling.out_of_fold import OutOfFoldReport, build_report, history_of, overfitting_of, store_out_of_fold
from modeling.recipe_comparison import HeldOut, compared
from modeling.run import Run
from modeling.training_images import TRAINING_IMAGES, fingerprint_of, is_same_model, write_training_images

log = logging.getLogger(__name__)

DEFAULT_OPERATING_POINT = DEFAULT
"""For the binary head a specificity of 90 % among patients who never had a finding: Youden's point, chosen among
patients of whom most are ill at some time, called nearly every chest of another hospital abnormal. For each finding a
specificity of 95 %, and more for a rare one until one mark in ten is right: with 14 labels, laxer thresholds would find
something in nearly every normal image."""
INTENDED_USE = "Research use only. Not a medical device; not for diagnosis or for decisions about patients."
LICENCES = (
    "NIH ChestX-ray14: free use; asks for citation of Wang et al., CVPR 2017, and naming of the NIH Clinical Center",
    "EfficientNet-Lite ImageNet weights (TensorFlow's models): Apache-2.0",
)
GOLDEN_IMAGES = 4
PARITY_IMAGES = 32
CURVE_ROUNDS = 1000


def export_bundle(
    run: Run,
    folder: Path,
    *,
    created: datetime,
    beside: Sequence[HeldOut] = (),
    evaluations: Sequence[StoredEvaluation] = (),
) -> Manifest:
    """Write the bundle of a finished run: graph, golden vectors, model card, and last the manifest that names them.

    `beside`: what other recipes reached on the same images, for the card. `evaluations`: of this run's model, likewise;
    those of another model are left out with a warning.

    Raises: CxrNodeError when the written graph does not compute what Keras does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network = build_network(run, alone(), exact=True)
    refitted = refit_confounded_outputs(run, network)
    judged = judged_labels(run.labels, run.radiographs.source_px, run.config.confounding.least_source_frequency)
    logits = store_out_of_fold(run, network)
    log.info("out-of-fold predictions written; evaluating them")
    report = build_report(run.radiographs, run.outputs, judged, logits, seed=run.config.train.seed)
    entries = label_entries(run, report, judged, logits)
    gate = fit_gate(sample_features(network.for_gate, run.radiographs, run.folds, run.config), run.config.gate)
    log.info("pixel gate fitted: %.2f %% of upright training images rejected", 100 * gate.rejected)
    ensemble, rounding = _build_ensemble(run, network, fitted(gate))
    write_graph(ensemble, folder / MODEL)
    parity = Parity(onnx=measure_parity(ensemble, folder / MODEL, parity_images(run)), rounding=rounding)
    write_golden(run, folder)
    write_training_images(folder / TRAINING_IMAGES, run.radiographs.names, run.radiographs.pixels)
    known = run.sources.gate_images
    foreign = measure_gate(folder / MODEL, run.config.input, gate.spec, known) if known else ()
    facts = CardFacts(
        config=run.config,
        radiographs=run.radiographs,
        report=report,
        labels=entries,
        warm_start=run.sources.warm_start is not None,
        gate=gate,
        foreign=foreign,
        parity=parity,
        refitted=refitted,
        comparison=compared(run, judged, beside),
        history=history_of(run, logits, entries[0], report.confounded),
        overfitting=overfitting_of(run, network, logits),
        evaluations=_of_this_model(evaluations, folder),
        licences=_licences(run),
        intended_use=INTENDED_USE,
    )
    (folder / CARD).write_text(write_card(facts), encoding="utf-8")
    return write_manifest(run, entries, gate.spec, folder, created)


def _of_this_model(evaluations: Sequence[StoredEvaluation], folder: Path) -> tuple[StoredEvaluation, ...]:
    fingerprint = fingerprint_of(folder)
    same = tuple(stored for stored in evaluations if is_same_model(stored.fingerprint, fingerprint))
    for stored in evaluations:
        if stored not in same:
            log.warning("%s evaluated another model and is left out of the card; evaluate this bundle", stored.folder)
    return same


def _licences(run: Run) -> tuple[str, ...]:
    return LICENCES if run.sources.warm_start is not None else LICENCES[:1]


def label_entries(run: Run, report: OutOfFoldReport, judged: FloatArray, logits: FloatArray) -> tuple[LabelEntry, ...]:
    """Return the manifest's entry of every output, from (N, outputs) labels and out-of-fold logits."""
    resampler = Resampler(run.radiographs.patients, rounds=CURVE_ROUNDS, seed=run.config.train.seed)
    columns = zip(judged.T, logits.T, strict=True)
    return tuple(_label_entry(run, report, resampler, *column, at) for at, column in enumerate(columns))


def _label_entry(
    run: Run, report: OutOfFoldReport, resampler: Resampler, judged: FloatArray, logits: FloatArray, index: int
) -> LabelEntry:
    """Calibrate one output, choose its operating points and draw its curves, from (N,) labels and logits."""
    name, known = run.outputs[index], ~np.isnan(judged)
    truth = judged[known] > 0.5
    everywhere = float(np.nanmean(run.labels[:, index]))
    plain = fit_calibration(truth, logits[known])
    calibration = with_frequency(plain, fitted=float(truth.mean()), wanted=everywhere)
    calibrated = probabilities(calibration, logits[known])
    points = operating_points(truth, calibrated, frequency=everywhere, never_ill=_never_ill(run)[known])
    curves = None
    if measurable(truth):
        points = {rule: with_intervals(point, truth, calibrated, resampler, known) for rule, point in points.items()}
        curves = curves_of(truth, calibrated, points, resampler, known, frequency=everywhere, derived_on=DERIVED_ON)
    points[DEFAULT_OPERATING_POINT] = points["ppv_10" if name in NIH_TERMS else "never_ill_90"]
    term, measured = NIH_TERMS.get(name), report.groups[0].aucs[index]
    return LabelEntry(
        name=name,
        code=_code_entry(term.code) if term else None,
        site=_code_entry(term.site) if term else None,
        calibration=calibration,
        operating_points=points,
        auc=measured.value if measured else None,
        auc_interval=(measured.low, measured.high) if measured else None,
        positives=int(truth.sum()),
        prevalence=everywhere,
        scores=ScoreReference(bounds=SCORE_BOUNDS, counts=score_counts(calibrated.tolist())),
        curves=curves,
    )


def _never_ill(run: Run) -> npt.NDArray[np.bool_]:
    """Return (N,) whether the image is of a patient of whom no image here has a finding."""
    patients = run.radiographs.patients
    return ~np.isin(patients, np.unique(patients[run.labels[:, 0] != 0]))


def _code_entry(code: Code) -> CodeEntry:
    return CodeEntry(value=code.value, scheme=code.scheme, meaning=code.meaning)


def _build_ensemble(run: Run, network: Network, gate: Gate) -> tuple[Ensemble, float]:
    """Return the served ensemble, and the largest change of a logit by folding and rounding to half precision."""
    members, change = build_members(run, network)
    ensemble = Ensemble(
        side=run.config.input.side,
        trunk=served_trunk(network.trunk),
        members=members,
        gate=gate,
        gate_trunk=served_trunk(network.gate_trunk),
    )
    return ensemble, change


def build_members(run: Run, network: Network) -> tuple[tuple[keras.Model, ...], float]:
    """Return every fold's served head, and the largest change of a logit by folding and rounding to half precision."""
    config, images = run.config, parity_images(run)
    trunk, members, change = served_trunk(network.trunk), [], 0.0
    features = images if trunk is None else trunk.predict_on_batch(images)
    for fold in range(config.train.folds):
        load_fold(run, network, fold)
        member = served_member(network.head, config.model, config.input.side)
        rounded = member.predict_on_batch(features)
        change = max(change, float(np.abs(rounded - network.logits(images)).max()))
        members.append(member)
    return tuple(members), change


def parity_images(run: Run) -> FloatArray:
    """Return the network inputs that graphs are compared on."""
    return network_inputs(run.radiographs.pixels[:PARITY_IMAGES], run.config.input.side)


def write_golden(run: Run, folder: Path) -> None:
    """Store drawn chests with the graph's outputs; a bundle that gives others is damaged or wrongly computed."""
    random, spec = np.random.default_rng(run.config.train.seed), run.config.input
    drawn = [
        preprocess(draw_chest(2 * spec.source_side, 2 * spec.source_side, random), spec) for _ in range(GOLDEN_IMAGES)
    ]
    images = np.stack(drawn)[..., np.newaxis]
    with (folder / GOLDEN).open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, image=images, **run_graph(folder / MODEL, images))


def write_manifest(
    run: Run,
    entries: tuple[LabelEntry, ...],
    gate: GateSpec,
    folder: Path,
    created: datetime,
    *,
    members: int | None = None,
) -> Manifest:
    """Write the manifest of a bundle whose other files are there. `members`: all of the run's when left out."""
    config, patients = run.config, len(set(run.radiographs.patients))
    manifest = Manifest(
        schema_version=1,
        name=config.bundle.name,
        version=config.bundle.version,
        created=created.astimezone(UTC).isoformat(timespec="seconds"),
        intended_use=INTENDED_USE,
        backbone=config.model.backbone,
        members=config.train.folds if members is None else members,
        input=config.input,
        labels=entries,
        default_operating_point=DEFAULT_OPERATING_POINT,
        undetermined_spread=config.bundle.undetermined_spread,
        gate=gate,
        provenance=Provenance(
            data="NIH ChestX-ray14",
            images=len(run.folds),
            patients=patients,
            folds=config.train.folds,
            recipe=config.model_dump_json(exclude={"bundle", "input", "tracking"}),
            licences=LICENCES,
        ),
        files={name: file_sha256(folder / name) for name in (MODEL, GOLDEN, CARD, TRAINING_IMAGES)},
    )
    (folder / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")
    return manifest


def manifest_text(manifest: Manifest) -> str:
    """Return a manifest as readable JSON: each list of numbers is on one line."""
    indented = manifest.model_dump_json(indent=2) + "\n"
    return re.sub(r"\[\n[-+.,\deE\s]+\]", lambda numbers: re.sub(r"\s+", " ", numbers[0]), indented)
