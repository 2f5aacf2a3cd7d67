//! `pd replay`: lives a journal again and compares every step.

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use pd_sim::journal::Reader;
use pd_sim::journal::replay::{ReplayError, Replayed, replay};
use pd_sim::words;

use super::bad_input;

#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// A journal that --journal of `pd sim`, `pd serve` or `pd router` wrote.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Replay {
    /// Replays the file; 1 if a step answers differently, 2 if the journal cannot be read to its end.
    pub(crate) fn run(&self) -> ExitCode {
        let path = self.file.display();
        let opened = File::open(&self.file).map_err(Into::into).and_then(Reader::buffered);
        let mut journal = match opened {
            Ok(journal) => journal,
            Err(error) => {
                return bad_input(&format!("{path} {error}"));
            }
        };
        let header = journal.header().clone();
        let mut replayed = Replayed::default();
        let result = replay(&mut journal, &mut replayed);
        let steps = words::plural(replayed.total(), "step");
        let until = words::at(replayed.until);
        let (lives, machines) = (replayed.lives, replayed.steps.len() as u64);
        println!(
            "{}: {steps} of {} in {} agree, up to {until}",
            header.subject,
            words::plural(machines, "machine"),
            if lives == 1 { "1 life".to_owned() } else { format!("{} lives", words::count(lives)) },
        );
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(ReplayError::Diverged(divergence)) => {
                print!("{divergence}");
                if !header.is_ours() {
                    println!(
                        "  note: recorded by pd {} with machines {}, replayed with {}: other code may answer differently",
                        header.pd,
                        header.build,
                        pd_core::BUILD
                    );
                }
                ExitCode::from(1)
            }
            Err(error @ (ReplayError::Journal(_) | ReplayError::Impossible { .. })) => {
                bad_input(&format!("{path} {error}"))
            }
        }
    }
}
