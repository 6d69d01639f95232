//! Fuzz targets over `barid-core`: what must hold for any bytes that come from a network or a disk.
//!
//! In scope: the checks ([`targets`]), which core's own tests run too, on the seeds and on mutations of them. Out of scope: the commit
//! log, whose check stands beside it (`barid::store::fuzzing`).

#[allow(dead_code)]
#[path = "../../core/tests/formats/fixture.rs"]
mod fixture;
pub mod targets;
