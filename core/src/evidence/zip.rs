//! ZIP archives in the canonical form of an evidence file. Every ZIP tool opens them, and a given
//! list of parts has exactly one encoding.
//!
//! In scope: writing an archive, and reading exactly the archives that writing produces. Out of
//! scope: compression, encryption, ZIP64, extra fields, comments and times. They are never written,
//! and an archive with any of them is rejected. Layout: PKWARE APPNOTE 6.3, §4.3.

use bytes::{BufMut, Bytes};

use crate::limits::{EVIDENCE_BYTES_MAX, EVIDENCE_PARTS_MAX};

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const LOCAL_BYTES: usize = 30;
/// Version needed to extract: 1.0.
const VERSION: u16 = 10;
/// 1980-01-01, the earliest date in the ZIP format. The times of evidence are in its signatures.
const DATE: u16 = 0x0021;

/// One file in the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its path, in ASCII, with `/` between folders.
    pub name: String,
    /// Its bytes.
    pub data: Bytes,
}

/// Bytes that are not an archive in canonical form, or parts that cannot be in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZipError {
    /// More than [`EVIDENCE_BYTES_MAX`].
    #[error("the file has {0} bytes, at most {EVIDENCE_BYTES_MAX} are read")]
    TooLarge(usize),
    /// More than [`EVIDENCE_PARTS_MAX`].
    #[error("the file has more than {EVIDENCE_PARTS_MAX} parts")]
    TooMany,
    /// A name that is empty, too long or not plain ASCII.
    #[error("the file has a part without a plain name")]
    Name,
    /// Not the encoding of its parts.
    #[error("the file is not a ZIP archive in the form of evidence: it is damaged, altered or cut")]
    Form,
}

/// Encodes the parts in the given order.
///
/// # Errors
/// [`ZipError`] if they are too large or too many.
pub fn write(parts: &[Part]) -> Result<Vec<u8>, ZipError> {
    if parts.len() > EVIDENCE_PARTS_MAX {
        return Err(ZipError::TooMany);
    }
    let total = parts.iter().map(|part| part.data.len() + 2 * part.name.len() + 76).sum::<usize>() + 22;
    if total > EVIDENCE_BYTES_MAX {
        return Err(ZipError::TooLarge(total));
    }
    let mut out = Vec::with_capacity(total);
    let mut directory = Vec::new();
    for part in parts {
        let byte_offset = number(out.len())?;
        out.put_u32_le(LOCAL);
        put_fields(&mut out, part)?;
        directory.put_u32_le(CENTRAL);
        directory.put_u16_le(VERSION);
        put_fields(&mut directory, part)?;
        // Comment length, disk, internal and external attributes.
        directory.put_bytes(0, 2 + 2 + 2 + 4);
        directory.put_u32_le(byte_offset);
        for place in [&mut out, &mut directory] {
            place.put_slice(part.name.as_bytes());
        }
        out.put_slice(&part.data);
    }
    let (count, start) = (u16::try_from(parts.len()).map_err(|_| ZipError::TooMany)?, number(out.len())?);
    out.put_slice(&directory);
    out.put_u32_le(END);
    out.put_u32_le(0);
    out.put_u16_le(count);
    out.put_u16_le(count);
    out.put_u32_le(number(directory.len())?);
    out.put_u32_le(start);
    out.put_u16_le(0);
    Ok(out)
}

/// Parses an archive. For every archive accepted here, [`write`] returns the same bytes. The parts
/// share `file`'s memory.
///
/// # Errors
/// [`ZipError`] for anything else.
pub fn read(file: &Bytes) -> Result<Vec<Part>, ZipError> {
    if file.len() > EVIDENCE_BYTES_MAX {
        return Err(ZipError::TooLarge(file.len()));
    }
    let mut parts = Vec::new();
    let mut at = 0;
    while u32_at(file, at) == Some(LOCAL) {
        if parts.len() == EVIDENCE_PARTS_MAX {
            return Err(ZipError::TooMany);
        }
        let size = u32_at(file, at + 18).and_then(|size| usize::try_from(size).ok()).ok_or(ZipError::Form)?;
        let name_length = file.get(at + 26..at + 28).map_or(0, |two| usize::from(two[0]) | usize::from(two[1]) << 8);
        let name_at = at + LOCAL_BYTES;
        let data_at = name_at + name_length;
        let end = data_at.checked_add(size).filter(|end| *end <= file.len()).ok_or(ZipError::Form)?;
        let name = std::str::from_utf8(&file[name_at..data_at]).map_err(|_| ZipError::Name)?;
        parts.push(Part { name: name.to_owned(), data: file.slice(data_at..end) });
        at = end;
    }
    if write(&parts)? == *file { Ok(parts) } else { Err(ZipError::Form) }
}

/// Appends the fields that a local header and a directory entry share: version, flags, method,
/// time, date, CRC, sizes and lengths.
fn put_fields(out: &mut Vec<u8>, part: &Part) -> Result<(), ZipError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
    let name_length = u16::try_from(part.name.len()).ok().filter(|length| *length > 0).ok_or(ZipError::Name)?;
    if !part.name.bytes().all(plain) || part.name.starts_with('/') || part.name.contains("..") {
        return Err(ZipError::Name);
    }
    out.put_u16_le(VERSION);
    out.put_u16_le(0);
    out.put_u16_le(0);
    out.put_u16_le(0);
    out.put_u16_le(DATE);
    out.put_u32_le(crc32fast::hash(&part.data));
    let size = number(part.data.len())?;
    out.put_u32_le(size);
    out.put_u32_le(size);
    out.put_u16_le(name_length);
    out.put_u16_le(0);
    Ok(())
}

fn number(value: usize) -> Result<u32, ZipError> {
    u32::try_from(value).map_err(|_| ZipError::TooLarge(value))
}

fn u32_at(file: &[u8], at: usize) -> Option<u32> {
    let four = file.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(four.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn part(name: &str, data: &'static [u8]) -> Part {
        Part { name: name.to_owned(), data: Bytes::from_static(data) }
    }

    #[test]
    fn archive_is_compatible_with_other_tools() {
        // The output of Python's zipfile, except for the file attributes.
        let expected = "504b03040a00000000000000210086a61036050000000500000005000000612e74787468656c6c6f\
            504b01020a000a00000000000000210086a610360500000005000000050000000000000000000000000000000000612e747874\
            504b0506000000000100010033000000280000000000";
        let written = write(&[part("a.txt", b"hello")]).unwrap();
        assert_eq!(hex::encode(&written), expected);
        assert_eq!(read(&written.into()).unwrap(), [part("a.txt", b"hello")]);
    }

    #[test]
    fn only_the_canonical_archive_form_is_read() {
        let written = write(&[part("a.txt", b"hello"), part("b/c", b"")]).unwrap();
        for at in 0..written.len() {
            for bit in 0..8 {
                let mut altered = written.clone();
                altered[at] ^= 1 << bit;
                assert!(read(&altered.into()).is_err(), "byte {at}, bit {bit}");
            }
            assert!(read(&written[..at].to_vec().into()).is_err(), "cut at {at}");
        }
        assert!(read(&[&written[..], b"x"].concat().into()).is_err());
        assert_eq!(write(&[part("", b"")]), Err(ZipError::Name));
        assert_eq!(write(&[part("../a", b"")]), Err(ZipError::Name));
        assert_eq!(write(&vec![part("a", b""); EVIDENCE_PARTS_MAX + 1]), Err(ZipError::TooMany));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(tail in prop::collection::vec(any::<u8>(), 0..80)) {
            prop_assert!(read(&[&LOCAL.to_le_bytes()[..], &tail].concat().into()).is_err());
        }
    }
}
