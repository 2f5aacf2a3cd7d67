//! Equal content gives equal keys, any difference changes all later ones.

use std::collections::BTreeSet;

use proptest::prelude::*;

use pd_core::key::page_keys;

use super::*;

const ROOT: PageKey = PageKey(7);

#[test]
fn a_prompt_has_a_key_for_each_full_page_and_the_tokens_behind_them() {
    for page_size in [1, 16, 64, 100] {
        for tokens in [1, 15, 16, 99, 100, 1000, 1001] {
            let mut chain = Chain::new(ROOT, page_size);
            chain.append(Source::named("a"), tokens);
            let prompt = chain.prompt();
            assert!(prompt.is_well_formed(page_size));
            let tail: Vec<Token> =
                (tokens - tokens % page_size..tokens).map(|position| Source::named("a").token(position)).collect();
            assert_eq!(prompt.tokens, tail);
            assert_eq!(prompt, chain.into_prompt());
        }
    }
}

#[test]
fn blocks_give_equal_keys_as_far_as_they_are_equal() {
    let scope = Source::trace_scope("t");
    let keys = |page_size: u32, ids: &[u64], tokens: u32| {
        let mut chain = Chain::new(ROOT, page_size);
        chain.append_blocks(scope, 512, ids, tokens);
        chain.into_prompt().keys
    };
    // Smaller pages, equal, larger, and one that neither divides nor is divided.
    for (page_size, common_pages) in [(64, 16), (512, 2), (1024, 1), (48, 21)] {
        let (one, other) = (keys(page_size, &[1, 2, 3, 4], 2048), keys(page_size, &[1, 2, 9, 4], 2048));
        assert_eq!(one.len(), 2048 / page_size as usize);
        let common = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
        assert_eq!(common, common_pages, "page size {page_size}");
        assert!(one[common..].iter().all(|key| !other.contains(key)), "a difference changes all later keys");
    }
    // A block in part shares the pages that it fills.
    assert_eq!(keys(64, &[1, 2], 512 + 200), keys(64, &[1, 2], 1024)[..11]);
    assert_eq!(keys(512, &[1, 2], 512 + 200), keys(512, &[1], 512));
}

#[test]
fn every_part_of_a_description_counts() {
    let first_key = |root, source, from| {
        let mut chain = Chain::new(root, 4);
        chain.append_from(source, from, 4);
        chain.into_prompt().keys[0]
    };
    let mut keys = BTreeSet::new();
    for root in [0, 1, 1 << 64] {
        for kind in 0..4_u32 {
            for id in 0..50 {
                let source = [
                    Source::unique(0, u64::from(id)),
                    Source::unique(1, u64::from(id)),
                    Source::group(0, id),
                    Source::named(&id.to_string()),
                ][kind as usize];
                for from in 0..8 {
                    assert!(keys.insert(first_key(PageKey(root), source, from)));
                }
            }
        }
    }
    assert_ne!(Source::trace_scope("conversation"), Source::trace_scope("synthetic"));
}

/// Half of the 128 bits change with any single bit of a description.
#[test]
fn the_cheap_key_spreads_every_bit() {
    let piece = |id: u64, from| Piece { source: Source { scope: 5, id }, from, count: 8 };
    let base = mixed(PageKey(3), &[piece(0, 0)]).0;
    let by_id = (0..64).map(|bit| mixed(PageKey(3), &[piece(1 << bit, 0)]).0);
    let by_from = (0..32).map(|bit| mixed(PageKey(3), &[piece(0, 1 << bit)]).0);
    let by_parent = (0..128).map(|bit| mixed(PageKey(3 ^ 1 << bit), &[piece(0, 0)]).0);
    let changed: Vec<u32> = by_id.chain(by_from).chain(by_parent).map(|key| (key ^ base).count_ones()).collect();
    assert!(changed.iter().all(|bits| (36..=92).contains(bits)), "{changed:?}");
    let mean = changed.iter().sum::<u32>() / changed.len() as u32;
    assert!((62..=66).contains(&mean), "{mean}");
}

#[test]
fn from_the_first_generated_token_on_keys_are_those_of_a_machine() {
    for (page_size, prompt_tokens, answer_tokens) in [(4, 10, 7), (4, 8, 1), (16, 3, 100), (1, 5, 5), (64, 64, 64)] {
        let mut chain = Chain::new(ROOT, page_size);
        chain.append(Source::named("a"), prompt_tokens);
        let (before, answer) = (chain.prompt(), chain.answer());
        chain.append_answer(&answer, answer_tokens);
        chain.append(Source::named("b"), 2 * page_size);
        let after = chain.prompt();
        let full = before.keys.len();
        let generated = (0..answer_tokens).map(|position| answer_token(answer.seed, position));
        let user = (0..2 * page_size).map(|position| Source::named("b").token(position));
        let known: Vec<Token> = before.tokens.iter().copied().chain(generated).chain(user).collect();
        let parent = before.keys.last().copied().unwrap_or(ROOT);
        assert_eq!(after.keys[..full], before.keys);
        assert_eq!(after.keys[full..], page_keys(parent, page_size, &known));
        assert!(after.is_well_formed(page_size));
    }
}

#[test]
fn recorded_answers_come_before_invented_ones() {
    let answer = Answer { seed: 9, given: vec![Token(1), Token(2)] };
    let said: Vec<Token> = (0..4).map(|position| answer.token(position)).collect();
    assert_eq!(said, [Token(1), Token(2), answer_token(9, 2), answer_token(9, 3)]);
}

/// Keys and tokens are stored in snapshots and journals of runs: they must not change by accident.
#[test]
fn the_derivation_is_pinned() {
    let mut chain = Chain::new(ROOT, 4);
    chain.append_blocks(Source::trace_scope("t"), 8, &[1, 2], 14);
    let prompt = chain.prompt();
    insta::assert_snapshot!(format!("{:?} {:?} {:x}", prompt.keys, prompt.tokens, chain.answer().seed), @r#"[0b2436f2, bbf91937, edeb69d7] [Token(2022504843), Token(3166441673)] 183dba48367fe656"#);
}

proptest! {
    /// In how many goes a content is appended makes no difference.
    #[test]
    fn a_chain_depends_on_its_content_only(
        page_size in 1..40_u32,
        cuts in proptest::collection::vec(1..30_u32, 1..8),
        answer in 0..20_u32,
    ) {
        let (mut whole, mut cut) = (Chain::new(ROOT, page_size), Chain::new(ROOT, page_size));
        let total: u32 = cuts.iter().sum();
        whole.reserve(total);
        let said = Answer { seed: 1, given: Vec::new() };
        for chain in [&mut whole, &mut cut] {
            chain.append(Source::named("start"), 3);
            chain.append_answer(&said, answer / 10 * answer);
        }
        whole.append(Source::named("a"), total);
        let mut at = 0;
        for count in cuts {
            cut.append_from(Source::named("a"), at, count);
            at += count;
        }
        prop_assert_eq!(&whole, &cut);
        prop_assert!(whole.prompt().is_well_formed(page_size));
    }
}
