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
# A C-ECHO to itself: the listener answers. Set CXRNODE_SCP__… in the environment, not only by options, so that
# the check asks the port and AE title that the node uses.
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s \
    CMD cxrnode echo "${CXRNODE_SCP__AE_TITLE:-CXRNODE}@127.0.0.1:${CXRNODE_SCP__PORT:-11112}"
STOPSIGNAL SIGTERM
ENTRYPOINT ["cxrnode"]
CMD ["serve"]
