# Two targets: the command (default), and the same as an AWS Lambda function:
#   docker build -t currents-ingest .
#   docker build -t currents-ingest-lambda --target lambda .
FROM python:3.12-slim AS build
WORKDIR /src
COPY requirements.txt ./
RUN python -m venv /opt/currents \
    && /opt/currents/bin/pip install --no-cache-dir --no-deps -r requirements.txt
COPY pyproject.toml README.md ./
COPY schemas schemas
COPY currents_ingest currents_ingest
RUN /opt/currents/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.12-slim AS base
ENV PATH="/opt/currents/bin:$PATH" \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    CURRENTS_LOG_FORMAT=json
COPY --from=build /opt/currents /opt/currents
RUN useradd --system --uid 10001 --user-group --create-home --home-dir /var/lib/currents currents

FROM base AS lambda
RUN /opt/currents/bin/pip install --no-cache-dir "awslambdaric>=3,<5"
USER 10001
WORKDIR /var/lib/currents
ENTRYPOINT ["python", "-m", "awslambdaric"]
CMD ["currents_ingest.aws_lambda.handler"]

FROM base AS command
LABEL org.opencontainers.image.title="currents-ingest" \
      org.opencontainers.image.licenses="Apache-2.0"
# Nothing outside this folder is written; it may be lost at any moment.
ENV CURRENTS_LEDGER__CACHE=/var/lib/currents/cache.db \
    CURRENTS_RUN__LISTEN=0.0.0.0:9464
USER 10001
WORKDIR /var/lib/currents
EXPOSE 9464
STOPSIGNAL SIGTERM
# Of `run` alone; a scheduler looks at the exit status of the other commands.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9464/healthz', timeout=4)"]
ENTRYPOINT ["currents-ingest"]
CMD ["run"]
