//! What fuzzers start from and what they have found: all of it runs through the fuzz targets, without a fuzzer.

#[expect(unreachable_pub, reason = "for cargo-fuzz it is a library")]
#[path = "../../fuzz/src/lib.rs"]
mod targets;

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

static PANICS: AtomicU32 = AtomicU32::new(0);

#[test]
fn the_fuzz_corpus_is_refused_or_taken_and_nothing_else() {
    let usual = std::panic::take_hook();
    // Also in the threads of servers, where it would end nothing but a connection.
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        usual(info);
    }));
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let entries = |folder: &Path| {
        let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
        paths.sort();
        paths
    };
    for (name, target) in targets::TARGETS {
        let files = entries(&corpus.join(name));
        assert!(files.len() >= 3, "{name} has {} files to start from", files.len());
        for file in files {
            target(&std::fs::read(&file).expect("a file of the corpus"));
            // Cut off, and with a bit that is another one.
            let bytes = std::fs::read(&file).expect("a file of the corpus");
            target(&bytes[..bytes.len() / 2]);
            let mut other = bytes;
            if let Some(at) = other.len().checked_sub(1) {
                other[at / 3] ^= 4;
            }
            target(&other);
            assert_eq!(PANICS.load(Ordering::SeqCst), 0, "{}", file.display());
        }
    }
    let known: Vec<&str> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
    for folder in entries(&corpus) {
        let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        assert!(known.contains(&name.as_str()), "fuzz/corpus/{name} is of no target");
    }
}
