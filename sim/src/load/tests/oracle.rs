//! Traces as they are replayed, and the hit rates of an LRU cache study of the same file recomputed from page keys.

use super::*;
use crate::trace::BUCKET_NS;

#[test]
fn a_replay_is_the_trace_with_times_scaled() {
    let text = "[[load]]\nkind = 'trace'\nfile = 'AzureLLMInferenceTrace_conv_2023.csv.gz'\nformat = 'azure'\nspeed = 2.0\nrequests = 1000\nstart = '1s'";
    let arrivals = play(&mut loads(text, 1), 0);
    assert_eq!(arrivals.len(), 1000);
    assert_eq!([arrivals[0].0, arrivals[1].0], [Instant(SECOND), Instant(SECOND + 4_314_579_000 / 2)]);
    let (_, second) = &arrivals[1];
    assert_eq!((second.prompt.length, second.counted_tokens, second.output_tokens), (396, 396, 109));
    let first_keys: BTreeSet<_> = arrivals.iter().filter_map(|(_, arrival)| arrival.prompt.keys.first()).collect();
    let with_keys = arrivals.iter().filter(|(_, arrival)| arrival.prompt.length >= PAGE).count();
    assert_eq!(first_keys.len(), with_keys, "opaque rows share nothing");
}

#[test]
fn jitter_stays_in_its_bucket_and_can_be_left_out() {
    let replay = |jitter: bool, seed| {
        let text = format!(
            "[[load]]\nkind = 'trace'\nfile = 'conversation_trace.jsonl.gz'\nformat = 'mooncake'\nrequests = 500\njitter = {jitter}"
        );
        play(&mut loads_of(&text, seed, 512), 0)
    };
    let (plain, spread, other) = (replay(false, 1), replay(true, 1), replay(true, 2));
    assert_ne!(spread, other);
    for ((at, recorded), (moved, arrival)) in plain.iter().zip(&spread) {
        assert_eq!(moved.0 / BUCKET_NS, (at.0 + 5_000_000) / BUCKET_NS);
        assert_eq!(recorded.prompt, arrival.prompt);
    }
}

#[test]
fn known_tokens_come_with_their_prompt_and_their_answer() {
    let text = "[[load]]\nkind = 'trace'\nfile = 'sharegpt300_llama31_8b.jsonl.gz'\nformat = 'tokens'";
    let arrivals = play(&mut loads(text, 1), 0);
    assert_eq!(arrivals.len(), 300);
    for (_, arrival) in &arrivals {
        let prompt = &arrival.prompt;
        assert_eq!(prompt.tokens.len(), prompt.length as usize);
        assert_eq!(prompt.keys, pd_core::key::page_keys(prompt.root, PAGE, &prompt.tokens));
        assert_eq!(arrival.answer.given.len(), arrival.output_tokens as usize);
    }
}

/// An infinite cache hits the same tokens at page 64 whichever way they are keyed; a partial last block counts only
/// with its full pages.
#[test]
fn smaller_pages_find_the_full_pages_of_the_common_blocks() {
    let rows =
        crate::trace::Trace::read(&traces().join("conversation_trace.jsonl.gz"), crate::trace::Format::Mooncake, None)
            .expect("trace")
            .rows;
    let mut seen_ids: BTreeSet<u64> = BTreeSet::new();
    let mut expected = 0;
    for row in &rows {
        let crate::trace::Content::Blocks { ids, .. } = &row.content else { panic!("blocks") };
        let common = ids.iter().take_while(|id| seen_ids.contains(*id)).count() as u32;
        expected += u64::from((common * 512).min(row.prompt_tokens) / 64);
        seen_ids.extend(ids);
    }
    let mut seen = BTreeSet::new();
    let mut hits = 0;
    for (_, arrival) in replayed(64, false) {
        hits += arrival.prompt.keys.iter().take_while(|key| seen.contains(*key)).count() as u64;
        seen.extend(arrival.prompt.keys);
    }
    assert_eq!(hits, expected);
}

#[test]
fn a_padded_replay_reproduces_the_published_hit_rates_of_an_lru_cache() {
    // Page keys as small numbers: the model of a cache below is then an array.
    let mut numbers: BTreeMap<PageKey, u32> = BTreeMap::new();
    let mut requests = Vec::new();
    for (_, arrival) in replayed(512, true) {
        assert_eq!(arrival.prompt.length % 512, 1);
        let pages: Vec<u32> = arrival
            .prompt
            .keys
            .iter()
            .map(|key| {
                let next = numbers.len() as u32;
                *numbers.entry(*key).or_insert(next)
            })
            .collect();
        requests.push((pages, arrival.counted_tokens));
    }
    assert_eq!(numbers.len(), 182_790);
    let rates = [328_000, 1_000_000, 4_000_000, 16_000_000, u64::MAX].map(|tokens| {
        let rate = hit_rate(&requests, numbers.len(), tokens / 512);
        format!("{rate:.2}")
    });
    assert_eq!(rates, ["4.33", "5.43", "17.83", "33.60", "37.36"]);
}

/// Per cent of tokens found by a cache of `capacity` pages that evicts what was touched longest ago; the pages of a
/// request are touched from its last to its first, so that tails go before heads.
fn hit_rate(requests: &[(Vec<u32>, u32)], pages: usize, capacity: u64) -> f64 {
    let mut touched = vec![0_u64; pages];
    let mut by_age: BTreeMap<u64, u32> = BTreeMap::new();
    let (mut clock, mut hit_tokens, mut tokens) = (0, 0, 0);
    for (request, counted) in requests {
        let hits = request.iter().take_while(|page| touched[**page as usize] > 0).count() as u64;
        hit_tokens += (hits * 512).min(u64::from(*counted));
        tokens += u64::from(*counted);
        for page in request.iter().rev() {
            clock += 1;
            by_age.remove(&touched[*page as usize]);
            by_age.insert(clock, *page);
            touched[*page as usize] = clock;
        }
        while by_age.len() as u64 > capacity {
            let (_, page) = by_age.pop_first().expect("more pages than the capacity");
            touched[page as usize] = 0;
        }
    }
    hit_tokens as f64 * 100.0 / tokens as f64
}

fn replayed(page_size: u32, pad: bool) -> impl Iterator<Item = (Instant, Arrival)> {
    let text = format!(
        "[[load]]\nkind = 'trace'\nfile = 'conversation_trace.jsonl.gz'\nformat = 'mooncake'\njitter = false\npad = {pad}"
    );
    let mut load = loads_of(&text, 1, page_size);
    std::iter::from_fn(move || load.next_arrival())
}
