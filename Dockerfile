# Sluice in a container.
#
#   docker build -t sluice --build-arg TORCH_CPU_INDEX=URL .   CPU; URL is a package index with torch's CPU builds
#   docker build -t sluice:cuda --build-arg VARIANT=cuda .     NVIDIA GPUs; the host needs its driver and container toolkit
#   docker run --read-only --tmpfs /tmp -p 8000:8000 -v ./my-model:/models/mine:ro sluice serve --model mine=/models/mine
#   docker run --gpus all --read-only --tmpfs /tmp:exec,size=1g -p 8000:8000 -v ./my-model:/models/mine:ro sluice:cuda serve --model mine=/models/mine
#
# On GPUs, libraries compile kernels at run time and load them from /tmp, which has to be executable then.
#
# Release builds pin the base image by digest: --build-arg BASE=python:3.11-slim@sha256:...
ARG BASE=python:3.11-slim

FROM ${BASE} AS builder
ARG VARIANT=cpu
# On most indexes torch's Linux wheel brings CUDA's libraries, several GB: say where the CPU build is. Empty takes the
# index that pip is configured with.
ARG TORCH_CPU_INDEX=
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
# For the CPU kernels. What they need of OpenMP at run time comes with torch.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/sluice
ENV PATH=/opt/sluice/bin:$PATH
WORKDIR /build

# Dependencies first, from the lock alone: a change of the source does not install them again. torch apart: the index of its
# CPU build has no other packages, and its CUDA build, of the same version, pins its libraries itself.
COPY deploy/requirements.lock ./
RUN awk '/^[a-z]/ { file = /^torch==/ ? "torch.txt" : "others.txt" } file { print > file }' requirements.lock
RUN --mount=type=cache,target=/root/.cache/pip \
    case "${VARIANT}" in \
      cpu) pip install --no-deps --require-hashes ${TORCH_CPU_INDEX:+--index-url "${TORCH_CPU_INDEX}"} --requirement torch.txt \
           || { echo "Cannot install torch's CPU build: name an index with CPU builds in TORCH_CPU_INDEX, or build with \
VARIANT=cuda." >&2; exit 1; } ;; \
      cuda) pip install "$(grep --only-matching '^torch==[0-9.]*' torch.txt)" ;; \
      *) echo "VARIANT is ${VARIANT}: it must be cpu or cuda." >&2; exit 2 ;; \
    esac
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --require-hashes --requirement others.txt && pip check

COPY pyproject.toml README.md LICENSE ./
COPY server ./server
# The kernels are optional for pip: without them the server would work and be slow. Here they have to be there.
RUN --mount=type=cache,target=/root/.cache/pip pip install --verbose --no-deps --no-build-isolation . \
    && if [ "$(uname -m)" = x86_64 ] && [ "$(find /opt/sluice -path '*/server/native/_*.so' | wc -l)" \
      != "$(grep --count '^\[\[tool.setuptools.ext-modules' pyproject.toml)" ]; then \
      echo "The kernels were not compiled: see above." >&2; exit 1; \
    fi

FROM ${BASE}
ARG VARIANT=cpu
ARG VERSION=dev
LABEL org.opencontainers.image.title="Sluice" \
      org.opencontainers.image.description="One HTTP server for fine-tuned language models" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}-${VARIANT}"
# Triton compiles a launcher for each of its kernels at run time; Python's headers are in the base image.
# hadolint ignore=DL3008
RUN if [ "${VARIANT}" = cuda ]; then \
      apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=builder /opt/sluice /opt/sluice
# Nothing is downloaded at run time, and nothing but /tmp is written.
ENV PATH=/opt/sluice/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 \
    HOME=/tmp \
    TRITON_CACHE_DIR=/tmp/triton \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor \
    SLUICE_HOST=0.0.0.0
# A number, since Kubernetes' runAsNonRoot cannot check a name.
USER 10001:10001
WORKDIR /models
EXPOSE 8000
STOPSIGNAL SIGTERM
# Another port is to be said by SLUICE_PORT, not in a file: this knows of no other.
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ.get(\"SLUICE_PORT\", 8000)}/health', timeout=4)"]
ENTRYPOINT ["sluice"]
CMD ["serve"]
