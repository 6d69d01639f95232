# What is done often. `just` without a name lists it. Nothing here is needed to build: cargo alone does.

set shell := ["bash", "-euo", "pipefail", "-c"]

# List what there is.
default:
    @just --list --unsorted

# All that a change must pass, as continuous integration runs it.
ci:
    .ci/run

# Every test. `just test store::` narrows to names.
test *names:
    cargo test --workspace --locked -- {{names}}

# Formatting and lints, warnings denied.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings

# Licences, known vulnerabilities, sources of dependencies (needs cargo-deny and the network).
deny:
    cargo deny --locked check

# Four members on this machine run the main scenario.
demo *options:
    cargo run --release --locked -- demo {{options}}

# Two nodes on loopback, one metric a line, with the program that is handed out.
bench *options:
    "$(dist/program)" bench {{options}}

# The Debian package, into target/debian: docs/adr/packages-and-profiles.md.
package *options:
    dist/deb {{options}}

# The container image `barid`: docs/containers.md.
image *options:
    docker/build {{options}}

# Seeds of the simulator from `first` on, in release: `just sim-long 10000`.
sim-long seeds="2000" first="0":
    cargo run --release --locked -p barid-sim -- {{seeds}} {{first}}

# Every fuzz target (or those named) for so many seconds, one after the other (needs cargo-fuzz): docs/testing.md.
fuzz seconds="60" *targets:
    fuzz/run {{seconds}} {{targets}}

# Nodes killed at random moments under load, for so many rounds: docs/testing.md.
kill rounds="60":
    BARID_KILL_ROUNDS={{rounds}} cargo test --locked -p barid --test black_box kill -- --nocapture

# The power fails at so many instants under load (needs strace): docs/testing.md.
power cuts="1000":
    BARID_POWER_CUTS={{cuts}} cargo test --locked -p barid --test black_box power -- --nocapture

# A bad disk at one of five nodes that hold so many entries: docs/testing.md.
bit_flips entries="1000000":
    cargo build --release --locked
    BARID_BIN="$PWD/target/release/barid" BARID_FLIP_ENTRIES={{entries}} cargo test --locked -p barid --test black_box bit_flips -- --nocapture

# Write the outputs of commands and the table of budgets that the documents contain.
docs:
    BARID_WRITE_DOCS=1 cargo test --locked -p barid --lib budgets::
    BARID_WRITE_DOCS=1 cargo test --locked -p barid --test black_box runbooks

# Write golden files: for a format that was never released, or a new one beside the old. Read the difference before you commit it.
golden:
    BARID_WRITE_GOLDEN=1 cargo test --locked -p barid-core --test formats golden
    BARID_WRITE_GOLDEN=1 cargo test --locked -p barid --lib store::golden_tests
