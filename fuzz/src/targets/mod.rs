//! The fuzz targets, one module for each decoder. Each has `check`, which panics if a property does
//! not hold for the given bytes, and `seeds`.
//!
//! Mutated bytes never have a valid signature. So a check also uses the bytes with a signature,
//! checksum or root that is computed for them.

pub mod draft;
pub mod envelope;
pub mod equivocation;
pub mod evidence;
pub mod frame;
pub mod header;
pub mod note;
pub mod proof;
pub mod roster;

use std::sync::OnceLock;

use barid_core::roster::RosterChain;

use crate::fixture;

/// A target.
pub struct Target {
    pub name: &'static str,
    pub check: fn(&[u8]),
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets of this crate.
pub const ALL: [Target; 9] = [
    Target { name: "envelope", check: envelope::check, seeds: envelope::seeds },
    Target { name: "header", check: header::check, seeds: header::seeds },
    Target { name: "draft", check: draft::check, seeds: draft::seeds },
    Target { name: "note", check: note::check, seeds: note::seeds },
    Target { name: "proof", check: proof::check, seeds: proof::seeds },
    Target { name: "roster", check: roster::check, seeds: roster::seeds },
    Target { name: "frame", check: frame::check, seeds: frame::seeds },
    Target { name: "evidence", check: evidence::check, seeds: evidence::seeds },
    Target { name: "equivocation", check: equivocation::check, seeds: equivocation::seeds },
];

/// Reads a committed file of one format.
fn golden(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The roster chain of the fixture, versions 1 and 2.
fn chain() -> &'static RosterChain {
    static CHAIN: OnceLock<RosterChain> = OnceLock::new();
    CHAIN.get_or_init(|| {
        let mut chain = RosterChain::start(&fixture::roster_1()).unwrap();
        chain.extend(&fixture::roster_2()).unwrap();
        chain
    })
}

/// Splits off the first byte, which selects a case.
fn choice(data: &[u8]) -> Option<(u8, &[u8])> {
    data.split_first().map(|(first, rest)| (*first, rest))
}
