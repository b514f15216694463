# docker build -f docker/cpu.Dockerfile -t lacuna:cpu .
# docker run --rm --read-only --cap-drop ALL -p 127.0.0.1:8000:8000 lacuna:cpu
FROM debian:12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends make ca-certificates
WORKDIR /src
COPY . .
RUN make build && strip build/release/lacuna

FROM debian:12-slim
RUN apt-get update && apt-get install -y --no-install-recommends \
      libgrpc++1.51 libprotobuf32 libspdlog1.10 libprometheus-cpp-core1.0 libonig5 libicu72 libssl3 \
    && rm -rf /var/lib/apt/lists/* && useradd --system lacuna
COPY --from=build /src/build/release/lacuna /usr/local/bin/lacuna
USER lacuna
EXPOSE 8000 50051
# Inside a container the port mapping decides who can connect, so the bind is public; with keys, drop the override.
ENTRYPOINT ["lacuna", "serve", "--host", "0.0.0.0", "--set", "admit.allow_public_without_key=true"]
