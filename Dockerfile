# CPU:  docker build -t lit_gpt .
# CUDA: docker build -t lit_gpt --build-arg BASE=pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime .
# Run:  docker run --rm -it -v "$PWD/runs:/work/runs" lit_gpt fit --config /opt/lit_gpt/configs/quickstart.yaml
ARG BASE=python:3.12-slim
FROM ${BASE}
WORKDIR /opt/lit_gpt
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY lit_gpt ./lit_gpt
COPY configs ./configs
# A torch that the base image brings (CUDA) is kept. For a small CPU image pass the index of torch's CPU wheels:
# --build-arg TORCH_INDEX=...
ARG TORCH_INDEX=""
RUN python -c "import torch" 2>/dev/null || pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0
RUN pip install --no-cache-dir -c constraints.txt '.[serve,constrain,adapters,data]'
WORKDIR /work
ENTRYPOINT ["python", "-m", "lit_gpt"]
CMD ["--help"]
