//! `seeds FOLDER`: writes the seed corpus of each target into a subfolder of its own.

use std::fs;
use std::path::Path;

fn main() -> std::io::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "corpus".to_owned());
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let log = fs::read(golden.join("store/log-1/0000000001.log"))?;
    let record = ("record", records(&log));
    let others = barid_fuzz::targets::ALL.map(|target| (target.name, (target.seeds)()));
    for (name, seeds) in others.into_iter().chain([record]) {
        let folder = Path::new(&folder).join(name);
        fs::create_dir_all(&folder)?;
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(folder.join(format!("seed-{number}")), seed)?;
        }
    }
    Ok(())
}

/// Returns the seeds of the log target in its three forms: the whole file, each record as head and
/// body, and all heads in sequence.
fn records(log: &[u8]) -> Vec<Vec<u8>> {
    let mut seeds = vec![[&[0], log].concat(), [&[3], log].concat()];
    let mut heads = Vec::new();
    // Records begin after a block of 4,096 bytes. Each has a frame of 24 bytes: magic, head length,
    // body length, checksum.
    let mut rest = log.get(4_096..).unwrap_or_default();
    while let [b'B', b'R', b'D', 1, tail @ ..] = rest
        && let Some((head_len, tail)) = tail.split_first_chunk()
        && let Some(body_len) = tail.first_chunk()
    {
        let head_len = u32::from_le_bytes(*head_len) as usize;
        let body_len = usize::try_from(u64::from_le_bytes(*body_len)).unwrap_or(usize::MAX);
        let len = u16::try_from(head_len).unwrap_or_default().to_le_bytes();
        let (head, after) = rest[24..].split_at(head_len);
        seeds.push([&[1], &len[..], head, &after[..body_len]].concat());
        heads.extend([&len[..], head].concat());
        rest = rest.get((24 + head_len + body_len).next_multiple_of(8)..).unwrap_or_default();
    }
    seeds.extend([2, 5].map(|chosen| [&[chosen], heads.as_slice()].concat()));
    seeds
}
