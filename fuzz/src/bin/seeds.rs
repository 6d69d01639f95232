//! `seeds FOLDER`: writes the seeds of every target into a folder of its own there.

use std::fs;
use std::path::Path;

fn main() -> std::io::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "corpus".to_owned());
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let log = fs::read(golden.join("store/log-1/0000000001.log"))?;
    let record = ("record", vec![[&[0], log.as_slice()].concat()]);
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
