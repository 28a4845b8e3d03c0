# The image of `headwater serve`, `work` and `migrate`, here with the bank as its app.

FROM python:3.13-slim AS build
ENV PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
COPY requirements.txt ./
RUN pip install --require-hashes --only-binary :all: -r requirements.txt
COPY . .
# Builds the explorer too, with the Node.js of explorer/requirements-node.txt.
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheel .

FROM python:3.13-slim
ENV PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY requirements-runtime.txt ./
RUN pip install --require-hashes --only-binary :all: -r requirements-runtime.txt && rm requirements-runtime.txt
COPY --from=build /wheel /wheel
RUN pip install --no-deps --no-index /wheel/*.whl && rm -r /wheel
RUN useradd --system --uid 10001 --no-create-home --shell /bin/false headwater

WORKDIR /app
COPY src/bank bank
USER headwater
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HEADWATER_PORT=8000
EXPOSE 8000
# It listens within the container only, until HEADWATER_HOST names an address, as docker-compose.yml does.
# Whether it is alive; whether it is ready is asked by docker-compose.yml. Without urllib, which would ask a proxy.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["python", "-c", "\
import http.client, os; \
server = http.client.HTTPConnection('127.0.0.1', int(os.environ['HEADWATER_PORT']), timeout=4); \
server.request('GET', '/health/live'); \
raise SystemExit(server.getresponse().status != 200)"]
CMD ["headwater", "serve", "--app", "bank.main:app"]
