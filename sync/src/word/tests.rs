//! The word of a page, against a plain record of who is there.

use proptest::prelude::*;

use super::*;

/// What the word should say, written as plainly as possible.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
struct Model {
    lease: u32,
    readers: u32,
    local: bool,
    outside: Option<(u16, u32)>,
}

impl Model {
    fn is_free(self) -> bool {
        self.readers == 0 && !self.local && self.outside.is_none()
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Read,
    Unread,
    Write,
    Unwrite,
    Grant(u32),
    Revoke(u32),
    Enter(u32, u16),
    Leave,
    Bury(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let (generation, slot) = (1..4_u32, 0..3_u16);
    prop_oneof![
        Just(Step::Read),
        Just(Step::Unread),
        Just(Step::Write),
        Just(Step::Unwrite),
        generation.clone().prop_map(Step::Grant),
        generation.clone().prop_map(Step::Revoke),
        (generation, slot.clone()).prop_map(|(generation, slot)| Step::Enter(generation, slot)),
        Just(Step::Leave),
        slot.prop_map(Step::Bury),
    ]
}

proptest! {
    #[test]
    fn a_word_does_what_a_plain_record_does(steps in proptest::collection::vec(step(), 1..60)) {
        let word = PageWord::new();
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Read => {
                    let may = !model.local && model.outside.is_none();
                    prop_assert_eq!(word.read(), may);
                    model.readers += u32::from(may);
                }
                Step::Unread if model.readers > 0 => {
                    word.unread();
                    model.readers -= 1;
                }
                Step::Write => {
                    let may = model.is_free();
                    prop_assert_eq!(word.write(), may);
                    model.local |= may;
                }
                Step::Unwrite if model.local => {
                    word.unwrite();
                    model.local = false;
                }
                Step::Grant(generation) => {
                    let may = model.is_free() && model.lease == 0;
                    prop_assert_eq!(word.grant(generation), may);
                    if may {
                        model.lease = generation;
                    }
                }
                Step::Revoke(generation) => {
                    let is_it = model.lease == generation;
                    prop_assert_eq!(word.revoke(generation), is_it);
                    if is_it {
                        model.lease = 0;
                    }
                }
                Step::Enter(generation, slot) => {
                    let expected = match () {
                        () if model.lease != generation => Err(Denied::Fenced),
                        () if !model.is_free() => Err(Denied::Busy),
                        () => Ok(()),
                    };
                    prop_assert_eq!(word.enter(generation, slot), expected);
                    if expected.is_ok() {
                        model.outside = Some((slot, generation));
                    }
                }
                Step::Leave => {
                    if let Some((_, generation)) = model.outside.take() {
                        prop_assert_eq!(word.leave(generation), model.lease == generation);
                    }
                }
                Step::Bury(slot) => {
                    let is_it = model.outside.is_some_and(|(writer, _)| writer == slot);
                    prop_assert_eq!(word.bury(slot), is_it);
                    if is_it {
                        model.outside = None;
                    }
                }
                Step::Unread | Step::Unwrite => {}
            }
            prop_assert_eq!(word.generation(), model.lease);
            prop_assert_eq!(word.outside(), model.outside.map(|(slot, _)| slot));
        }
    }
}
