//! Several stores on one folder, as processes of a host have them: locks of one open file do not know those of another.

use super::*;

#[test]
fn each_sees_what_the_others_have_made_durable() {
    let dir = folder();
    let (one, _) = open(dir.path());
    let (two, report) = open(dir.path());
    assert_eq!(report.others, 1);
    one.refresh();
    // Enough to seal some segments and leave one open.
    let pages: Vec<Page> = (0..9).map(|number| Page::new(number, 20000)).collect();
    for page in &pages {
        page.write(&one).expect("room");
        page.read(&two).expect("a page that is not known is looked for");
    }
    one.settle();
    two.refresh();
    assert!(pages.iter().all(|page| page.read(&two).is_ok()), "also when its segment is sealed");
    let page = Page::new(100, 300);
    page.write(&two).expect("room");
    assert_eq!(one.contains(&[page.key, PageKey(5)], ROOT), [true, false]);
    let (three, report) = open(dir.path());
    assert_eq!((report.others, report.pages), (2, 10), "{report}");
    assert!(pages.iter().all(|page| page.read(&three).is_ok()));
}

#[test]
fn what_one_removes_the_others_stop_to_find() {
    let dir = folder();
    let (one, _) = open(dir.path());
    let (two, _) = open(dir.path());
    let pages: Vec<Page> = (0..6).map(|number| Page::new(number, 20000)).collect();
    write(&one, &pages);
    two.refresh();
    two.discard(&[pages[0].key]).expect("room");
    one.refresh();
    assert_eq!(pages[0].read(&one), Err(Fault::Missing));
    two.wipe(ROOT).expect("room");
    one.refresh();
    assert_eq!(one.contains(&pages.iter().map(|page| page.key).collect::<Vec<_>>(), ROOT), [false; 6]);
    drop((one, two));
    let (one, _) = open(dir.path());
    assert_eq!(one.stats().pages, 0);
}

#[test]
fn a_page_that_another_process_moves_is_found_where_it_went() {
    let dir = folder();
    let (one, _) = open(dir.path());
    let pages: Vec<Page> = (0..12).map(|number| Page::new(number, 12000)).collect();
    write(&one, &pages);
    one.settle();
    let (two, _) = open(dir.path());
    pages[0].read(&two).expect("is there");
    let (segment, ..) = place(&one, pages[0].key).expect("is there");
    // All but the first of its segment.
    let others: Vec<PageKey> = pages[1..]
        .iter()
        .filter(|page| place(&one, page.key).is_some_and(|(name, ..)| name == segment))
        .map(|page| page.key)
        .collect();
    one.discard(&others).expect("room");
    one.settle();
    assert!(!dir.path().join(&segment).exists(), "it was compacted");
    pages[0].read(&two).expect("its file is open here, or it is found again");
    two.refresh();
    pages[0].read(&two).expect("found where it went");
    assert_ne!(place(&two, pages[0].key).expect("is there").0, segment);
}

#[test]
fn the_log_of_a_process_that_ended_is_taken_over() {
    let dir = folder();
    let (one, _) = open(dir.path());
    let (two, _) = open(dir.path());
    let pages: Vec<Page> = (0..6).map(|number| Page::new(number, 20000)).collect();
    write(&two, &pages);
    drop(two);
    one.settle();
    assert!(pages.iter().all(|page| page.read(&one).is_ok()));
    drop(one);
    let (one, report) = open(dir.path());
    assert_eq!((report.others, report.pages), (0, 6), "{report}");
    assert!(pages.iter().all(|page| page.read(&one).is_ok()));
}

#[test]
fn many_write_read_and_compact_at_the_same_time() {
    let dir = folder();
    let config = StoreConfig { poll: std::time::Duration::from_millis(1), ..config(dir.path()) };
    std::thread::scope(|scope| {
        for thread in 0..3_u64 {
            let config = config.clone();
            scope.spawn(move || {
                let (store, _) = Store::open(config).expect("opens");
                for number in 0..60 {
                    let page = Page::new(thread * 1000 + number, 9000);
                    page.write(&store).expect("room");
                    page.read(&store).expect("its own");
                    if number % 3 == 0 {
                        store.discard(&[page.key]).expect("room");
                    }
                    // Another's: there or not, but never a wrong byte.
                    let _ = Page::new((thread + 1) % 3 * 1000 + number, 9000).read(&store);
                }
            });
        }
    });
    let (store, _) = open(dir.path());
    for thread in 0..3 {
        for number in 0..60 {
            let page = Page::new(thread * 1000 + number, 9000);
            let wanted = if number % 3 == 0 { Err(Fault::Missing) } else { Ok(()) };
            assert_eq!(page.read(&store), wanted, "page {number} of {thread}");
        }
    }
}
