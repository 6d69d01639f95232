//! Calls on a node in memory, without TLS.
#![allow(clippy::unwrap_used)]

mod budgets;
mod cursors;
mod exporting;
mod faults;
mod histories;
mod names;
mod publishing;
mod reading;
mod served;
mod states;
mod subscribing;
mod world;
