//! Tests with the real binary, real files and real mutual TLS.
#![allow(clippy::unwrap_used)]

mod attacks;
mod bench;
mod bit_flips;
mod certificates;
mod containers;
mod damage;
mod demo;
mod emergency;
mod entry_equivocation;
mod evidence;
mod faulty_disk;
mod four_members;
mod kill;
mod low_bandwidth;
mod metrics;
mod overload;
mod package;
mod partitions;
mod power;
mod priority;
mod publishers;
mod recover;
mod relays;
mod rosters;
mod runbooks;
mod start;
mod transport;
mod wait_for;
mod world;
