//! Files of `local` that are not as they were left: bits that flipped, a file cut short or continued, pages of an older commit,
//! and files that can't be opened at all.
//!
//! Opening gives what was committed last or an error, and never a panic, a hang or anything else. `PROPTEST_CASES=10000` looks
//! at as many damages instead of the usual few.
#![cfg(feature = "local")]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use futures_util::future::join_all;
use kvactor::{Error, KvPair, PutOptions, Result, Store};
use proptest::prelude::*;
use proptest::sample::Index;
use std::path::Path;
use std::sync::{LazyLock, Once};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::timeout;

const PAGE: usize = 4096;
/// How long an opening may take, on a machine with other things to do.
const PATIENCE: Duration = Duration::from_secs(30);

/// A folder for one file. Where it is in memory, syncing it costs nothing.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap()
}

fn url(file: &Path) -> String {
    format!("local://{}", file.display())
}

/// The storage engine may panic over damaged pages, in the thread that has the file, where it is caught. That is no news here.
fn silence_the_writers_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if std::thread::current().name() != Some("kvactor-local") {
                usual(panic);
            }
        }));
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The bytes of a store's file at some moments of its life.
struct Images {
    /// After each of some commits, as a crash leaves it; the last one after it was closed.
    bytes: Vec<Vec<u8>>,
    /// What was committed by then.
    states: Vec<Vec<KvPair>>,
    /// What was committed but for the last commit.
    before: Vec<Vec<KvPair>>,
}

/// A store with keys small and large, that were written, overwritten and deleted.
static IMAGES: LazyLock<Images> = LazyLock::new(|| {
    // The test that comes first may be in a runtime of its own.
    std::thread::spawn(|| runtime().block_on(images())).join().expect("a store")
});

async fn images() -> Images {
    let folder = folder();
    let file = folder.path().join("store.redb");
    let mut images = Images { bytes: Vec::new(), states: Vec::new(), before: Vec::new() };
    let store = Store::connect(&url(&file)).await.unwrap();
    for round in 0..6_usize {
        for key in 0..20 {
            let size = if key % 7 == round { 3 * PAGE } else { 100 };
            store.put(format!("k{}", (key * 13 + round * 5) % 47), vec![round as u8; size]).await.unwrap();
        }
        store.put_with("kept", "x", PutOptions::ttl(Duration::from_secs(3600))).await.unwrap();
        store.delete("kept").await.unwrap();
        images.before.push(store.list("").await.unwrap());
        store.put("round", round.to_string()).await.unwrap();
        images.bytes.push(std::fs::read(&file).unwrap());
        images.states.push(store.list("").await.unwrap());
    }
    images.states.push(store.list("").await.unwrap());
    store.close().await.unwrap();
    images.bytes.push(std::fs::read(&file).unwrap());
    images
}

/// What became of a file.
#[derive(Clone, Debug)]
enum Damage {
    /// A bit is another one.
    Bit { at: Index, bit: u8 },
    /// A byte of the beginning, where the file says what it is, is another one.
    Header { at: usize, to: u8 },
    /// Some bytes are others.
    Bytes { at: Index, to: Vec<u8> },
    /// The rest is gone.
    Cut { to: Index },
    /// There is more.
    More { bytes: Vec<u8>, times: usize },
    /// A page is empty.
    Empty { page: Index },
    /// A page is that of another moment.
    Old { page: Index, image: Index },
    /// A page is where another should be.
    Moved { from: Index, to: Index },
}

impl Damage {
    fn any() -> impl Strategy<Value = Damage> {
        let index = || any::<Index>();
        prop_oneof![
            (index(), 0..8u8).prop_map(|(at, bit)| Damage::Bit { at, bit }),
            (0..320_usize, any::<u8>()).prop_map(|(at, to)| Damage::Header { at, to }),
            (index(), prop::collection::vec(any::<u8>(), 1..64)).prop_map(|(at, to)| Damage::Bytes { at, to }),
            index().prop_map(|to| Damage::Cut { to }),
            (prop::collection::vec(any::<u8>(), 1..64), 1..2000_usize)
                .prop_map(|(bytes, times)| Damage::More { bytes, times }),
            index().prop_map(|page| Damage::Empty { page }),
            (index(), index()).prop_map(|(page, image)| Damage::Old { page, image }),
            (index(), index()).prop_map(|(from, to)| Damage::Moved { from, to }),
        ]
    }

    fn inflict(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let page = |index: &Index, bytes: &[u8]| index.index(bytes.len().div_ceil(PAGE)) * PAGE;
        match self {
            Damage::Bit { at, bit } => {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            Damage::Header { at, to } => {
                let at = *at % bytes.len();
                bytes[at] = *to;
            }
            Damage::Bytes { at, to } => {
                let at = at.index(bytes.len());
                bytes[at..].iter_mut().zip(to).for_each(|(byte, to)| *byte = *to);
            }
            // An empty file is a new store.
            Damage::Cut { to } => bytes.truncate(to.index(bytes.len()).max(1)),
            Damage::More { bytes: more, times } => bytes.extend(more.repeat(*times)),
            Damage::Empty { page: index } => {
                let at = page(index, bytes);
                bytes[at..].iter_mut().take(PAGE).for_each(|byte| *byte = 0);
            }
            Damage::Old { page: index, image } => {
                let (at, image) = (page(index, bytes), image.get(&IMAGES.bytes));
                let old = image.iter().skip(at).take(PAGE);
                bytes[at..].iter_mut().zip(old).for_each(|(byte, old)| *byte = *old);
            }
            Damage::Moved { from, to } => {
                let (from, to) = (page(from, bytes), page(to, bytes));
                let moved = bytes[from..].iter().copied().take(PAGE).collect::<Vec<_>>();
                bytes[to..].iter_mut().zip(moved).for_each(|(byte, moved)| *byte = moved);
            }
        }
    }
}

async fn open(file: &Path) -> Result<Store> {
    timeout(PATIENCE, Store::connect(&url(file))).await.expect("an opening that doesn't hang")
}

/// What is in the file, where it can be opened.
async fn state(file: &Path) -> Result<Vec<KvPair>> {
    let store = open(file).await?;
    let pairs = store.list("").await?;
    store.close().await?;
    Ok(pairs)
}

/// Writes to a file that could be opened: what it has must not be on the way.
async fn write_on(file: &Path) {
    let store = open(file).await.expect("what was opened once is opened again");
    let mut expected = store.list("").await.unwrap();
    let keys = (0..30).map(|number| format!("new{number:02}"));
    let puts = keys.map(|key| async { (store.put(&key, vec![9; 500]).await.unwrap(), key) });
    for (version, key) in join_all(puts).await {
        expected.retain(|pair| pair.key.as_str() != key);
        expected.push(KvPair { key: key.parse().unwrap(), value: vec![9; 500].into(), version });
    }
    store.close().await.unwrap();
    expected.sort_by(|one, other| one.key.cmp(&other.key));
    assert!(state(file).await.expect("it is opened again") == expected, "a write hit what was there");
}

fn names(pairs: &[KvPair]) -> Vec<String> {
    pairs.iter().map(|pair| format!("{}@{}", pair.key, pair.version.index())).collect()
}

async fn check(image: usize, damages: &[Damage]) {
    silence_the_writers_panics();
    let folder = folder();
    let file = folder.path().join("store.redb");
    let mut bytes = IMAGES.bytes[image].clone();
    damages.iter().for_each(|damage| damage.inflict(&mut bytes));
    std::fs::write(&file, &bytes).unwrap();
    match state(&file).await {
        Err(error) => assert!(matches!(error, Error::Backend { .. }), "{error:?}"),
        Ok(pairs) => {
            // Where the process died, a last commit that is damaged can't be told from one that was not finished.
            let unfinished = IMAGES.before.get(image).is_some_and(|before| pairs == *before);
            let committed = pairs == IMAGES.states[image] || unfinished;
            assert!(committed, "image {image}, {damages:?}: not what was committed: {:?}", names(&pairs));
            write_on(&file).await;
        }
    }
}

/// As ever, but for fewer cases where nobody says how many: each opens files several times.
fn config() -> ProptestConfig {
    let mut config = ProptestConfig { max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 64;
    }
    config
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_damaged_file_is_an_error_or_still_right(
        image in 0..7_usize,
        damages in prop::collection::vec(Damage::any(), 1..4),
    ) {
        runtime().block_on(check(image, &damages));
    }
}

#[test]
fn undamaged_images_are_right() {
    let runtime = runtime();
    (0..IMAGES.bytes.len()).for_each(|image| runtime.block_on(check(image, &[])));
}

/// Every byte of what the file says of itself at its beginning.
#[test]
fn no_byte_of_the_header_matters_unnoticed() {
    let runtime = runtime();
    let bytes = IMAGES.bytes.last().unwrap();
    for (at, byte) in bytes.iter().enumerate().take(320) {
        let damage = Damage::Header { at, to: byte ^ (1 << (at % 8)) };
        runtime.block_on(check(IMAGES.bytes.len() - 1, &[damage]));
    }
}

#[tokio::test]
async fn a_file_that_is_cut_short_is_an_error() {
    silence_the_writers_panics();
    let folder = folder();
    let file = folder.path().join("store.redb");
    for bytes in &IMAGES.bytes[5..] {
        let step = bytes.len() / 40;
        let near = [1, 8, 9, 63, 64, 319, 320, PAGE - 1, PAGE, PAGE + 1, bytes.len() - PAGE, bytes.len() - 1];
        for length in near.into_iter().chain((1..40).map(|part| part * step)) {
            std::fs::write(&file, &bytes[..length]).unwrap();
            match state(&file).await {
                Err(error) => assert!(matches!(error, Error::Backend { .. }), "{length}: {error:?}"),
                // What was cut off was of no use.
                Ok(pairs) => assert!(pairs == *IMAGES.states.last().unwrap(), "{length}"),
            }
        }
    }
}

/// What can't be opened as a file is named, and left as it is.
#[cfg(unix)]
#[tokio::test]
async fn what_is_no_file_for_us_is_an_error_by_name() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    silence_the_writers_panics();
    let folder = folder();
    let (round, closed, only_read) =
        (folder.path().join("round"), folder.path().join("closed.redb"), folder.path().join("only_read.redb"));
    symlink(&round, &round).unwrap();
    for (file, mode) in [(&closed, 0o000), (&only_read, 0o444)] {
        std::fs::write(file, &IMAGES.bytes[6]).unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let devices = ["/dev/null", "/dev/full", "/dev/zero"].map(Path::new);
    let always = [folder.path(), &round].into_iter().chain(devices);
    // Whoever may do anything may open these two.
    let is_root = std::fs::OpenOptions::new().write(true).open(&closed).is_ok();
    for file in always.chain([closed.as_path(), only_read.as_path()].into_iter().filter(|_| !is_root)) {
        let Err(error) = open(file).await else { panic!("{} is a store", file.display()) };
        let is_named = error.to_string().contains(&file.display().to_string());
        assert!(is_named && matches!(error, Error::InvalidConfig { .. } | Error::Backend { .. }), "{error:?}");
    }
    assert!(std::fs::read(&only_read).unwrap() == IMAGES.bytes[6]);
}

/// Nothing was ever written to it: a process died before it could, or somebody made it in advance.
#[tokio::test]
async fn an_empty_file_is_a_new_store() {
    let folder = folder();
    let file = folder.path().join("store.redb");
    std::fs::write(&file, b"").unwrap();
    assert_eq!(state(&file).await.unwrap(), []);
    write_on(&file).await;
}
