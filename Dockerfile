# The book in a container:
#     docker build -t diffusion-book .
#     docker run -p 8888:8888 diffusion-book
# and open the address that it prints. Your own pictures come in with -v "$PWD/pictures:/book/pictures".
FROM python:3.12-slim
RUN apt-get update -qq \
    && apt-get install -qq -y --no-install-recommends make git \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /book
# First what the requirements are read from, so that they are installed again only when they change.
COPY pyproject.toml constraints.txt README.md LICENSE Makefile ./
COPY diffusion_book diffusion_book
RUN pip install --no-cache-dir --quiet uv && make setup
COPY . .
# JupyterLab answers calls from outside the container, too.
RUN mkdir -p /root/.jupyter && echo "c.ServerApp.ip = '0.0.0.0'" > /root/.jupyter/jupyter_server_config.py
EXPOSE 8888
CMD ["make", "lab"]
