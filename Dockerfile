# The image holds one statically linked program and nothing else: no shell, no libraries, no package manager.
#
#   docker build -t barid .     compiles in a public base, given as --build-arg BUILDER=…
#   docker/build                compiles with this machine's toolchain: needs no image registry

ARG BUILDER=docker.io/library/rust:1-bookworm

# What all images are. `docker/build` puts the program into docker/image/bin and stops here; otherwise that folder is not there.
FROM scratch AS prebuilt
COPY --chown=65532:65532 docker/image/ /
USER 65532:65532
# A new volume that is mounted here belongs to the user above.
WORKDIR /var/lib/barid
EXPOSE 7400 7401
ENTRYPOINT ["/bin/barid"]
CMD ["node"]

FROM ${BUILDER} AS compiled
WORKDIR /src
COPY . .
# .cargo/config.toml leaves the third source of random numbers out, for tests.
ENV AWS_LC_SYS_NO_JITTER_ENTROPY=0
# The flag goes to the last link only: the libraries are those of any other build.
RUN cargo rustc --profile dist --locked --bin barid -- -C target-feature=+crt-static -C strip=symbols

FROM prebuilt
COPY --from=compiled /src/target/dist/barid /bin/barid
