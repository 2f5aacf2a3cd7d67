//! Pages are letters here: the text `abc` is the chain of the keys of `a`, `ab` and `abc`.

#![allow(clippy::disallowed_types, reason = "prop_oneof! expands to an Arc")]

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use proptest::prelude::*;

use crate::digest::Digest;
use crate::id::Token;
use crate::key::page_key;

use super::*;

#[test]
fn a_fork_splits_the_node_and_a_lone_child_is_merged_again() {
    script(
        "insert abcdef  => new 6: 0 1 2 3 4 5
         shape          => abcdef
         insert abx     => new 1: 0 1 6
         shape          => ab(cdef x)
         insert abcdeyz => new 2: 0 1 2 3 4 7 8
         shape          => ab(cde(f yz) x)
         remove abx     => payload x
         shape          => abcde(f yz)
         remove abcdeyz => payload z
         remove abcdey  => payload y
         shape          => abcdef",
    );
}

#[test]
fn both_halves_of_a_split_keep_payloads_and_pages() {
    // The first split gives the upper half a new node, the second one the lower half.
    for fork in ["ax", "abcdex"] {
        let mut tree = Tree::default();
        tree.run("insert abcdef");
        let before = tree.chain("abcdef");
        tree.run(&format!("insert {fork}"));
        assert_eq!(tree.chain("abcdef"), before);
        for (page, letter) in before.into_iter().zip("abcdef".chars()) {
            assert_eq!(*tree.radix.get(page), Some(letter));
        }
    }
}

#[test]
fn a_split_leaves_the_children_of_the_node_attached() {
    script(
        "insert abcdefx => new 7: 0 1 2 3 4 5 6
         insert abcdefy => new 1: 0 1 2 3 4 5 7
         insert am      => new 1: 0 8
         shape          => a(bcdef(x y) m)
         insert abcden  => new 1: 0 1 2 3 4 9
         shape          => a(bcde(f(x y) n) m)
         lookup abcdefy => 7 pages to 7
         remove am      => payload m
         shape          => abcde(f(x y) n)",
    );
}

#[test]
fn a_chain_that_goes_on_from_a_leaf_extends_it_in_place() {
    script(
        "insert ab     => new 2: 0 1
         extend ab cd  => new 2: 2 3
         shape         => abcd
         nodes         => 1
         extend ab cd  => new 0: 2 3
         extend ab cx  => new 1: 2 4
         extend abcx y => new 1: 5
         shape         => abc(d xy)
         extend abc z  => new 1: 6
         shape         => abc(d xy z)",
    );
}

#[test]
fn a_chain_may_fork_right_behind_its_parent_page() {
    script(
        "insert abc  => new 3: 0 1 2
         extend a xy => new 2: 3 4
         shape       => a(bc xy)
         insert m    => new 1: 5
         shape       => a(bc xy) m
         insert      => new 0:
         extend abc  => new 0:",
    );
}

#[test]
fn a_lookup_finds_the_longest_prefix_and_changes_nothing() {
    script(
        "insert abcdef => new 6: 0 1 2 3 4 5
         insert abx    => new 1: 0 1 6
         digest        => first
         lookup abcd   => 4 pages to 3
         lookup abcdef => 6 pages to 5
         lookup abcdefg => 6 pages to 5
         lookup abxcd  => 3 pages to 6
         lookup abz    => 2 pages to 1
         lookup a      => 1 pages to 0
         lookup z      => nothing
         lookup        => nothing
         digest        => the same
         shape         => ab(cdef x)
         remove abx    => payload x
         digest        => another
         insert abx    => new 1: 0 1 6
         digest        => another",
    );
}

#[test]
fn pages_and_nodes_are_recycled() {
    let mut tree = Tree::default();
    for _ in 0..10 {
        tree.run("insert abcd");
        tree.run("insert abxy");
        for text in ["abxy", "abcd", "abx", "abc", "ab", "a"] {
            tree.run(&format!("remove {text}"));
        }
        assert!(tree.radix.is_empty());
    }
    assert_eq!(tree.radix.slots.len(), 6);
    assert_eq!(tree.radix.nodes.len(), 4);
    assert!(tree.radix.nodes.iter().all(|node| node.keys.capacity() == 0));
}

#[test]
fn parents_children_and_depths_follow_the_chain_across_nodes() {
    let mut tree = Tree::default();
    for text in ["insert abc", "insert abx", "insert aby"] {
        tree.run(text);
    }
    let [a, b, c] = tree.chain("abc")[..] else { panic!("three pages") };
    assert_eq!([a, b, c].map(|page| tree.radix.parent(page)), [None, Some(a), Some(b)]);
    assert_eq!([a, b, c].map(|page| tree.radix.depth(page)), [0, 1, 2]);
    assert_eq!([a, b, c].map(|page| tree.radix.children(page)), [1, 3, 0]);
    let mut children = Vec::new();
    tree.radix.for_each_child(b, |page| children.push(page));
    children.sort_unstable();
    assert_eq!(children, [c, tree.chain("abx")[2], tree.chain("aby")[2]]);
    tree.radix.for_each_child(c, |_| panic!("a leaf has no child"));
}

#[test]
#[should_panic(expected = "holds up other pages")]
fn a_page_with_a_child_cannot_be_removed() {
    let mut tree = Tree::default();
    tree.run("insert ab");
    tree.run("remove a");
}

#[test]
#[should_panic(expected = "is not in the tree")]
fn a_removed_page_is_not_in_the_tree() {
    let mut tree = Tree::default();
    tree.run("insert ab");
    let page = tree.chain("ab")[1];
    tree.run("remove ab");
    let _ = tree.radix.get(page);
}

#[test]
#[should_panic(expected = "lone child")]
fn the_check_finds_a_node_that_was_split_for_nothing() {
    let mut tree = Tree::default();
    tree.run("insert ab");
    let id = tree.radix.slots[0].node;
    tree.radix.split(id, 1);
    tree.radix.check();
}

#[test]
fn the_common_prefix_of_chains_is_found_for_all_lengths() {
    let ours: Vec<PageKey> = (0..40).map(PageKey).collect();
    for common in 0..=ours.len() {
        for more in 0..4 {
            let theirs: Vec<PageKey> =
                ours[..common].iter().copied().chain((0..more).map(|i| PageKey(100 + i))).collect();
            assert_eq!(common_prefix(&ours, &theirs), common);
            assert_eq!(common_prefix(&theirs, &ours), common);
        }
    }
}

#[derive(Clone, Debug)]
enum Act {
    Insert(Vec<u8>),
    /// Behind the nth page of the model.
    Extend(usize, Vec<u8>),
    Lookup(Vec<u8>),
    /// The nth page without children.
    Remove(usize),
    /// The end of the nth chain, up to the fork.
    RemoveChain(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let text = || prop::collection::vec(prop_oneof![6 => Just(0_u8), 2 => Just(1_u8), 1 => Just(2_u8)], 0..24);
    prop_oneof![
        4 => text().prop_map(Act::Insert),
        2 => (any::<usize>(), text()).prop_map(|(nth, text)| Act::Extend(nth, text)),
        2 => text().prop_map(Act::Lookup),
        2 => any::<usize>().prop_map(Act::Remove),
        2 => any::<usize>().prop_map(Act::RemoveChain),
    ]
}

/// The naive tree: each chain that exists, with its page and its payload.
#[derive(Default)]
struct Model(BTreeMap<Vec<PageKey>, (PageId, u64)>);

impl Model {
    fn is_leaf(&self, chain: &[PageKey]) -> bool {
        !self.0.keys().any(|other| other.len() == chain.len() + 1 && other.starts_with(chain))
    }

    fn leaves(&self) -> Vec<Vec<PageKey>> {
        self.0.keys().filter(|chain| self.is_leaf(chain)).cloned().collect()
    }

    fn known(&self, chain: &[PageKey]) -> usize {
        (0..=chain.len()).rev().find(|&count| count == 0 || self.0.contains_key(&chain[..count])).unwrap()
    }
}

proptest! {
    /// Goal: payloads, links and matches are those of the naive tree after each operation, through all splits and
    /// merges.
    #[test]
    fn a_tree_agrees_with_a_map_of_prefixes(acts in prop::collection::vec(act(), 1..60)) {
        let mut radix = Radix::<u64>::new();
        let mut model = Model::default();
        let mut payloads = 0;
        for act in acts {
            match act {
                Act::Insert(text) => insert(&mut radix, &mut model, &mut payloads, &[], &keys(&[], &text)),
                Act::Extend(nth, text) => {
                    if !model.0.is_empty() {
                        let parent = model.0.keys().nth(nth % model.0.len()).unwrap().clone();
                        let keys = keys(&parent, &text);
                        insert(&mut radix, &mut model, &mut payloads, &parent, &keys);
                    }
                }
                Act::Lookup(text) => {
                    let chain = keys(&[], &text);
                    let known = model.known(&chain);
                    let found = radix.lookup(&chain);
                    prop_assert_eq!(found.pages as usize, known);
                    prop_assert_eq!(found.last, model.0.get(&chain[..known]).map(|(page, _)| *page));
                }
                Act::Remove(nth) => {
                    let leaves = model.leaves();
                    if !leaves.is_empty() {
                        remove(&mut radix, &mut model, &leaves[nth % leaves.len()]);
                    }
                }
                Act::RemoveChain(nth) => {
                    let leaves = model.leaves();
                    if !leaves.is_empty() {
                        let mut chain = leaves[nth % leaves.len()].clone();
                        while !chain.is_empty() && model.is_leaf(&chain) {
                            remove(&mut radix, &mut model, &chain);
                            chain.pop();
                        }
                    }
                }
            }
            radix.check();
            agree(&radix, &model);
        }
    }

    /// A faulty peer may send anything as keys. The answers are worth nothing then, but the tree stays sound.
    #[test]
    fn keys_that_form_no_chain_do_not_break_the_tree(
        chains in prop::collection::vec(prop::collection::vec((0_u128..6).prop_map(PageKey), 0..12), 1..40),
    ) {
        let mut radix = Radix::<()>::new();
        let mut pages = Vec::new();
        for chain in chains {
            prop_assert!(radix.lookup(&chain).pages as usize <= chain.len());
            pages.clear();
            radix.insert(None, &chain, &mut pages);
            prop_assert_eq!(pages.len(), chain.len());
            radix.check();
            let leaf = radix.iter().find(|&page| radix.children(page) == 0);
            if let Some(leaf) = leaf.filter(|_| chain.len() % 2 == 0) {
                radix.remove(leaf);
                radix.check();
            }
        }
    }
}

fn insert(radix: &mut Radix<u64>, model: &mut Model, payloads: &mut u64, parent: &[PageKey], keys: &[PageKey]) {
    let mut pages = Vec::new();
    let behind = model.0.get(parent).map(|(page, _)| *page);
    let new = radix.insert(behind, keys, &mut pages);
    assert_eq!(pages.len(), keys.len());
    let mut counted = 0;
    let mut chain = parent.to_vec();
    for (&key, &page) in keys.iter().zip(&pages) {
        chain.push(key);
        if let Some((known, _)) = model.0.get(&chain) {
            assert_eq!(*known, page);
            continue;
        }
        counted += 1;
        assert_eq!(*radix.get(page), 0, "a new page has a default payload");
        *payloads += 1;
        *radix.get_mut(page) = *payloads;
        model.0.insert(chain.clone(), (page, *payloads));
    }
    assert_eq!(new, counted);
}

fn remove(radix: &mut Radix<u64>, model: &mut Model, chain: &[PageKey]) {
    let (page, payload) = model.0.remove(chain).unwrap();
    assert_eq!(radix.remove(page), payload);
    assert!(!radix.contains(page));
}

fn agree(radix: &Radix<u64>, model: &Model) {
    let mut forks = 0;
    for (chain, (page, payload)) in &model.0 {
        assert_eq!(radix.get(*page), payload);
        assert_eq!(radix.key(*page), *chain.last().unwrap());
        assert_eq!(radix.depth(*page) as usize, chain.len() - 1);
        let before = &chain[..chain.len() - 1];
        assert_eq!(radix.parent(*page), model.0.get(before).map(|(page, _)| *page));
        let below = model.0.iter().filter(|(other, _)| other.len() == chain.len() + 1 && other.starts_with(chain));
        let below: BTreeSet<PageId> = below.map(|(_, (page, _))| *page).collect();
        assert_eq!(radix.children(*page) as usize, below.len());
        let mut seen = BTreeSet::new();
        radix.for_each_child(*page, |child| assert!(seen.insert(child)));
        assert_eq!(seen, below);
        forks += if below.len() > 1 { below.len() } else { 0 };
        let mut path = Vec::new();
        radix.path(*page, &mut path);
        let expected: Vec<PageId> = (1..=chain.len()).map(|count| model.0[&chain[..count]].0).collect();
        assert_eq!(path, expected);
    }
    let starts = model.0.keys().filter(|chain| chain.len() == 1).count();
    assert_eq!(radix.nodes(), starts + forks, "one node for each start and each branch of a fork");
    let pages: BTreeSet<PageId> = model.0.values().map(|(page, _)| *page).collect();
    assert_eq!(radix.len(), pages.len());
    assert!(radix.iter().eq(pages));
}

fn keys(parent: &[PageKey], text: &[u8]) -> Vec<PageKey> {
    let mut parent = parent.last().copied().unwrap_or(PageKey(7));
    let mut keys = Vec::new();
    for &letter in text {
        parent = page_key(parent, &[Token(u32::from(letter))]);
        keys.push(parent);
    }
    keys
}

/// A tree whose payloads are the letters.
#[derive(Default)]
struct Tree {
    radix: Radix<Option<char>>,
    digest: Option<u64>,
}

/// Runs the lines `command => expected`.
fn script(text: &str) {
    let mut tree = Tree::default();
    for line in text.lines() {
        let (command, expected) = line.split_once("=>").unwrap();
        assert_eq!(tree.run(command), expected.trim(), "{}", line.trim());
    }
}

impl Tree {
    fn run(&mut self, command: &str) -> String {
        let mut words = command.split_whitespace();
        let verb = words.next().unwrap();
        let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let answer = match verb {
            "insert" => self.insert("", first),
            "extend" => self.insert(first, second),
            "remove" => {
                let page = *self.chain(first).last().unwrap();
                format!("payload {}", self.radix.remove(page).unwrap())
            }
            "lookup" => match self.radix.lookup(&keys(&[], first.as_bytes())) {
                Match { pages: 0, last: None } => "nothing".into(),
                Match { pages, last } => format!("{pages} pages to {}", last.unwrap()),
            },
            "nodes" => format!("{}", self.radix.nodes()),
            "shape" => self.shape(ROOT),
            "digest" => {
                let mut digest = Digest::new();
                self.radix.digest(&mut digest);
                match self.digest.replace(digest.finish()) {
                    None => "first".into(),
                    Some(before) if before == digest.finish() => "the same".into(),
                    Some(_) => "another".into(),
                }
            }
            _ => panic!("no command {verb}"),
        };
        self.radix.check();
        answer
    }

    fn insert(&mut self, parent: &str, text: &str) -> String {
        let parent = self.chain(parent);
        let before = parent.last().map(|&page| self.radix.key(page));
        let mut pages = Vec::new();
        let keys = keys(before.as_slice(), text.as_bytes());
        let new = self.radix.insert(parent.last().copied(), &keys, &mut pages) as usize;
        for (index, (&page, letter)) in pages.iter().zip(text.chars()).enumerate() {
            let payload = self.radix.get_mut(page);
            assert_eq!(*payload, (index < pages.len() - new).then_some(letter));
            *payload = Some(letter);
        }
        let pages: Vec<String> = pages.iter().map(|page| format!(" {page}")).collect();
        format!("new {new}:{}", pages.concat())
    }

    /// The pages of a chain that is in the tree.
    fn chain(&self, text: &str) -> Vec<PageId> {
        let found = self.radix.lookup(&keys(&[], text.as_bytes()));
        assert_eq!(found.pages as usize, text.len(), "{text} is in the tree");
        let mut pages = Vec::new();
        if let Some(last) = found.last {
            self.radix.path(last, &mut pages);
        }
        pages
    }

    /// Letters of a node, then its children in parentheses, by letter.
    fn shape(&self, id: NodeId) -> String {
        let run = &self.radix.nodes[id.index()];
        let letters: String = run.pages.iter().map(|&page| self.radix.get(page).unwrap()).collect();
        let mut below: Vec<String> = run.children.values().map(|&child| self.shape(child)).collect();
        below.sort();
        match (below.is_empty(), id == ROOT) {
            (true, _) => letters,
            (false, true) => below.join(" "),
            (false, false) => format!("{letters}({})", below.join(" ")),
        }
    }
}
