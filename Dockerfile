# syntax=docker/dockerfile:1
# A serving image without the training code's dependencies. From the root of the repository:
#   docker build -t cxrnode:0.1.0 .
#   docker run -p 11112:11112 -v cxrnode:/var/lib/cxrnode cxrnode:0.1.0 serve --send-to PACS@pacs.example.org:104
# A tag can be moved to another image, a digest cannot. Pin the one that you have tested:
#   docker build --build-arg BASE=python:3.12-slim@sha256:... -t cxrnode:0.1.0 .
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
WORKDIR /source
COPY requirements.lock requirements-build.lock ./
# Every package has the hash that the lock file states, those that build the wheel too.
RUN pip install --no-cache-dir --require-hashes --requirement requirements-build.lock \
    && python -m venv /opt/cxrnode \
    && /opt/cxrnode/bin/pip install --no-cache-dir --require-hashes --requirement requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY dicomnode dicomnode
COPY modeling modeling
COPY models models
COPY conf conf
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/cxrnode/bin/pip install --no-cache-dir --no-deps dist/*.whl

FROM ${BASE}
# The opencv-python wheel links against these.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home --home-dir /var/lib/cxrnode cxrnode
COPY --from=build /opt/cxrnode /opt/cxrnode
ENV PATH=/opt/cxrnode/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CXRNODE_STORE__PATH=/var/lib/cxrnode/store
WORKDIR /var/lib/cxrnode
USER cxrnode
VOLUME /var/lib/cxrnode
# DICOM, and the page. The page listens on the container's loopback until http.bind says otherwise, which takes tokens:
# deploy/compose.yaml and deploy/kubernetes.yaml show how.
EXPOSE 11112 8080
# It asks the node's own page whether all loops run, whether DICOM is plain or TLS. Where a file sets another port of the
# page, or TLS, give its URL with --health-cmd.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
    CMD ["python", "-m", "dicomnode.web.probe", "/healthz"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["cxrnode"]
CMD ["serve"]
