//! Locates a single flipped bit by its effect on a CRC-32C.
//!
//! In scope: where the bit must be if there is exactly one. Out of scope: proving that there is: a
//! matching checksum alone is no proof.

/// Castagnoli's polynomial, reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// The effect of eight zero bits on a remainder, by its lowest byte.
const CRC_TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte: u32 = 0;
    while byte < 256 {
        let (mut value, mut bit) = (byte, 0);
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ POLYNOMIAL } else { value >> 1 };
            bit += 1;
        }
        table[byte as usize] = value;
        byte += 1;
    }
    table
}

/// Flips the one bit that explains why these bytes have checksum `found` instead of `written`;
/// returns the byte that it is in. The checksum may also cover other bytes before these.
pub(super) fn correct(bytes: &mut [u8], found: u32, written: u32) -> Option<usize> {
    let difference = found ^ written;
    if difference == 0 {
        return None;
    }
    // A CRC is affine: the difference is the remainder that the flipped bit alone would leave.
    let mut bits: [u32; 8] = std::array::from_fn(|bit| 1 << bit);
    for place in (0..bytes.len()).rev() {
        for (bit, remainder) in bits.iter_mut().enumerate() {
            *remainder = (*remainder >> 8) ^ CRC_TABLE[(*remainder & 0xff) as usize];
            if *remainder == difference {
                bytes[place] ^= 1 << bit;
                return Some(place);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn single_bit_flip_is_located_and_double_is_not() {
        let whole: Vec<u8> = (0..5_000_u32).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect();
        let written = crc32c::crc32c(&whole);
        for bit in (0..whole.len() * 8).step_by(131).chain([0, whole.len() * 8 - 1]) {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let found = crc32c::crc32c(&bytes);
            assert_eq!(correct(&mut bytes, found, written), Some(bit / 8));
            assert_eq!(bytes, whole);
            bytes[17] ^= 1;
            bytes[bit / 8] ^= 2;
            let found = crc32c::crc32c(&bytes);
            assert_eq!(correct(&mut bytes, found, written), None);
        }
    }
}
