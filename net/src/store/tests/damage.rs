//! Single damages and what comes of each.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use super::*;

fn flip(dir: &Path, name: &str, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(dir.join(name)).expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("a byte");
}

#[test]
fn a_damaged_page_is_counted_not_served_and_replaced() {
    for (what, offset) in [("head", 70), ("tokens", 130), ("payload", 4096 + 777)] {
        let dir = folder();
        let (store, _) = open(dir.path());
        let (page, next) = (Page::new(1, 20000), Page::new(2, 20000));
        write(&store, &[page.clone(), next.clone()]);
        let (name, at, _) = place(&store, page.key).expect("is there");
        flip(dir.path(), &name, at + offset);
        assert_eq!(page.read(&store), Err(Fault::Checksum), "{what}");
        assert_eq!(store.contains(&[page.key, next.key], ROOT), [false, true], "{what}");
        assert_eq!((store.stats().damaged, store.scan(ROOT, None, 10).torn), (1, 1), "{what}");
        page.write(&store).expect("room");
        page.read(&store).expect("replaced");
        next.read(&store).expect("its neighbour is whole");
        drop(store);
        page.read(&open(dir.path()).0).expect("the newer record counts");
    }
}

#[test]
fn a_damage_in_a_tail_is_skipped_and_reported() {
    let dir = folder();
    let (store, _) = open(dir.path());
    let pages: Vec<Page> = (0..6).map(|number| Page::new(number, 3000)).collect();
    pages.iter().for_each(|page| page.write(&store).expect("room"));
    let crashed = image(&store);
    let (name, at, length) = place(&store, pages[1].key).expect("is there");
    flip(crashed.path(), &name, at + 200);
    let (name_4, at_4, _) = place(&store, pages[4].key).expect("is there");
    flip(crashed.path(), &name_4, at_4 + 8);
    let (last, report) = open(crashed.path());
    assert_eq!((report.pages, report.recovered, report.damaged), (4, 1, 2), "{report}");
    assert!(report.to_string().contains("2 damaged"), "{report}");
    for (number, page) in pages.iter().enumerate() {
        assert_eq!(page.read(&last).is_ok(), ![1, 4].contains(&number), "page {number}");
    }
    assert!(length > 3000);
}

#[test]
fn a_torn_tail_is_cut_and_written_behind() {
    let dir = folder();
    let (store, _) = open(dir.path());
    let pages: Vec<Page> = (0..3).map(|number| Page::new(number, 9000)).collect();
    pages.iter().for_each(|page| page.write(&store).expect("room"));
    let crashed = image(&store);
    let (name, at, _) = place(&store, pages[2].key).expect("is there");
    let file = OpenOptions::new().write(true).open(crashed.path().join(&name)).expect("a file");
    file.set_len(at + 5000).expect("cut");
    let (again, report) = open(crashed.path());
    assert_eq!((report.pages, report.torn), (2, 1), "{report}");
    assert_eq!(pages[2].read(&again), Err(Fault::Missing));
    pages[2].write(&again).expect("room");
    drop(again);
    let (again, report) = open(crashed.path());
    assert_eq!((report.pages, report.torn, report.recovered), (3, 0, 0), "{report}");
    assert!(pages.iter().all(|page| page.read(&again).is_ok()));
}

#[test]
fn a_segment_under_another_name_is_left_alone() {
    let dir = folder();
    let (store, _) = open(dir.path());
    let page = Page::new(1, 9000);
    page.write(&store).expect("room");
    drop(store);
    std::fs::copy(dir.path().join("00000000-00000000.seg"), dir.path().join("00000000-00000007.seg")).expect("a copy");
    std::fs::write(dir.path().join("00000000-00000009.seg"), b"mine, not yours").expect("a file");
    let (store, report) = open(dir.path());
    assert_eq!(report.foreign_files, ["00000000-00000007.seg", "00000000-00000009.seg"], "{report}");
    assert_eq!(std::fs::read(dir.path().join("00000000-00000009.seg")).expect("is there"), b"mine, not yours");
    assert_eq!((report.pages, page.read(&store)), (1, Ok(())));
}

#[test]
fn a_damaged_snapshot_is_refused_with_its_reason_and_nothing_is_lost() {
    for (at, reason) in
        [(3, "it is none, or of another version"), (20, "its head is damaged"), (4100, "its body is damaged")]
    {
        let dir = folder();
        let (store, _) = open(dir.path());
        let pages: Vec<Page> = (0..6).map(|number| Page::new(number, 20000)).collect();
        write(&store, &pages);
        drop(store);
        flip(dir.path(), "index.snap", at);
        let (store, report) = open(dir.path());
        assert_eq!((report.snapshot_refused, report.pages), (Some(reason), 6), "{report}");
        assert!(pages.iter().all(|page| page.read(&store).is_ok()));
    }
}

#[test]
fn an_old_snapshot_brings_nothing_back() {
    let dir = folder();
    let (store, _) = open(dir.path());
    let pages: Vec<Page> = (0..8).map(|number| Page::new(number, 20000)).collect();
    write(&store, &pages);
    drop(store);
    let old = std::fs::read(dir.path().join("index.snap")).expect("a snapshot");
    let (store, _) = open(dir.path());
    store.discard(&[pages[0].key]).expect("room");
    Page::new(100, 20000).write(&store).expect("room");
    let crashed = image(&store);
    drop(store);
    std::fs::write(crashed.path().join("index.snap"), old).expect("written");
    let (store, report) = open(crashed.path());
    assert_eq!((report.pages, report.from_snapshot), (8, 8), "{report}");
    assert_eq!(pages[0].read(&store), Err(Fault::Missing));
    Page::new(100, 20000).read(&store).expect("newer than the snapshot");
}
