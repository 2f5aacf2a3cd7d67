//! The doorway, where it is shut.

use pd_sync::Inbox;

use super::*;

#[test]
fn a_job_is_refused_where_the_worker_does_not_keep_up_or_has_ended() {
    let inbox: Mailbox = Arc::new(Inbox::new(1));
    let why = |refused: Result<(), Refused>| match refused {
        Err(Refused::Unavailable(why)) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(hand_in(&inbox, Told::Input(Input::Tick)), Ok(()));
    assert!(why(hand_in(&inbox, Told::Input(Input::Tick))).contains("inbox is full"));
    inbox.close();
    assert!(why(hand_in(&inbox, Told::Input(Input::Tick))).contains("has stopped"));
}
