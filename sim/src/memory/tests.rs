//! The content checker sees each mistake that it is there for.

use pd_core::batch::Run;

use super::*;

const ROOT: PageKey = PageKey(5);

fn memory() -> Memory {
    let mut memory = Memory::new(Answers::Rule(|seed, index| Token(seed as u32 * 1000 + index)));
    memory.boot(0, 4, 8, 8);
    let tokens: Vec<Token> = (0..6).map(Token).collect();
    let prompt = Prompt { root: ROOT, length: 6, keys: pd_core::key::page_keys(ROOT, 4, &tokens), tokens };
    memory.tell(RequestId(0), &prompt, 3);
    memory
}

fn run(start: u32, count: u32, table_from: u32, pages: &[u32]) -> Batch {
    let pages: Vec<_> = pages.iter().copied().map(GpuPage).collect();
    let mut batch = Batch::default();
    batch.push(Run::new(RequestId(0), start, count, true, table_from), &pages);
    batch
}

#[test]
fn an_answer_fills_the_page_that_its_prompt_began() {
    let mut memory = memory();
    memory.forward(Instant(1), 0, &run(0, 6, 0, &[2, 5]), &[], |_| false);
    memory.forward(Instant(2), 0, &run(6, 1, 2, &[]), &[], |_| false);
    memory.forward(Instant(3), 0, &run(7, 1, 2, &[]), &[], |_| false);
    memory.forward(Instant(4), 0, &run(8, 1, 2, &[1]), &[], |_| false);
    assert_eq!(memory.violations(), []);
    let tokens = [4, 5, 3000, 3001].map(Token);
    let keys = pd_core::key::page_keys(ROOT, 4, &[0, 1, 2, 3].map(Token));
    assert_eq!(memory.tag(Cell::gpu(0, GpuPage(5))), Tag::Page { key: page_key(keys[0], &tokens), filled: 4 });
}

#[test]
fn reading_a_half_filled_page_is_a_violation() {
    let mut memory = memory();
    memory.forward(Instant(1), 0, &run(0, 5, 0, &[2, 5]), &[], |_| false);
    memory.forward(Instant(2), 0, &run(6, 1, 2, &[]), &[], |_| false);
    assert_eq!(memory.violations().len(), 1);
    assert_eq!(memory.violations()[0].page, Some(1));
}

#[test]
fn a_source_that_changes_under_a_copy_is_a_violation() {
    let mut memory = memory();
    memory.forward(Instant(1), 0, &run(0, 6, 0, &[2, 5]), &[], |_| false);
    let cells = [(Cell::gpu(0, GpuPage(2)), Cell::host(0, HostPage(0)))];
    let before = memory.copying(&cells);
    memory.fetched(Cell::gpu(0, GpuPage(2)), Some(PageKey(9)));
    memory.copied(Instant(2), &cells, &before);
    assert_eq!(memory.violations().len(), 1);
}

#[test]
fn a_destination_that_two_write_is_a_violation() {
    let mut memory = memory();
    memory.forward(Instant(1), 0, &run(0, 6, 0, &[2, 5]), &[], |_| false);
    let cells = [(Cell::gpu(0, GpuPage(2)), Cell::host(0, HostPage(0)))];
    let (one, two) = (memory.copying(&cells), memory.copying(&cells));
    memory.copied(Instant(2), &cells, &one);
    memory.copied(Instant(3), &cells, &two);
    assert_eq!(memory.violations().len(), 1);
}

#[test]
fn a_copy_of_a_page_that_holds_nothing_is_a_violation() {
    let mut memory = memory();
    let cells = [(Cell::host(0, HostPage(1)), Cell::gpu(0, GpuPage(1)))];
    let before = memory.copying(&cells);
    memory.copied(Instant(2), &cells, &before);
    assert_eq!(memory.violations().len(), 1);
}

/// A worker launches a chunk behind one that has failed, and its push leaves with it: before anybody could know.
#[test]
fn what_is_computed_behind_a_failure_may_be_pushed_and_neither_handed_over_nor_copied() {
    let mut memory = memory();
    memory.boot(1, 4, 8, 8);
    memory.forward(Instant(1), 0, &run(4, 2, 0, &[2, 5]), &[RequestId(0)], |_| false);
    let push = [(Cell::gpu(0, GpuPage(5)), Cell::gpu(1, GpuPage(3)))];
    _ = memory.copying(&push);
    memory.copied(Instant(2), &push, &[]);
    assert_eq!(memory.violations(), []);
    memory.handed_over(Instant(3), 1, RequestId(0), 6, 1, &[GpuPage(3)]);
    assert_eq!(memory.violations().len(), 1);
    let backup = [(Cell::gpu(0, GpuPage(5)), Cell::host(0, HostPage(0)))];
    let before = memory.copying(&backup);
    memory.copied(Instant(4), &backup, &before);
    assert_eq!(memory.violations().len(), 2);
}

#[test]
fn what_is_stored_under_a_wrong_key_is_noticed_and_kept_as_what_it_is() {
    let mut memory = memory();
    memory.forward(Instant(1), 0, &run(0, 6, 0, &[2, 5]), &[], |_| false);
    let cells = [(Cell::gpu(0, GpuPage(2)), Cell::host(0, HostPage(0)))];
    let before = memory.copying(&cells);
    memory.copied(Instant(2), &cells, &before);
    let tag = memory.tag(cells[0].1);
    let content = memory.persisted(Instant(3), cells[0].1, PageKey(77), tag);
    assert_ne!(content, PageKey(77));
    assert_eq!(memory.violations().len(), 1);
}
