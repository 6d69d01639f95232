//! The program `barid`: node and command line.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    barid::cli::main()
}
