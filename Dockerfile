# Two images: `pipeline` (DVC, training, Prefect, the Evidently UI) and `triton` (the official server with what `classify` needs).
# The set-up is the Makefile's own, the one that `make run` and the tests use. Built with: docker build --target pipeline .

FROM python:3.11-slim-bookworm AS pipeline
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# git for DVC, make for the set-up, libpython for Triton's Python stub. Without versions, because Debian keeps only the newest
# of a package, and a pin would break the build within weeks.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git libpython3.11 make \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory /project
ENV VENV=/opt/venv \
    TRITON_VENV=/opt/venv-triton \
    VISIONLOOP_TRITON_VENV=/opt/venv-triton \
    PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DVC_NO_ANALYTICS=1 \
    DO_NOT_TRACK=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    UV_LINK_MODE=copy
WORKDIR /project
# First what changes seldom: the packages.
COPY Makefile requirements.lock requirements-uv.lock requirements-triton.lock ./
RUN make deps VENV="$VENV" TRITON_VENV="$TRITON_VENV" && rm -rf "$HOME/.cache"
COPY . .
RUN make setup VENV="$VENV" TRITON_VENV="$TRITON_VENV" \
    && useradd --create-home --uid 1000 visionloop \
    && chown visionloop /project
USER 1000
ENTRYPOINT ["visionloop"]
CMD ["--help"]


# 25.08 is the lowest version without the known faults against hostile clients (docs/decisions/0006-triton-versions.md).
FROM nvcr.io/nvidia/tritonserver:25.08-py3 AS triton
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
COPY requirements-triton.lock /opt/visionloop/
# The lock's last entry is the server from pip, which this image has of its own.
RUN sed '/^nvidia-pytriton==/,$d' /opt/visionloop/requirements-triton.lock > /tmp/requirements.lock \
    && python3 -m pip install --no-cache-dir --break-system-packages --no-deps --require-hashes -r /tmp/requirements.lock \
    && rm /tmp/requirements.lock
COPY src/visionloop /opt/visionloop/visionloop
COPY serving /opt/visionloop/serving
# A path file, because the Python stub does not read PYTHONPATH.
RUN echo /opt/visionloop > "$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/visionloop.pth"
ENV VISIONLOOP_STORE_URL=sqlite:////var/lib/visionloop/store.db \
    VISIONLOOP_SPOOL=/var/lib/visionloop/spool \
    VISIONLOOP_IMAGES=/var/lib/visionloop/images \
    VISIONLOOP_KEEP_IMAGES=1.0 \
    VISIONLOOP_KEEP_IMAGES_MEGABYTES=1000 \
    VISIONLOOP_MAX_IMAGE_MEGABYTES=10 \
    VISIONLOOP_MAX_IMAGE_MEGAPIXELS=25
RUN mkdir -p /var/lib/visionloop && chown 1000 /var/lib/visionloop
# triton-server, which the image brings.
USER 1000
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["curl", "--fail", "--silent", "--show-error", "http://127.0.0.1:8000/v2/models/classify/ready"]
CMD ["tritonserver", "--model-repository=/models", "--model-control-mode=poll", "--repository-poll-secs=15", \
     "--disable-auto-complete-config"]
