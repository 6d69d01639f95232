//! Random numbers for ids and salts. A node needs thousands in a second.
//!
//! In scope: one system call for many numbers. Out of scope: keys, which use the system's generator
//! directly.

use std::cell::RefCell;

const BYTES: usize = 2_048;

thread_local! {
    /// Unused random bytes and their number; used bytes are overwritten.
    static BUFFER: RefCell<([u8; BYTES], usize)> = const { RefCell::new(([0; BYTES], 0)) };
}

/// Returns `N` random bytes, at most 2,048.
///
/// # Errors
/// If the system cannot provide randomness.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    const { assert!(N <= BYTES) }
    BUFFER.with_borrow_mut(|(buffer, remaining)| {
        if *remaining < N {
            getrandom::fill(buffer)?;
            *remaining = BYTES;
        }
        let mut output = [0; N];
        for (to, from) in output.iter_mut().zip(buffer.iter_mut().take(*remaining).rev()) {
            *to = std::mem::take(from);
        }
        *remaining -= N;
        Ok(output)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn bytes_are_never_repeated() {
        let all: BTreeSet<[u8; 26]> = (0..10_000).map(|_| bytes().unwrap()).collect();
        assert_eq!(all.len(), 10_000);
        assert!(bytes::<BYTES>().unwrap().iter().any(|byte| *byte != 0));
    }
}
