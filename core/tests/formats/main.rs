//! Tests of core's formats through its public interface: golden files, evidence and forged
//! evidence, and an independent checker.
#![allow(clippy::unwrap_used)]

mod documents;
mod evidence;
mod fixture;
mod golden;
mod mutated;
mod tlog_proof_independent;
