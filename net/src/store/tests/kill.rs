//! A process that is killed while it writes: this test binary, started once more.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::*;

/// Names the folder for the process that is going to be killed.
const FOLDER: &str = "PD_STORE_KILLED";

#[test]
fn a_process_killed_while_it_writes_loses_nothing_it_acknowledged() {
    if let Ok(dir) = std::env::var(FOLDER) {
        write_for_ever(Path::new(&dir));
    }
    let dir = folder();
    let mut acknowledged = Vec::new();
    let mut next = 0;
    for round in 1..4 {
        let name = "a_process_killed_while_it_writes_loses_nothing_it_acknowledged";
        let mut child = Command::new(std::env::current_exe().expect("this test binary"))
            .args([name, "--nocapture", "--test-threads=1"])
            .env(FOLDER, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a process");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let numbers = lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("durable ")?.parse::<u64>().ok());
        let mut killed = false;
        // What it says after it was killed was written before: it counts, too.
        for (count, number) in numbers.enumerate() {
            acknowledged.push(number);
            if !killed && count == 37 * round {
                child.kill().expect("SIGKILL");
                killed = true;
            }
        }
        child.wait().expect("it has ended");
        assert!(killed, "it wrote until it was killed");
        let (store, report) = open(dir.path());
        assert!(report.damaged + report.torn <= 2 && report.foreign == 0, "what two threads were at: {report}");
        for number in &acknowledged {
            page(*number).read(&store).unwrap_or_else(|fault| panic!("page {number} is lost ({fault:?}): {report}"));
        }
        next = next.max(acknowledged.len());
        assert!(next > 37 * round, "new pages in each round");
    }
}

fn page(number: u64) -> Page {
    Page::new(number, [300, 20000, 16384, 5000][number as usize % 4])
}

/// Two threads write pages that are not there and say so, until somebody kills them.
fn write_for_ever(dir: &Path) -> ! {
    let (store, _) =
        Store::open(StoreConfig { poll: std::time::Duration::from_millis(1), ..config(dir) }).expect("opens");
    let turn = |parity: u64| {
        for number in (parity..).step_by(2) {
            let page = page(number);
            if !store.contains(&[page.key], ROOT)[0] {
                page.write(&store).expect("room");
                println!("\ndurable {number}");
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| turn(0));
        turn(1);
    });
    unreachable!("numbers do not end before somebody kills this")
}
