"""From a finished run to the bundle the node serves."""

import logging
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnxruntime
import tensorflow as tf

from dicomnode.bundle.manifest import CodeEntry, GateSpec, LabelEntry, Manifest, Provenance
from dicomnode.bundle.preprocess import preprocess
from dicomnode.bundle.reader import CARD, GOLDEN, MANIFEST, MODEL, file_sha256
from dicomnode.domain.errors import CxrNodeError
from dicomnode.domain.finding import Code
from dicomnode.domain.frame import FloatArray
from dicomnode.domain.terminology import NIH_TERMS
from modeling.augment import network_inputs
from modeling.backbones import BACKBONE
from modeling.calibration import fit_calibration, operating_points, probabilities, with_frequency
from modeling.card import CardFacts, Parity, write_card
from modeling.confounding import judged_labels, refit_confounded_outputs
from modeling.gate import GateFit, fit_gate, sample_features
from modeling.gate_check import measure_gate
from modeling.nih import LABELS
from modeling.onnx_graph import OUTPUTS, Ensemble, frozen_member, rounded_trunk, write_graph
from modeling.phantom import chest_phantom
from modeling.report import Report, build_report
from modeling.train import Network, Run, load_fold, out_of_fold

log = logging.getLogger(__name__)

DEFAULT_OPERATING_POINT = "standard"
"""Youden's point for the binary head; for each finding a specificity of 95 %, and more for a rare one until one mark in
ten is right: with 14 labels, laxer thresholds would find something in nearly every normal image."""
INTENDED_USE = "Research use only. Not a medical device; not for diagnosis or for decisions about patients."
LICENCES = (
    "NIH ChestX-ray14: free use; asks for citation of Wang et al., CVPR 2017, and naming of the NIH Clinical Center",
    "EfficientNet-Lite0 ImageNet weights (TensorFlow Hub): Apache-2.0",
)
GOLDEN_IMAGES = 4
PARITY_IMAGES = 32
PARITY_TOLERANCE = 1e-4
"""Largest difference of ONNX Runtime from Keras, relative to an output's largest value (at least 1)."""


def export_bundle(
    run: Run, network: Network, folder: Path, *, created: datetime, gate_images: Path | None = None
) -> Manifest:
    """Write the bundle: graph, golden vectors, model card, and last the manifest that names them.

    `gate_images`: an archive to measure the finished gate on, for the card only.

    Raises: CxrNodeError when the written graph does not compute what Keras does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    refitted = refit_confounded_outputs(run, network)
    judged = judged_labels(run.radiographs, run.config.confounding.least_source_frequency)
    logits = _store_predictions(run, out_of_fold(run, network))
    report = build_report(run.radiographs, judged, logits, seed=run.config.train.seed)
    entries = tuple(
        _label_entry(run, report, judged[:, index], logits[:, index], index) for index in range(len(LABELS))
    )
    gate = fit_gate(sample_features(network.trunk, run.radiographs, run.folds, run.config), run.config.gate)
    log.info("pixel gate fitted: %.2f %% of upright training images rejected", 100 * gate.rejected)
    ensemble, rounding = _build_ensemble(run, network, gate)
    write_graph(ensemble, folder / MODEL)
    parity = Parity(onnx=_measure_parity(run, ensemble, folder / MODEL), rounding=rounding)
    _write_golden(run, folder)
    foreign = measure_gate(folder / MODEL, run.config.input, gate.spec, gate_images) if gate_images else ()
    facts = CardFacts(
        config=run.config,
        radiographs=run.radiographs,
        report=report,
        labels=entries,
        warm_start=run.warm_start is not None,
        gate=gate,
        foreign=foreign,
        parity=parity,
        refitted=refitted,
        licences=LICENCES,
        intended_use=INTENDED_USE,
    )
    (folder / CARD).write_text(write_card(facts), encoding="utf-8")
    return _write_manifest(run, entries, gate.spec, folder, created)


def _store_predictions(run: Run, logits: FloatArray) -> FloatArray:
    """Keep the out-of-fold logits in the run folder, and return them."""
    np.savez(run.folder / "out-of-fold.npz", names=np.array(run.radiographs.names), folds=run.folds, logits=logits)
    log.info("out-of-fold predictions written; evaluating them")
    return logits


def _label_entry(run: Run, report: Report, judged: FloatArray, logits: FloatArray, index: int) -> LabelEntry:
    """Calibrate one output and choose its operating points, from (N,) out-of-fold logits and labels."""
    known = ~np.isnan(judged)
    truth = judged[known] > 0.5
    everywhere = float(run.radiographs.labels[:, index].mean())
    fitted = fit_calibration(truth, logits[known])
    calibration = with_frequency(fitted, fitted=float(truth.mean()), wanted=everywhere)
    points = operating_points(truth, probabilities(calibration, logits[known]), frequency=everywhere)
    points[DEFAULT_OPERATING_POINT] = points["ppv_10" if LABELS[index] in NIH_TERMS else "youden"]
    term, measured = NIH_TERMS.get(LABELS[index]), report.groups[0].aucs[index]
    return LabelEntry(
        name=LABELS[index],
        code=_code_entry(term.code) if term else None,
        site=_code_entry(term.site) if term else None,
        calibration=calibration,
        operating_points=points,
        auc=measured.value if measured else None,
        auc_interval=(measured.low, measured.high) if measured else None,
        positives=int(truth.sum()),
    )


def _code_entry(code: Code) -> CodeEntry:
    return CodeEntry(value=code.value, scheme=code.scheme, meaning=code.meaning)


def _build_ensemble(run: Run, network: Network, gate: GateFit) -> tuple[Ensemble, float]:
    """Return the served ensemble, and the largest change of a logit by folding and rounding to half precision."""
    images = network_inputs(run.radiographs.pixels[:PARITY_IMAGES], run.config.input.side)
    trunk, members, change = rounded_trunk(network.trunk), [], 0.0
    for fold in range(run.config.train.folds):
        load_fold(run, network, fold)
        member = frozen_member(network, run.config.model.frozen_blocks)
        rounded = member.predict_on_batch(trunk.predict_on_batch(images))
        change = max(change, float(np.abs(rounded - network.logits(images)).max()))
        members.append(member)
    return Ensemble(side=run.config.input.side, trunk=trunk, members=tuple(members), gate=gate.gate), change


def _measure_parity(run: Run, ensemble: Ensemble, model: Path) -> float:
    """Return the largest difference of any output from Keras with the same rounded weights.

    Raises: CxrNodeError when it exceeds `PARITY_TOLERANCE`.
    """
    images = network_inputs(run.radiographs.pixels[:PARITY_IMAGES], run.config.input.side)
    expected = ensemble.outputs(tf.constant(images))
    worst = 0.0
    for name, actual in zip(OUTPUTS, _run_graph(model, images), strict=True):
        wanted = np.asarray(expected[name])
        worst = max(worst, float(np.abs(actual - wanted).max()) / max(1.0, float(np.abs(wanted).max())))
    if worst > PARITY_TOLERANCE:
        raise CxrNodeError(f"the ONNX graph differs from Keras by {worst:.1e}, more than {PARITY_TOLERANCE}")
    log.info("ONNX Runtime agrees with Keras to %.1e", worst)
    return worst


def _write_golden(run: Run, folder: Path) -> None:
    """Store drawn chests with the graph's outputs; a bundle that gives others is damaged or wrongly computed."""
    random, spec = np.random.default_rng(run.config.train.seed), run.config.input
    drawn = [preprocess(chest_phantom(2 * spec.source_side, random), spec) for _ in range(GOLDEN_IMAGES)]
    images = np.stack(drawn)[..., np.newaxis]
    outputs = dict(zip(OUTPUTS, _run_graph(folder / MODEL, images), strict=True))
    with (folder / GOLDEN).open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, image=images, **outputs)


def _run_graph(model: Path, images: FloatArray) -> list[FloatArray]:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return [np.asarray(value, dtype=np.float32) for value in session.run(list(OUTPUTS), {"image": images})]


def _write_manifest(
    run: Run, entries: tuple[LabelEntry, ...], gate: GateSpec, folder: Path, created: datetime
) -> Manifest:
    config, patients = run.config, len(set(run.radiographs.patients))
    manifest = Manifest(
        schema_version=1,
        name=config.bundle.name,
        version=config.bundle.version,
        created=created.astimezone(UTC).isoformat(timespec="seconds"),
        intended_use=INTENDED_USE,
        backbone=BACKBONE,
        members=config.train.folds,
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
            recipe=config.model_dump_json(exclude={"bundle", "input"}),
            licences=LICENCES,
        ),
        files={name: file_sha256(folder / name) for name in (MODEL, GOLDEN, CARD)},
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest
