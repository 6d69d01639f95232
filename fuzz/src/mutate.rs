//! Seeded mutations of bytes, for tests of decoders without a fuzzer.

/// A generator of mutations; equal seeds give equal mutations.
pub struct Mutator(u64);

impl Mutator {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Returns a number below `bound`, which must not be 0 (xorshift64*).
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let mixed = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(mixed).unwrap_or_default() % bound
    }

    /// Returns `bytes` with one to four changes; some insert bytes of `other`.
    pub fn mutate(&mut self, bytes: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            let end = (at + 1 + self.below(16)).min(bytes.len());
            let value = u8::try_from(self.below(256)).unwrap_or_default();
            match self.below(8) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, value),
                2 if at < bytes.len() => bytes[at] = value,
                3 if at < bytes.len() => bytes[at] ^= 1 << (value % 8),
                4 if at < end => drop(bytes.drain(at..end)),
                5 if at < end => {
                    let repeated = bytes[at..end].to_vec();
                    bytes.splice(at..at, repeated);
                }
                6 if !other.is_empty() => {
                    let from = self.below(other.len());
                    let to = (from + 1 + self.below(64)).min(other.len());
                    bytes.splice(at..end.max(at), other[from..to].iter().copied());
                }
                // Boundary values of lengths, counts and numbers.
                _ if at < bytes.len() => bytes[at] = [0, 0x7f, 0x80, 0xff, b'0', b'9', b'\n'][usize::from(value % 7)],
                _ => {}
            }
        }
        bytes
    }
}
