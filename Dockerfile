# syntax=docker/dockerfile:1
# A serving image without training code's dependencies.
#   docker build -t cxrnode .
#   docker run -p 11112:11112 -v cxrnode:/var/lib/cxrnode cxrnode serve --send-to PACS@pacs.example.org:104
FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY dicomnode dicomnode
COPY modeling modeling
COPY models models
COPY conf conf
RUN python -m venv /opt/cxrnode \
    && /opt/cxrnode/bin/pip install --no-cache-dir --constraint constraints.txt .

FROM python:3.12-slim
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
EXPOSE 11112
# The node's own page, on the container's loopback: all its loops run. It does not depend on DICOM being plain or TLS.
# Where a file sets another port of the page, say so with --health-cmd.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
    CMD ["python", "-m", "dicomnode.web.probe", "/healthz"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["cxrnode"]
CMD ["serve"]
