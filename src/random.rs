//! Random numbers for ids and salts, some thousand of which are made a second.
//!
//! In scope: one call of the system for many of them. Out of scope: keys, which are made of the system's own.

use std::cell::RefCell;

const BYTES: usize = 2_048;

thread_local! {
    /// What is left of what the system gave; what was used is overwritten.
    static BUFFER: RefCell<([u8; BYTES], usize)> = const { RefCell::new(([0; BYTES], 0)) };
}

/// `N` random bytes, at most 2,048.
///
/// # Errors
/// If the system has none.
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
