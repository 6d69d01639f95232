//! Tests of calls on an in-memory node, without TLS.
#![allow(clippy::unwrap_used)]

mod budgets;
mod cursors;
mod exporting;
mod faults;
mod mounted_services;
mod names;
mod publishing;
mod reading;
mod restored_stores;
mod states;
mod subscribing;
mod world;
