//! The commands, one file each.

mod bench;
mod diff;
mod doctor;
mod inspect;
mod outputs;
mod plan;
mod probe;
mod process;
mod replay;
mod router;
mod serve;
mod sim;
mod swarm;
mod sweep;
mod trace;
mod up;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::settings::misspelt;

/// Prefill/decode disaggregated LLM serving that is simulated with the code that serves.
#[derive(Debug, Parser)]
#[command(name = "pd", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(Box<up::Up>),
    Serve(Box<serve::Serve>),
    Router(Box<router::Router>),
    Bench(Box<bench::Bench>),
    /// Run scenarios in virtual time and hold their gates against what happened.
    Sim(sim::Sim),
    /// Look for runs that go wrong: thousands of small random deployments, loads and faults, each from a seed.
    Swarm(swarm::Swarm),
    Plan(Box<plan::Plan>),
    Doctor(doctor::Doctor),
    Probe(Box<probe::Probe>),
    /// Live a recorded run again and compare every step.
    Replay(replay::Replay),
    /// Find the first thing in which two runs differ.
    Diff(diff::Diff),
    /// Look into recorded workloads, and convert them.
    Trace(trace::TraceArgs),
}

/// Runs the command line. 0: all went well; 1: a gate is broken; 2: bad input.
pub(crate) fn run() -> ExitCode {
    let command = Cli::command();
    let matches = command.clone().get_matches();
    let told = matches.subcommand().map_or(&matches, |(_, told)| told);
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match cli.command {
        Command::Up(_) | Command::Serve(_) | Command::Router(_) | Command::Bench(_) => {
            misspelt(&command).iter().for_each(|problem| eprintln!("warning: {problem}"));
        }
        Command::Sim(_)
        | Command::Swarm(_)
        | Command::Plan(_)
        | Command::Doctor(_)
        | Command::Probe(_)
        | Command::Replay(_)
        | Command::Diff(_)
        | Command::Trace(_) => {}
    }
    match cli.command {
        Command::Up(up) => up.run(told),
        Command::Serve(serve) => serve.run(told),
        Command::Router(router) => router.run(),
        Command::Bench(bench) => bench.run(),
        Command::Sim(sim) => sim.run(),
        Command::Swarm(swarm) => swarm.run(),
        Command::Plan(plan) => plan.run(),
        Command::Doctor(doctor) => doctor.run(),
        Command::Probe(probe) => probe.run(),
        Command::Replay(replay) => replay.run(),
        Command::Diff(diff) => diff.run(),
        Command::Trace(trace) => trace.run(),
    }
}

/// Tells what is wrong with the input.
fn bad_input(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(2)
}

#[cfg(test)]
mod tests;
