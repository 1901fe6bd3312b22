# The service:  docker build -t currents-ingest .
# For Lambda:   docker build -t currents-ingest-lambda --target lambda .
# For a Dask cluster:  docker build -t currents-ingest-dask --build-arg ENGINE=dask .
# docs/deploy.md and docs/scale.md say how each is run.

ARG ENGINE=threads

FROM python:3.12-slim AS build
WORKDIR /src
COPY requirements.txt ./
RUN python -m venv /opt/currents \
 && /opt/currents/bin/pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: -r requirements.txt
COPY pyproject.toml README.md ./
COPY schemas schemas
COPY currents_ingest currents_ingest
RUN /opt/currents/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation -w /dist . \
 && /opt/currents/bin/pip install --no-cache-dir --no-deps --no-index /dist/*.whl \
 && /opt/currents/bin/currents-ingest --help > /dev/null

FROM build AS build-lambda
COPY deploy/lambda/requirements.txt lambda.txt
RUN /opt/currents/bin/pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: -r lambda.txt

FROM build AS build-threads

FROM build AS build-dask
COPY deploy/dask/requirements.txt dask.txt
RUN /opt/currents/bin/pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: -r dask.txt

FROM build-${ENGINE} AS installed

FROM python:3.12-slim AS base
LABEL org.opencontainers.image.title="currents-ingest" \
      org.opencontainers.image.description="Braze Currents to Amperity, each event exactly once, and audiences back" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/currents/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    CURRENTS_LOG_FORMAT=json
# Settings are mounted here as currents.toml; the environment wins over them.
WORKDIR /etc/currents

FROM base AS lambda
COPY --from=build-lambda /opt/currents /opt/currents
ENTRYPOINT ["python", "-m", "awslambdaric"]
CMD ["currents_ingest.aws_lambda.handler"]

FROM base AS service
COPY --from=installed /opt/currents /opt/currents
# All that is written locally goes to one folder, so the rest may be read-only.
RUN groupadd --system --gid 10001 currents \
 && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/currents --shell /usr/sbin/nologin currents \
 && install -d -o 10001 -g 10001 -m 0700 /var/lib/currents
ENV CURRENTS_LEDGER__CACHE=/var/lib/currents/cache.db \
    CURRENTS_RUN__LISTEN=0.0.0.0:9464 \
    TMPDIR=/var/lib/currents
USER 10001:10001
VOLUME ["/var/lib/currents"]
EXPOSE 9464
# Of use for `run` alone; for other commands: docker run --no-healthcheck.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9464/healthz', timeout=4)"]
ENTRYPOINT ["currents-ingest"]
CMD ["run"]
