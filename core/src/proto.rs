//! Generated messages of `proto/barid/v1`. [`crate::json`] implements their JSON mapping.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::semicolon_if_nothing_returned)]
#![allow(clippy::cast_possible_truncation, clippy::needless_pass_by_value, clippy::redundant_closure_for_method_calls)]
#![allow(
    clippy::uninlined_format_args,
    clippy::explicit_iter_loop,
    clippy::implicit_clone,
    clippy::cloned_instead_of_copied
)]

include!(concat!(env!("OUT_DIR"), "/barid.v1.rs"));

/// Implements the JSON mapping for messages; `build.rs` lists all of them.
macro_rules! json {
    ($($message:ident),+) => {
        $(
            impl serde::Serialize for $message {
                fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    crate::json::write(self, concat!("barid.v1.", stringify!($message)), serializer)
                }
            }

            impl<'de> serde::Deserialize<'de> for $message {
                fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    crate::json::read(concat!("barid.v1.", stringify!($message)), deserializer)
                }
            }
        )+
    };
}

include!(concat!(env!("OUT_DIR"), "/messages.json.rs"));
