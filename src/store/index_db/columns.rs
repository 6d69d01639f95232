//! Blocks of header columns: the header fields of each entry that filters need.
//!
//! In scope: encoding and decoding one block. After the version: first offset (u64), number of
//! entries (u16), number of distinct headers (u16), each distinct header as four texts with their
//! lengths (u8), then for each entry the number of its header (u16) and `sent_at` (u64).

use std::collections::HashMap;

use barid_core::proto;

use crate::store::keys::{Fields, VALUE_BYTES_MAX, Value};
use crate::store::{Columns, validate};

type Texts<'a> = [&'a str; 4];

/// Collects entries with consecutive offsets into blocks.
#[derive(Default)]
pub(in crate::store) struct Builder<'a> {
    first: u64,
    texts: Vec<Texts<'a>>,
    numbers: HashMap<Texts<'a>, u16>,
    entries: Vec<(u16, i64)>,
    bytes: usize,
    blocks: Vec<(u64, Vec<u8>)>,
}

impl<'a> Builder<'a> {
    /// Adds the entry with the next offset.
    pub(in crate::store) fn push(&mut self, offset: u64, header: Option<&'a proto::Header>) {
        let texts = header.map_or([""; 4], |header| {
            [&header.member, &header.topic, &header.kind, &header.severity].map(|text| validate::clip(text))
        });
        let size = texts.iter().map(|text| text.len() + 1).sum::<usize>() + 10;
        if self.bytes + size > VALUE_BYTES_MAX - 64 {
            self.end_block();
        }
        if self.entries.is_empty() {
            self.first = offset;
        }
        let number = *self.numbers.entry(texts).or_insert_with(|| {
            self.texts.push(texts);
            self.bytes += size - 10;
            u16::try_from(self.texts.len() - 1).unwrap_or(u16::MAX)
        });
        self.entries.push((number, header.map_or(0, validate::sent_at_unix_ms)));
        self.bytes += 10;
    }

    fn end_block(&mut self) {
        if self.entries.is_empty() {
            return;
        }
        let len = |len: usize| u16::try_from(len).unwrap_or(u16::MAX).to_le_bytes();
        let mut value = Value::new().u64(self.first).raw(&len(self.entries.len())).raw(&len(self.texts.len()));
        for text in self.texts.iter().flatten() {
            value = value.u8(u8::try_from(text.len()).unwrap_or(u8::MAX)).raw(text.as_bytes());
        }
        for (number, sent_at) in &self.entries {
            value = value.raw(&number.to_le_bytes()).raw(&sent_at.to_le_bytes());
        }
        self.blocks.push((self.first, value.bytes()));
        self.texts.clear();
        self.numbers.clear();
        self.entries.clear();
        self.bytes = 0;
    }

    /// Returns the blocks, by first offset.
    pub(in crate::store) fn finish(mut self) -> Vec<(u64, Vec<u8>)> {
        self.end_block();
        self.blocks
    }
}

/// Decodes a block: its first offset, and the columns of the entries from there on.
pub(in crate::store) fn decode(block: &[u8]) -> Option<(u64, Vec<Columns>)> {
    let mut fields = Fields::of_value(block)?;
    let (first, entries, texts) = (fields.u64()?, fields.u16()?, fields.u16()?);
    let mut distinct = Vec::with_capacity(usize::from(texts));
    for _ in 0..texts {
        let mut text = || {
            let len = usize::from(fields.u8()?);
            fields.text(len).map(str::to_string)
        };
        let (member, topic, kind, severity) = (text()?, text()?, text()?, text()?);
        distinct.push(Columns { member, topic, kind, severity, sent_at_unix_ms: 0 });
    }
    let mut columns = Vec::with_capacity(usize::from(entries));
    for _ in 0..entries {
        let texts = distinct.get(usize::from(fields.u16()?))?;
        columns.push(Columns { sent_at_unix_ms: i64::from_le_bytes(fields.array()?), ..texts.clone() });
    }
    Some((first, columns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_blocks_round_trip_within_size_limit() {
        let header = |n: u64| proto::Header {
            member: "ma".into(),
            topic: if n < 500 { "customs.seizures".into() } else { format!("customs.{n}.{}", "x".repeat(200)) },
            ..proto::Header::default()
        };
        let headers: Vec<_> = (0..1_000).map(header).collect();
        let mut builder = Builder::default();
        for (offset, header) in (7..).zip(&headers) {
            builder.push(offset, (offset != 9).then_some(header));
        }
        let blocks = builder.finish();
        assert!(blocks.len() > 1 && blocks.iter().all(|(_, block)| block.len() <= VALUE_BYTES_MAX));
        let mut next = 7;
        for (first, block) in blocks {
            let (decoded_first, columns) = decode(&block).expect("a block");
            assert_eq!((first, decoded_first), (next, next));
            for columns in columns {
                let expected = headers.get(usize::try_from(next - 7).expect("small")).filter(|_| next != 9);
                assert_eq!(columns, validate::columns_of(expected));
                next += 1;
            }
        }
        assert_eq!(next, 1_007);
    }
}
