"""Tries what export needs before the first step of training, so that a run of hours does not fail at its end."""

import logging
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from dicomnode.bundle.manifest import Calibration, LabelEntry, OperatingPointEntry
from modeling.augment import network_inputs
from modeling.calibration import DERIVED_ON
from modeling.card import CardFacts, Parity, write_card
from modeling.devices import alone
from modeling.evaluation.results import OverfittingResult
from modeling.export import DEFAULT_OPERATING_POINT, INTENDED_USE, LICENCES
from modeling.gate import GateFit, fit_gate, fitted, sample_features
from modeling.losses import build_loss, label_frequency, logit_shift, targets
from modeling.network import Network, build_network
from modeling.onnx_graph import Ensemble, measure_parity, served_member, served_trunk, write_graph
from modeling.out_of_fold import ALL, GroupResult, OutOfFoldReport
from modeling.run import Run

log = logging.getLogger(__name__)

IMAGES, GATE_IMAGES = 4, 60


def check_export(run: Run) -> None:
    """Describe the configuration, write a graph of untrained weights, compare it with Keras, and write a card.

    Needs the TensorFlow backend, and sets Keras' dtype policy as `build_network` does.

    Raises: ConfigurationError or another CxrNodeError naming what cannot be exported.
    """
    began = datetime.now(tz=UTC)
    network = build_network(run, alone(), exact=True)
    _check_loss(run)
    gate = _fitted_gate(run, network)
    onnx = _measured_parity(run, network, gate)
    write_card(_facts(run, gate, Parity(onnx=onnx, rounding=0.0)))
    log.info("what export needs was tried in %.0f s", (datetime.now(tz=UTC) - began).total_seconds())


def _check_loss(run: Run) -> None:
    """Compute the loss and its shift once; a loss that is not in `losses.py` fails here."""
    labels = run.labels[:IMAGES]
    frequency = label_frequency(run.labels, np.ones(len(run.labels)))
    logit_shift(frequency, run.config.loss)
    build_loss(run.config.loss)(targets(labels, frequency, run.config.loss), np.zeros_like(labels))


def _fitted_gate(run: Run, network: Network) -> GateFit:
    few = run.config.gate.model_copy(update={"images": GATE_IMAGES})
    config = run.config.model_copy(update={"gate": few})
    return fit_gate(sample_features(network.for_gate, run.radiographs, run.folds, config), few)


def _measured_parity(run: Run, network: Network, gate: GateFit) -> float:
    config = run.config
    member = served_member(network.head, config.model, config.input.side)
    ensemble = Ensemble(
        side=config.input.side,
        trunk=served_trunk(network.trunk),
        members=(member,),
        gate=fitted(gate),
        gate_trunk=served_trunk(network.gate_trunk),
    )
    images = network_inputs(run.radiographs.pixels[:IMAGES], config.input.side)
    with tempfile.TemporaryDirectory(dir=run.folder) as folder:
        path = Path(folder) / "untrained.onnx"
        write_graph(ensemble, path)
        return measure_parity(ensemble, path, images)


def _facts(run: Run, gate: GateFit, parity: Parity) -> CardFacts:
    """Return facts without results: what they are filled with must not change whether a card can be written."""
    outputs = run.outputs
    nothing = tuple(None for _ in outputs)
    everything = GroupResult(
        name=ALL,
        images=len(run.folds),
        patients=len(set(run.radiographs.patients)),
        positives=tuple(0 for _ in outputs),
        aucs=nothing,
        mean_findings=None,
    )
    unmeasured = tuple(0.5 for _ in outputs)
    report = OutOfFoldReport(
        outputs=outputs,
        groups=(everything,),
        view_only=unmeasured,
        source_only=unmeasured,
        source_shift=unmeasured,
        confounded=(),
        mean_unconfounded=None,
    )
    return CardFacts(
        config=run.config,
        radiographs=run.radiographs,
        report=report,
        labels=tuple(_entry(name) for name in outputs),
        warm_start=run.sources.warm_start is not None,
        gate=gate,
        foreign=(),
        parity=parity,
        refitted=(),
        comparison=None,
        history=None,
        overfitting=OverfittingResult(images=0, in_sample={}, out_of_fold={}, gap={}),
        evaluations=(),
        licences=LICENCES,
        intended_use=INTENDED_USE,
    )


def _entry(name: str) -> LabelEntry:
    point = OperatingPointEntry(
        threshold=0.5, sensitivity=0.0, specificity=1.0, derived_on=DERIVED_ON, chosen_by="not derived yet"
    )
    return LabelEntry(
        name=name,
        code=None,
        site=None,
        calibration=Calibration(slope=1.0, intercept=0.0),
        operating_points={DEFAULT_OPERATING_POINT: point},
        positives=0,
    )
