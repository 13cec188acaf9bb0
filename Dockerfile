# freeflow in a container: the README's install from a clone, on a CPU or a GPU. docs/how-to/containers.md says how to use it.
#
#   docker build -t freeflow .
#   docker build -t freeflow:cuda --build-arg DEVICE=cuda .
ARG DEVICE=cpu
ARG CPU_BASE=python:3.11-slim
ARG CUDA_BASE=nvidia/cuda:12.8.1-base-ubuntu24.04

FROM ${CPU_BASE} AS cpu
# torch without CUDA: 200 MB instead of several GB.
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

FROM ${CUDA_BASE} AS cuda
# torch brings CUDA's libraries with it; of the base it needs the driver's interface alone.
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*

FROM ${DEVICE}
ENV PATH=/opt/environment/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/environment
WORKDIR /opt/freeflow
COPY . .
RUN pip install -e .
# Runs and caches belong to whoever starts the container, who need not be root.
ENV HOME=/tmp
WORKDIR /work
ENTRYPOINT ["freeflow"]
CMD ["--help"]
