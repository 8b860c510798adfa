"""The model bundle and the pipeline around it, opened and verified."""

from dicomnode.analysis.pipeline import Pipeline
from dicomnode.bundle.reader import Bundle, open_bundle
from dicomnode.imaging.codecs.process import CodecProcess
from dicomnode.inference.operating import choose_operating_point
from dicomnode.inference.predictor import Predictor
from dicomnode.settings.node import Settings, default_bundle


def load_pipeline(settings: Settings, codecs: CodecProcess) -> tuple[Bundle, Pipeline]:
    """Open and verify the bundle, replay its golden vectors, and build the pipeline around it and the codecs.

    Raises: ConfigurationError, BundleInvalid.
    """
    bundle = open_bundle(settings.inference.bundle or default_bundle())
    operating_point = choose_operating_point(bundle.manifest, settings.inference.operating_point)
    predictor = Predictor(bundle, threads=settings.inference.threads, providers=settings.inference.providers)
    predictor.replay_golden()
    pipeline = Pipeline(
        codecs=codecs,
        predictor=predictor,
        manifest=bundle.manifest,
        identity=bundle.identity,
        operating_point=operating_point,
        eligibility=settings.eligibility,
        pixels=settings.pixels,
        results=settings.results,
    )
    return bundle, pipeline
