//! The inbox with real threads; all interleavings are in `tests/loom.rs`.

use std::time::Duration;

use super::*;

#[test]
fn items_come_in_the_order_of_each_sender_and_none_is_lost() {
    const EACH: u32 = 2_000;
    let inbox = Inbox::new(3);
    let mut next = [0_u32; 4];
    std::thread::scope(|scope| {
        for sender in 0..next.len() {
            let inbox = &inbox;
            scope.spawn(move || (0..EACH).for_each(|number| inbox.send((sender, number)).unwrap()));
        }
        for _ in 0..EACH as usize * next.len() {
            let Received::Item((sender, number)) = inbox.recv_until(None) else { panic!("closed or late") };
            assert_eq!(number, next[sender]);
            next[sender] += 1;
        }
    });
    assert!(inbox.is_empty());
}

#[test]
fn a_full_inbox_refuses_or_lets_wait() {
    let inbox = Inbox::new(1);
    inbox.send(1).unwrap();
    assert_eq!(inbox.try_send(2), Err(Refused::Full(2)));
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| inbox.send(2));
        assert_eq!(inbox.recv_until(None), Received::Item(1));
        assert_eq!(inbox.recv_until(None), Received::Item(2));
        assert_eq!(sender.join().unwrap(), Ok(()));
    });
}

#[test]
fn a_deadline_ends_the_wait_but_hides_no_item() {
    let inbox = Inbox::new(2);
    let past = Instant::now();
    assert_eq!(inbox.recv_until(Some(past)), Received::<u32>::Timeout);
    assert_eq!(inbox.recv_until(Some(past + Duration::from_millis(2))), Received::Timeout);
    inbox.send(7).unwrap();
    assert_eq!(inbox.recv_until(Some(past)), Received::Item(7));
}

#[test]
fn closing_refuses_senders_and_hands_out_what_is_inside() {
    let inbox = Inbox::new(1);
    inbox.send(1).unwrap();
    std::thread::scope(|scope| {
        let blocked = scope.spawn(|| inbox.send(2));
        // Either it waits for room by now, or it comes later and finds the inbox closed.
        inbox.close();
        assert_eq!(blocked.join().unwrap(), Err(Closed(2)));
    });
    assert_eq!(inbox.try_send(3), Err(Refused::Closed(3)));
    assert_eq!(inbox.recv_until(None), Received::Item(1));
    assert_eq!(inbox.recv_until(None), Received::Closed);
}
