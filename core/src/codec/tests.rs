//! The two binary forms: what is written is read, and no byte makes a reader panic.
#![allow(clippy::disallowed_types, reason = "what the macro of proptest expands to")]

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::event::{Event, KvChange, Tier};
use crate::id::{OpId, PageKey, RequestId, Token};
use crate::op::{Input, Object, Outcome, Output};

fn compact<T: Codec>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    value.encode(&mut Compact(&mut bytes));
    bytes
}

#[test]
fn a_small_number_is_one_byte_and_the_largest_is_ten() {
    for (value, length) in [(0, 1), (127, 1), (128, 2), (u64::from(u32::MAX), 5), (u64::MAX, 10)] {
        let bytes = compact(&value);
        assert_eq!(bytes.len(), length, "{value}");
        assert_eq!(u64::decode(&mut Source::compact(&bytes)), Ok(value));
    }
}

#[test]
fn a_number_of_too_many_bits_is_an_error() {
    let eleven = vec![0xff; 11];
    assert_eq!(Source::compact(&eleven).u64(), Err(DecodeError::Varint { at: 0 }));
    let mut just_too_large = vec![0xff; 9];
    just_too_large.push(2);
    assert_eq!(Source::compact(&just_too_large).u64(), Err(DecodeError::Varint { at: 0 }));
    assert_eq!(Source::compact(&compact(&(1_u64 << 32))).u32(), Err(DecodeError::Varint { at: 0 }));
    assert_eq!(Source::compact(&[0x80]).u64(), Err(DecodeError::Short { at: 1 }));
}

/// Digests and wire frames of keys are older than their raw form.
#[test]
fn a_key_is_two_words_with_the_upper_one_first_in_both_forms() {
    let key = PageKey(0x0102_0304_0506_0708_1112_1314_1516_1718);
    let words = (0x0102_0304_0506_0708_u64, 0x1112_1314_1516_1718_u64);
    assert_eq!(key.to_bytes(), words.to_bytes());
    assert_eq!(compact(&key), words.to_bytes());
    assert_eq!(PageKey::from_bytes(&words.to_bytes()), Ok(key));
    let mut by_word = crate::digest::Digest::new();
    by_word.value(&words);
    let mut by_key = crate::digest::Digest::new();
    by_key.value(&key);
    assert_eq!(by_key, by_word);
}

fn outputs() -> impl Strategy<Value = Output> {
    let object = (any::<u128>(), any::<u32>()).prop_map(|(key, page)| Object {
        key: PageKey(key),
        parent: PageKey(!key),
        page: crate::id::HostPage(page),
        tokens: vec![Token(page)],
    });
    prop_oneof![
        (any::<u64>(), prop::collection::vec(object, 0..4)).prop_map(|(seq, objects)| Output::Start {
            op: OpId { epoch: crate::id::Epoch(3), seq },
            after: Vec::new(),
            command: crate::op::Command::Prefetch(objects),
        }),
        (any::<u64>(), any::<u32>()).prop_map(|(request, token)| Output::Emit {
            request: RequestId(request),
            event: Event::Token(Token(token))
        }),
        any::<u128>().prop_map(|key| Output::Publish(vec![KvChange::Removed { key: PageKey(key), tier: Tier::Host }])),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read(output in outputs()) {
        prop_assert_eq!(Output::from_bytes(&output.to_bytes()), Ok(output.clone()));
        let bytes = compact(&output);
        let mut source = Source::compact(&bytes);
        prop_assert_eq!(Output::decode(&mut source), Ok(output));
        prop_assert_eq!(source.rest(), 0);
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Input::decode(&mut Source::compact(&bytes));
        let _ = Input::decode(&mut Source::new(&bytes));
        let _ = Outcome::decode(&mut Source::compact(&bytes));
    }
}
