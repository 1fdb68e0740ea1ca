# syntax=docker/dockerfile:1
# The service alone: librdkafka and OpenSSL are linked statically, so the image needs glibc, libgcc and certificates, and no shell.
# For several architectures, each built on a machine (or an emulator) of its own:
#   docker buildx build --platform linux/amd64,linux/arm64 --tag registry.example.com/tallyhouse:0.1.0 --push .
FROM rust:1.95-trixie AS build
WORKDIR /src
COPY . .
# A cache for each platform: two builds at once must not share a target folder. jemalloc refuses pages larger than those that it was built
# for, and some arm64 kernels have pages of 64 KiB.
ARG TARGETPLATFORM
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,id=target-${TARGETPLATFORM} \
    if [ "$TARGETPLATFORM" = linux/arm64 ]; then export JEMALLOC_SYS_WITH_LG_PAGE=16; fi && \
    cargo build --release --locked --package tallyhouse --bin tallyhouse && cp target/release/tallyhouse /tallyhouse

# Debian 13, as the build: the program asks for its glibc. nonroot is 65532.
FROM gcr.io/distroless/cc-debian13:nonroot
LABEL org.opencontainers.image.title="Tallyhouse" \
      org.opencontainers.image.description="Turns a Kafka stream of email-campaign events into exact, queryable counts in ClickHouse" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /tallyhouse /usr/local/bin/tallyhouse
# By number: Kubernetes' runAsNonRoot cannot tell a name.
USER 65532:65532
EXPOSE 9464
ENTRYPOINT ["/usr/local/bin/tallyhouse"]
CMD ["run"]
