//! What became of a bulletin.
