//! The real binary, real files, real mutual TLS.
#![allow(clippy::unwrap_used)]

mod attacks;
mod bench;
mod certificates;
mod containers;
mod damage;
mod demo;
mod emergency;
mod evidence;
mod express;
mod faulty_disk;
mod flipped;
mod four_members;
mod kill;
mod metrics;
mod overload;
mod partitions;
mod power;
mod publishers;
mod recover;
mod relays;
mod rosters;
mod start;
mod thin_line;
mod transport;
mod two_entries;
mod waiting;
mod world;
