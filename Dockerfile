# The image of controller and workers: one static binary, and nothing else. It brings its own
# certificate authorities, and runs as nobody, with a read-only root.
#
#   scripts/image    builds it with docker, podman or buildah, also where no base image can be had
#
# Linked with glibc, as on every other Linux: it is what the tests and the benchmarks run, its
# allocator is made for many threads, where musl's is slow, and its resolver knows the search domains
# of Kubernetes. It needs no file of its own for that.

# compiles for every platform without emulation
FROM --platform=$BUILDPLATFORM docker.io/library/rust:1.95.0-slim-bookworm AS build
ARG BUILDARCH
ARG TARGETARCH
WORKDIR /src
RUN case $TARGETARCH in \
        amd64) triple=x86_64-unknown-linux-gnu ;; \
        arm64) triple=aarch64-unknown-linux-gnu ;; \
        *) echo "no image for $TARGETARCH" >&2; exit 1 ;; \
    esac; \
    echo $triple >/triple; \
    [ $TARGETARCH = $BUILDARCH ] && exit; \
    rustup target add $triple && \
    apt-get update -q && \
    apt-get install -qy --no-install-recommends crossbuild-essential-$TARGETARCH && \
    rm -rf /var/lib/apt/lists/*
COPY . .
# what --version tells; there is no .git here
ARG COMMIT
# dependencies stay compiled from one build to the next
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
           CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc \
           OSSVP_COMMIT=$COMMIT && \
    cp "$(scripts/static ossvp --release --target $(cat /triple))" /ossvp

FROM scratch
ARG VERSION
ARG COMMIT
LABEL org.opencontainers.image.title="ossvp" \
      org.opencontainers.image.description="Fills a new Kubernetes volume with the objects of an Alibaba Cloud OSS prefix" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$COMMIT"
COPY --from=build /ossvp /ossvp
USER 65532:65532
ENTRYPOINT ["/ossvp"]
