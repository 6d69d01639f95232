//! Fuzz targets for `barid-core`: properties that must hold for any bytes from a network or a disk.
//!
//! In scope: the checks ([`targets`]), which core's own tests also run on the seeds and on
//! mutations of them. Out of scope: the commit log, whose check is in `barid::store::fuzzing`.

#[allow(dead_code)]
#[path = "../../core/tests/formats/fixture.rs"]
mod fixture;
pub mod targets;
