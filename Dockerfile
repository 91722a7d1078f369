# The daemon as an image: `docker build --tag longshore .`

FROM rust:1.95.0-bookworm AS builder
# The image holds this toolchain already; rust-toolchain.toml would have the lints' components downloaded as well.
ENV RUSTUP_TOOLCHAIN=1.95.0 CARGO_TERM_COLOR=never
WORKDIR /source
COPY . .
# The caches outlive a build: only what changed is compiled again. The binary has to leave them to get into the image.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target,sharing=locked \
    cargo build --release --locked --bin longshore \
    && install -D --mode 755 target/release/longshore /image/longshore

FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="longshore" \
    org.opencontainers.image.description="A self-hosted daemon that carries files, batches and fine-tuning jobs to every LLM provider, once" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.base.name="debian:bookworm-slim"
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 longshore \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin longshore \
    && install -d --owner 10001 --group 10001 --mode 750 /data
COPY --from=builder /image/longshore /usr/local/bin/longshore

# The number rather than the name, so that an orchestrator can tell that it is not root.
USER 10001:10001
# The defaults keep the database and the blobs in `data/` of the working directory, which makes it /data. Nothing else
# is written but temporary files, so the root file system can be mounted read-only. A configuration file is read from
# /longshore.toml.
WORKDIR /
VOLUME /data
# Inside a container loopback is reachable by nobody. A listen address like this one asks for a key to be configured.
ENV LONGSHORE__SERVER__LISTEN=0.0.0.0:4700
EXPOSE 4700
# SIGTERM lets running work finish for `workers.drain`, 25 s by default; give `docker stop` more than that.
STOPSIGNAL SIGTERM
# Bash opens the connection by itself, so no HTTP client has to be in the image. `longshore work` listens only where
# `workers.listen` says: give it a check of that, as docker-compose.yml does, or `--no-healthcheck`.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["/bin/bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/4700 && printf 'GET /healthz HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3 && read -r status <&3 && [[ $status == 'HTTP/1.1 200'* ]]"]
ENTRYPOINT ["longshore"]
CMD ["up"]
