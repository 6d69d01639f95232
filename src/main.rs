//! The program `barid`: node and command line.
#![forbid(unsafe_code)]

/// One call makes about a hundred small allocations on several threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    barid::cli::main()
}
