//! Evidence files. The file has exactly one encoding, and without the keys nobody can make evidence
//! of anything else.

use barid_core::envelope;
use barid_core::evidence::{EvidenceParts, Outcome, verify};
use barid_core::feed::tlog_proof::TlogProof;
use bytes::Bytes;

use super::{chain, choice, golden};

pub fn check(data: &[u8]) {
    let Some((chosen, rest)) = choice(data) else { return };
    if chosen % 2 == 0 {
        return file(rest);
    }
    // The archive is rebuilt with altered parts, so that its checksums are valid.
    let mut parts = EvidenceParts::read(&golden("evidence.barid")).unwrap();
    let mut rest = rest;
    while let [what, which, tail @ ..] = rest {
        let used = alter(&mut parts, *what, usize::from(*which), tail);
        rest = tail.get(used..).unwrap_or_default();
    }
    if let Ok(bytes) = parts.to_bytes() {
        file(&bytes);
    }
}

fn file(file: &[u8]) {
    let read = EvidenceParts::read(file);
    if let Ok(parts) = &read {
        assert_eq!(parts.to_bytes().as_deref(), Ok(file), "evidence has one encoding");
    }
    let honest = EvidenceParts::read(&golden("evidence.barid")).unwrap();
    for version in [1, 2] {
        let verdict = verify(file, chain().at(version).unwrap());
        assert_eq!(verdict.report.is_none(), matches!(verdict.outcome, Outcome::Invalid(_)));
        let Some(report) = verdict.report else { continue };
        let parts = read.as_ref().unwrap();
        assert_eq!(report.digest, envelope::digest(&parts.envelope));
        assert_eq!(parts.envelope, honest.envelope, "no other bulletin was signed");
        assert!(!matches!(verdict.outcome, Outcome::Disputed(_)), "nothing disputes it");
        assert_eq!(verdict.outcome == Outcome::Witnessed, report.counted >= report.quorum);
    }
}

/// Changes one part as the data selects; returns the number of data bytes used.
fn alter(parts: &mut EvidenceParts, what: u8, which: usize, data: &[u8]) -> usize {
    fn remove<T>(items: &mut Vec<T>, which: usize) {
        if !items.is_empty() {
            items.remove(which % items.len());
        }
    }
    fn at<T>(items: &mut [T], which: usize) -> Option<&mut T> {
        let len = items.len();
        items.get_mut(which.checked_rem(len)?)
    }
    match what % 12 {
        0 => remove(&mut parts.proofs, which),
        1 => remove(&mut parts.custody, which),
        2 => remove(&mut parts.rosters, which),
        3 => remove(&mut parts.consistency, which),
        4 => patch(&mut parts.envelope, data),
        5 => at(&mut parts.custody, which).into_iter().for_each(|(_, note)| patch(note, data)),
        6 => at(&mut parts.rosters, which).into_iter().for_each(|(_, note)| patch(note, data)),
        7 => at(&mut parts.proofs, which).into_iter().for_each(|proof| patch(&mut proof.checkpoint, data)),
        8 => {
            if let Some(proof) = at(&mut parts.proofs, which) {
                let mut bytes: Bytes = proof.format().into();
                patch(&mut bytes, data);
                if let Ok(altered) = TlogProof::parse(&bytes) {
                    *proof = altered;
                }
            }
        }
        9 => {
            if let Some(tie) = at(&mut parts.consistency, which) {
                let step = u64::from(data.first().copied().unwrap_or(1));
                (tie.old, tie.new) =
                    if which.is_multiple_of(2) { (tie.old + step, tie.new) } else { (tie.old, tie.new + step) };
            }
        }
        10 => at(&mut parts.rosters, which).into_iter().for_each(|(version, _)| *version += 1),
        _ => parts.proofs.reverse(),
    }
    if matches!(what % 12, 4..=8) { 3 } else { 1 }
}

/// Patches one byte: two bytes of data are the position, the third is the value.
fn patch(bytes: &mut Bytes, data: &[u8]) {
    let [high, low, value, ..] = data else { return };
    let at = usize::from(u16::from_be_bytes([*high, *low]));
    let mut changed = bytes.to_vec();
    if changed.is_empty() {
        return;
    }
    let at = at % changed.len();
    match value {
        0 => drop(changed.remove(at)),
        value => changed[at] ^= value,
    }
    *bytes = changed.into();
}

pub fn seeds() -> Vec<Vec<u8>> {
    let file = golden("evidence.barid");
    let mut seeds = vec![[&[0], file.as_slice()].concat()];
    seeds.extend((0..12).map(|what| vec![1, what, 0, 0, 9, 4, what + 1, 1, 0, 200, 1]));
    seeds
}
