//! Possible contents of a node's disk after a power failure: everything that was synced, and any
//! part of later changes.
//!
//! In scope: files and folders under one folder, from the system calls of its consecutive
//! processes. The model follows POSIX and not the behaviour of one file system. A sync of a file
//! does not make its name durable; only a sync of its folder does. A sector of 512 bytes is written
//! as a whole, each independently. A new length, name, rename or removal may be lost or preserved
//! independently of all else. `sync_file_range` and the end of a process make nothing durable.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::trace::{Arg, Call, Moment, Trace};
use crate::kill::Random;

/// Size of a disk's atomic write.
const SECTOR: usize = 512;

/// A file or folder, by its place in the list of all that ever existed.
type Inode = usize;

/// The effect of a call on the disk's content.
enum Effect {
    Write {
        file: Inode,
        byte_offset: usize,
        bytes: Arc<[u8]>,
    },
    /// The file's length was set to `len`.
    Length {
        file: Inode,
        len: usize,
    },
    /// The file's length became at least `len`.
    Reserve {
        file: Inode,
        len: usize,
    },
    Link {
        folder: Inode,
        name: String,
        inode: Inode,
    },
    Unlink {
        folder: Inode,
        name: String,
    },
    Rename {
        folder: Inode,
        from: String,
        to: String,
        inode: Inode,
    },
}

impl Effect {
    /// Returns the file or folder whose sync makes this effect durable.
    fn of(&self) -> Inode {
        match self {
            Self::Write { file: inode, .. } | Self::Length { file: inode, .. } | Self::Reserve { file: inode, .. } => {
                *inode
            }
            Self::Link { folder, .. } | Self::Unlink { folder, .. } | Self::Rename { folder, .. } => *folder,
        }
    }
}

/// An effect with its times, in ns since 1970.
struct Logged {
    begun_ns: u64,
    /// When the call returned; `u64::MAX` if the process ended before.
    done_ns: u64,
    effect: Effect,
}

/// A sync: the file or folder became durable as it was when the call began.
struct Sync {
    inode: Inode,
    begun_ns: u64,
    done_ns: u64,
    call: &'static str,
}

/// All effects on one folder.
pub(crate) struct Recording {
    base: PathBuf,
    /// Initial contents, which count as durable. `None`: a folder.
    inodes: Vec<Option<Vec<u8>>>,
    /// Initial names, by folder.
    names: BTreeMap<(Inode, String), Inode>,
    effects: Vec<Logged>,
    syncs: Vec<Sync>,
}

/// Selects the syncs of a recording that count.
pub(crate) type Believed<'a> = &'a dyn Fn(&Synced<'_>) -> bool;

/// A sync, for a test to select.
pub(crate) struct Synced<'a> {
    pub(crate) call: &'static str,
    /// Last path of the file or folder, relative to the recorded folder.
    pub(crate) path: &'a str,
}

/// A process during replay: its descriptors, and names as it sees them.
struct Live<'a> {
    recording: &'a mut Recording,
    names: BTreeMap<(Inode, String), Inode>,
    descriptors: BTreeMap<i64, Inode>,
    positions: BTreeMap<i64, usize>,
}

impl Recording {
    /// Starts with the current contents of `base`.
    pub(crate) fn of(base: &Path) -> Self {
        let mut recording = Self {
            base: base.to_owned(),
            inodes: vec![None],
            names: BTreeMap::new(),
            effects: Vec::new(),
            syncs: Vec::new(),
        };
        recording.read_tree(base, 0);
        recording
    }

    fn read_tree(&mut self, path: &Path, folder: Inode) {
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            let inode = self.inodes.len();
            self.inodes.push(path.is_file().then(|| fs::read(&path).unwrap()));
            self.names.insert((folder, path.file_name().unwrap().to_str().unwrap().to_owned()), inode);
            if path.is_dir() {
                self.read_tree(&path, inode);
            }
        }
    }

    /// Adds the calls of the node's consecutive processes.
    pub(crate) fn follow(&mut self, traces: &[PathBuf]) {
        let mut names = self.names.clone();
        for path in traces {
            let trace = Trace::read(path);
            let (descriptors, positions) = (BTreeMap::new(), BTreeMap::new());
            let mut live = Live { recording: self, names, descriptors, positions };
            let mut begun = BTreeMap::new();
            for seen in &trace.seen {
                let call = &trace.calls[seen.call];
                match seen.moment {
                    Moment::Begun => {
                        begun.insert(seen.call, (seen.at_ns, live.begin(call, seen.at_ns)));
                    }
                    Moment::Done => {
                        let (begun_ns, effects) = begun.remove(&seen.call).unwrap();
                        live.end(call, begun_ns, seen.at_ns, effects);
                    }
                }
            }
            names = live.names;
        }
    }

    /// Returns the times at which an effect or sync began or ended, ascending, in ns since 1970,
    /// and whether it was a sync.
    pub(crate) fn moments(&self) -> Vec<(u64, bool)> {
        let effects = self.effects.iter().flat_map(|logged| [(logged.begun_ns, false), (logged.done_ns, false)]);
        let syncs = self.syncs.iter().flat_map(|sync| [(sync.begun_ns, true), (sync.done_ns, true)]);
        let mut moments: Vec<_> = effects.chain(syncs).filter(|(at, _)| *at != u64::MAX).collect();
        moments.sort_unstable();
        moments
    }

    /// Returns the number of recorded syncs, by call.
    pub(crate) fn syncs(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for sync in &self.syncs {
            *counts.entry(sync.call).or_default() += 1;
        }
        counts
    }

    /// Builds in `target` a possible content of the disk after a power failure just before
    /// `cut_ns`. `random` decides which effects without a sync are included.
    pub(crate) fn build(&self, target: &Path, cut_ns: u64, believed: Believed<'_>, random: &mut Random) {
        let paths = self.paths();
        let mut synced_to: BTreeMap<Inode, u64> = BTreeMap::new();
        for sync in self.syncs.iter().filter(|sync| sync.done_ns < cut_ns) {
            let path = paths.get(&sync.inode).map_or("", String::as_str);
            if believed(&Synced { call: sync.call, path }) {
                let to = synced_to.entry(sync.inode).or_default();
                *to = sync.begun_ns.max(*to);
            }
        }
        let durable = |logged: &Logged| synced_to.get(&logged.effect.of()).is_some_and(|to| logged.done_ns < *to);
        let possible = || self.effects.iter().filter(|logged| logged.begun_ns < cut_ns);
        let habits = Habits::draw(random);

        let mut names = self.names.clone();
        let (mut lengths, mut durable_len) = (BTreeMap::<Inode, Vec<usize>>::new(), BTreeMap::<Inode, usize>::new());
        for logged in possible() {
            let durable = durable(logged);
            let mut grow = |file: Inode, to: &dyn Fn(usize) -> usize| {
                let held = self.inodes[file].as_ref().map_or(0, Vec::len);
                let of_file = lengths.entry(file).or_insert_with(|| vec![held]);
                let len = to(*of_file.last().unwrap());
                of_file.push(len);
                if durable {
                    durable_len.insert(file, of_file.len() - 1);
                }
            };
            match &logged.effect {
                Effect::Write { file, byte_offset, bytes } => grow(*file, &|len| len.max(byte_offset + bytes.len())),
                Effect::Length { file, len } => grow(*file, &|_| *len),
                Effect::Reserve { file, len } => grow(*file, &|before| before.max(*len)),
                Effect::Link { folder, name, inode } => {
                    if durable || habits.persists_name(random) {
                        names.insert((*folder, name.clone()), *inode);
                    }
                }
                Effect::Unlink { folder, name } => {
                    if durable || habits.persists_name(random) {
                        names.remove(&(*folder, name.clone()));
                    }
                }
                Effect::Rename { folder, from, to, inode } => {
                    if durable || habits.persists_name(random) {
                        if names.get(&(*folder, from.clone())) == Some(inode) {
                            names.remove(&(*folder, from.clone()));
                        }
                        names.insert((*folder, to.clone()), *inode);
                    }
                }
            }
        }

        let mut files: BTreeMap<Inode, PathBuf> = BTreeMap::new();
        self.lay_out(&names, 0, target, &mut files);
        let mut contents: BTreeMap<Inode, Vec<u8>> =
            files.keys().map(|file| (*file, self.inodes[*file].clone().unwrap_or_default())).collect();
        for logged in possible() {
            let Effect::Write { file, byte_offset, bytes } = &logged.effect else { continue };
            let Some(content) = contents.get_mut(file) else { continue };
            let whole = durable(logged) || habits.persists_write(random);
            if !whole && !habits.tears(random) {
                continue;
            }
            if content.len() < byte_offset + bytes.len() {
                content.resize(byte_offset + bytes.len(), 0);
            }
            let mut at = 0;
            while at < bytes.len() {
                let len = (SECTOR - (byte_offset + at) % SECTOR).min(bytes.len() - at);
                if whole || habits.persists_sector(random) {
                    content[byte_offset + at..byte_offset + at + len].copy_from_slice(&bytes[at..at + len]);
                }
                at += len;
            }
        }
        for (file, path) in files {
            let mut content = contents.remove(&file).unwrap_or_default();
            if let Some(lengths) = lengths.get(&file) {
                // The last durable length, or any later one.
                let first = durable_len.get(&file).copied().unwrap_or(0);
                let later = lengths.len() - first;
                let drawn = habits.length(random, later);
                content.resize(lengths[first + drawn], 0);
            }
            write_sparse(&path, &content);
        }
    }

    /// Creates the folders, and collects the path of each file.
    fn lay_out(
        &self,
        names: &BTreeMap<(Inode, String), Inode>,
        folder: Inode,
        at: &Path,
        files: &mut BTreeMap<Inode, PathBuf>,
    ) {
        fs::create_dir_all(at).unwrap();
        // Folder permissions are not recorded; a node's folders are readable only by their owner.
        fs::set_permissions(at, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        for ((_, name), inode) in names.range((folder, String::new())..(folder + 1, String::new())) {
            let path = at.join(name);
            if self.inodes[*inode].is_some() {
                files.insert(*inode, path);
            } else {
                self.lay_out(names, *inode, &path, files);
            }
        }
    }

    /// Returns the last path of every file and folder.
    fn paths(&self) -> BTreeMap<Inode, String> {
        let mut parents: BTreeMap<Inode, (Inode, &str)> =
            self.names.iter().map(|((folder, name), inode)| (*inode, (*folder, name.as_str()))).collect();
        for logged in &self.effects {
            if let Effect::Link { folder, name, inode } | Effect::Rename { folder, to: name, inode, .. } =
                &logged.effect
            {
                parents.insert(*inode, (*folder, name));
            }
        }
        let path = |inode: &Inode| {
            let (mut parts, mut at) = (Vec::new(), *inode);
            while let Some((folder, name)) = parents.get(&at) {
                parts.push(*name);
                at = *folder;
            }
            parts.reverse();
            (*inode, parts.join("/"))
        };
        parents.keys().map(path).collect()
    }
}

/// How often effects without a sync survive in one image, in percent.
struct Habits {
    names_percent: u64,
    writes_percent: u64,
    torn_percent: u64,
    sectors_percent: u64,
}

impl Habits {
    fn draw(random: &mut Random) -> Self {
        // None, all, or a random part.
        let mut percent = || match random.below(6) {
            0 | 1 => 0,
            2 => 100,
            _ => 5 + random.below(90),
        };
        Self {
            names_percent: percent(),
            writes_percent: percent(),
            torn_percent: percent(),
            sectors_percent: percent(),
        }
    }

    fn persists_name(&self, random: &mut Random) -> bool {
        random.chance(self.names_percent)
    }

    fn persists_write(&self, random: &mut Random) -> bool {
        random.chance(self.writes_percent)
    }

    fn tears(&self, random: &mut Random) -> bool {
        random.chance(self.torn_percent)
    }

    fn persists_sector(&self, random: &mut Random) -> bool {
        random.chance(self.sectors_percent)
    }

    fn length(&self, random: &mut Random, count: usize) -> usize {
        match self.writes_percent {
            0 => 0,
            100 => count - 1,
            _ => usize::try_from(random.below(count as u64)).unwrap(),
        }
    }
}

fn write_sparse(path: &Path, content: &[u8]) {
    use std::os::unix::fs::FileExt;
    const BLOCK: usize = 64 << 10;
    static ZEROS: [u8; BLOCK] = [0; BLOCK];
    let file = fs::File::create(path).unwrap();
    // As for folders.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    file.set_len(content.len() as u64).unwrap();
    for (block, bytes) in content.chunks(BLOCK).enumerate() {
        if bytes != &ZEROS[..bytes.len()] {
            file.write_all_at(bytes, (block * BLOCK) as u64).unwrap();
        }
    }
}

impl Live<'_> {
    /// Handles the start of a call. Returns the effects that it will have if it succeeds, as far as
    /// they are known already.
    fn begin(&mut self, call: &Call, at_ns: u64) -> Vec<usize> {
        let effect = match call.name.as_str() {
            "close" => {
                // Another thread may get the descriptor's number before this call has ended.
                self.descriptors.remove(&call.number(0));
                None
            }
            "pwrite64" | "pwritev" | "pwritev2" => self.write(call, usize::try_from(call.number(3)).unwrap()),
            "write" | "writev" => {
                let position = self.positions.get(&call.number(0)).copied().unwrap_or(0);
                self.write(call, position)
            }
            _ => None,
        };
        effect.map(|effect| self.log(at_ns, effect)).into_iter().collect()
    }

    fn log(&mut self, begun_ns: u64, effect: Effect) -> usize {
        self.recording.effects.push(Logged { begun_ns, done_ns: u64::MAX, effect });
        self.recording.effects.len() - 1
    }

    fn write(&mut self, call: &Call, byte_offset: usize) -> Option<Effect> {
        let file = *self.descriptors.get(&call.number(0))?;
        Some(Effect::Write { file, byte_offset, bytes: call.bytes(1).into() })
    }

    /// Handles the end of a call.
    fn end(&mut self, call: &Call, begun_ns: u64, done_ns: u64, logged: Vec<usize>) {
        for at in logged {
            self.recording.effects[at].done_ns = done_ns;
            if let Effect::Write { byte_offset, bytes, .. } = &self.recording.effects[at].effect {
                let written = usize::try_from(call.returned.unwrap_or(0)).unwrap();
                let descriptor = call.number(0);
                assert_eq!(written, bytes.len(), "{} to descriptor {descriptor} was cut short: {bytes:?}", call.name);
                self.positions.insert(call.number(0), byte_offset + written);
            }
        }
        let Some(returned) = call.returned else { return };
        let mut effects = Vec::new();
        match call.name.as_str() {
            "openat" => self.open(call, returned, &mut effects),
            // The allocator reads settings of the kernel by it.
            "open" => {
                let path = call.bytes(0);
                assert!(path.starts_with(b"/proc/") || path.starts_with(b"/sys/"), "a node opened {path:?} by open");
                self.descriptors.remove(&returned);
            }
            "lseek" => {
                self.positions.insert(call.number(0), usize::try_from(returned).unwrap());
            }
            "ftruncate" => {
                if let Some(file) = self.descriptors.get(&call.number(0)) {
                    effects.push(Effect::Length { file: *file, len: usize::try_from(call.number(1)).unwrap() });
                }
            }
            "fallocate" => {
                if let Some(file) = self.descriptors.get(&call.number(0)) {
                    assert_eq!(call.number(1), 0, "an unsupported mode of fallocate");
                    let len = usize::try_from(call.number(2) + call.number(3)).unwrap();
                    effects.push(Effect::Reserve { file: *file, len });
                }
            }
            "fsync" | "fdatasync" => {
                if let Some(inode) = self.descriptors.get(&call.number(0)) {
                    let call = if call.name == "fsync" { "fsync" } else { "fdatasync" };
                    self.recording.syncs.push(Sync { inode: *inode, begun_ns, done_ns, call });
                }
            }
            "mkdir" | "mkdirat" => {
                let (at, path) = if call.name == "mkdir" { (None, 0) } else { (call.args.first(), 1) };
                if let Some((folder, name)) = self.place(at, call.bytes(path)) {
                    let inode = self.create(None);
                    self.names.insert((folder, name.clone()), inode);
                    effects.push(Effect::Link { folder, name, inode });
                }
            }
            "unlink" | "rmdir" | "unlinkat" => {
                let (at, path) = if call.name == "unlinkat" { (call.args.first(), 1) } else { (None, 0) };
                if let Some((folder, name)) = self.place(at, call.bytes(path)) {
                    self.names.remove(&(folder, name.clone()));
                    effects.push(Effect::Unlink { folder, name });
                }
            }
            "rename" | "renameat" | "renameat2" => {
                let (from, to) = match call.name.as_str() {
                    "rename" => (self.place(None, call.bytes(0)), self.place(None, call.bytes(1))),
                    _ => (self.place(call.args.first(), call.bytes(1)), self.place(call.args.get(2), call.bytes(3))),
                };
                assert_eq!(from.is_some(), to.is_some(), "renamed out of the folder or into it");
                if let (Some((folder, from)), Some((target, to))) = (from, to) {
                    assert_eq!(folder, target, "renamed from one folder to another");
                    let inode = self.names.remove(&(folder, from.clone())).unwrap();
                    self.names.insert((folder, to.clone()), inode);
                    effects.push(Effect::Rename { folder, from, to, inode });
                }
            }
            "fcntl" => assert!(
                !call.symbol(1).starts_with("F_DUPFD") || !self.descriptors.contains_key(&call.number(0)),
                "a second descriptor of a file is not understood"
            ),
            // These calls have no further effect, and make nothing durable.
            "close" | "write" | "writev" | "pwrite64" | "pwritev" | "pwritev2" | "sync_file_range" => {}
            "dup" | "dup2" | "dup3" => {
                assert!(!self.descriptors.contains_key(&call.number(0)), "a second descriptor is not understood");
            }
            other => panic!("a node called {other}, which is not understood"),
        }
        for effect in effects {
            let at = self.log(begun_ns, effect);
            self.recording.effects[at].done_ns = done_ns;
        }
    }

    fn create(&mut self, content: Option<Vec<u8>>) -> Inode {
        self.recording.inodes.push(content);
        self.recording.inodes.len() - 1
    }

    fn open(&mut self, call: &Call, descriptor: i64, effects: &mut Vec<Effect>) {
        self.descriptors.remove(&descriptor);
        let flags: BTreeSet<&str> = call.symbol(2).split('|').collect();
        let Some((folder, name)) = self.place(call.args.first(), call.bytes(1)) else {
            if Path::new(std::str::from_utf8(call.bytes(1)).unwrap()) == self.recording.base {
                self.descriptors.insert(descriptor, 0);
            }
            return;
        };
        assert!(!flags.contains("O_APPEND"), "appending is not understood");
        let inode = match self.names.get(&(folder, name.clone())).copied() {
            Some(inode) => inode,
            None => {
                let inode = self.create(Some(Vec::new()));
                self.names.insert((folder, name.clone()), inode);
                effects.push(Effect::Link { folder, name, inode });
                inode
            }
        };
        if flags.contains("O_TRUNC") {
            effects.push(Effect::Length { file: inode, len: 0 });
        }
        self.descriptors.insert(descriptor, inode);
        self.positions.insert(descriptor, 0);
    }

    /// Returns the folder and name that a path refers to, if it is in the recorded folder. `at` is
    /// the folder that the path is relative to.
    fn place(&self, at: Option<&Arg>, path: &[u8]) -> Option<(Inode, String)> {
        let path = Path::new(std::str::from_utf8(path).unwrap());
        let (mut folder, relative) = match at {
            Some(Arg::Number(descriptor)) if path.is_relative() => (*self.descriptors.get(descriptor)?, path),
            _ => (0, path.strip_prefix(&self.recording.base).ok()?),
        };
        let mut parts: Vec<&str> = relative
            .components()
            .map(|part| match part {
                Component::Normal(name) => name.to_str().unwrap(),
                other => panic!("a path with {other:?}"),
            })
            .collect();
        let name = parts.pop()?;
        for part in parts {
            folder = *self.names.get(&(folder, part.to_owned()))?;
        }
        Some((folder, name.to_owned()))
    }
}
