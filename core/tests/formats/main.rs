//! The formats of core, from outside: golden files, evidence and those who forge it, and a checker that knows nothing of core.
#![allow(clippy::unwrap_used)]

mod documents;
mod evidence;
mod fixture;
mod golden;
mod mutated;
mod tlog_proof_independent;
