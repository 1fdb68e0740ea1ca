# syntax=docker/dockerfile:1
# The service alone: librdkafka and OpenSSL are linked statically, so the image needs only glibc and certificates.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --package tallyhouse --bin tallyhouse && cp target/release/tallyhouse /tallyhouse

FROM debian:bookworm-slim
RUN useradd --uid 65532 --no-create-home nonroot && apt-get update && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
USER 65532
COPY --from=build /tallyhouse /usr/local/bin/tallyhouse
EXPOSE 9464
ENTRYPOINT ["/usr/local/bin/tallyhouse"]
CMD ["run"]
