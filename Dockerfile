# circuit in a container, on the CPU:     docker build -t circuit .
# with CUDA:                              docker build -t circuit:cuda --build-arg TORCH=cu128 .
# docker run --rm -v "$PWD:/data" circuit collect --model builtin:tiny
FROM python:3.12-slim

# Name of a PyTorch wheel index: cpu, cu128, ...
ARG TORCH=cpu

RUN apt-get update \
    && apt-get install -y --no-install-recommends graphviz \
    && rm -rf /var/lib/apt/lists/*

RUN pip install --no-cache-dir --index-url "https://download.pytorch.org/whl/${TORCH}" "torch>=2.6,<3"

WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY circuitcli circuitcli
RUN pip install --no-cache-dir . && rm -rf /source/*

# Files in a mounted folder belong to uid 1000 on most single-user machines; docker run --user changes it.
RUN useradd --create-home --uid 1000 circuit && mkdir /data && chown circuit /data
USER circuit
ENV HF_HOME=/home/circuit/.cache/huggingface
WORKDIR /data

ENTRYPOINT ["circuit"]
CMD ["--help"]
