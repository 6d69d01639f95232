//! Messages of `proto/barid/v1`, generated. JSON follows the protobuf JSON mapping.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::semicolon_if_nothing_returned)]
#![allow(clippy::cast_possible_truncation, clippy::needless_pass_by_value, clippy::redundant_closure_for_method_calls)]
#![allow(
    clippy::uninlined_format_args,
    clippy::explicit_iter_loop,
    clippy::implicit_clone,
    clippy::cloned_instead_of_copied
)]

include!(concat!(env!("OUT_DIR"), "/barid.v1.rs"));
include!(concat!(env!("OUT_DIR"), "/barid.v1.serde.rs"));
