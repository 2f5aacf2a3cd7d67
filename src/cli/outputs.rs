//! The files that `pd sim` writes beside its page: where they go, and what is wrong with that.
//!
//! Nothing is watched, kept or opened unless one of the flags is given. What cannot work is said before the first run.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use clap::Args;
use pd_sim::record::Outcome;
use pd_sim::report::collect::{Collector, Plan};
use pd_sim::report::html::{self, About};
use pd_sim::report::perfetto::Perfetto;
use pd_sim::report::tables::{FILES, Tables};
use pd_sim::setup::Setup;
use pd_sim::world::World;

#[derive(Debug, Args)]
pub(super) struct Outputs {
    /// Write a trace for ui.perfetto.dev: lanes of each worker, links, tiers, requests.
    ///
    /// With several runs, one file for each: its name is put before the extension (FILE-restart_reload-hole.ext).
    #[arg(long, value_name = "FILE")]
    perfetto: Option<PathBuf>,
    /// Write a page with charts that needs no network; several runs as with --perfetto.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write tables into this folder, which is made if there is none; several runs get a folder each in it.
    ///
    /// requests.csv (one row per request: times in s, phases in ms, tokens by tier, end), misses.csv (tokens by request
    /// and reason), forwards.csv and transfers.csv (each command: issued, begun on its device, ended, what it moved),
    /// tiers.csv and links.csv (values over time: mean, min, max, last of each sample), workers.csv (counters). The first
    /// line of each names the columns with their units; an empty field is something that never happened.
    #[arg(long, value_name = "DIR")]
    csv: Option<PathBuf>,
}

/// Where the files of one run go.
#[derive(Debug)]
pub(super) struct Places {
    perfetto: Option<PathBuf>,
    html: Option<PathBuf>,
    csv: Option<PathBuf>,
}

/// A run that is watched for its files.
#[derive(Debug)]
pub(super) struct Watched {
    collector: Rc<RefCell<Collector>>,
    places: Places,
}

impl Outputs {
    /// True if no file is asked for.
    pub(super) const fn is_empty(&self) -> bool {
        self.perfetto.is_none() && self.html.is_none() && self.csv.is_none()
    }

    /// The first of the flags that was given.
    pub(super) fn first(&self) -> Option<&'static str> {
        let flags =
            [("--perfetto", self.perfetto.is_some()), ("--html", self.html.is_some()), ("--csv", self.csv.is_some())];
        flags.into_iter().find_map(|(flag, is_given)| is_given.then_some(flag))
    }

    /// What is wrong with the places, before anything runs.
    pub(super) fn check(&self) -> Result<(), String> {
        for (flag, file) in [("--perfetto", &self.perfetto), ("--html", &self.html)] {
            let Some(file) = file else { continue };
            if file.is_dir() {
                return Err(format!("{flag} {}: this is a folder; name a file in it", file.display()));
            }
            let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
            match folder {
                Some(folder) if !folder.exists() => {
                    return Err(format!(
                        "{flag} {}: there is no folder {}; make it first",
                        file.display(),
                        folder.display()
                    ));
                }
                Some(folder) if !folder.is_dir() => {
                    return Err(format!("{flag} {}: {} is not a folder", file.display(), folder.display()));
                }
                Some(_) | None => {}
            }
        }
        if self.perfetto.is_some() && self.perfetto == self.html {
            return Err("--perfetto and --html name the same file".to_owned());
        }
        match &self.csv {
            Some(folder) if folder.exists() && !folder.is_dir() => {
                Err(format!("--csv {}: this is a file; name a folder for the tables", folder.display()))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Where the files of a run go. `used` holds the names of earlier runs.
    pub(super) fn places(&self, case: &str, is_only: bool, used: &mut BTreeSet<String>) -> Places {
        let mut name = case.replace(['/', '\\'], "-");
        let mut count = 1;
        while !used.insert(name.clone()) {
            count += 1;
            name = format!("{}-{count}", case.replace(['/', '\\'], "-"));
        }
        let file = |path: &PathBuf| if is_only { path.clone() } else { beside(path, &name) };
        Places {
            perfetto: self.perfetto.as_ref().map(file),
            html: self.html.as_ref().map(file),
            csv: self.csv.as_ref().map(|folder| if is_only { folder.clone() } else { folder.join(&name) }),
        }
    }
}

impl Watched {
    /// Opens the files of a run that is to begin.
    pub(super) fn begin(places: Places, setup: &Setup) -> Result<Self, String> {
        let plan = Plan::of(setup);
        let mut collector = Collector::new(plan.clone());
        if let Some(path) = &places.perfetto {
            collector = collector.with_perfetto(Perfetto::new(Box::new(create(path)?), &plan));
        }
        if let Some(folder) = places.csv.clone() {
            fs::create_dir_all(&folder)
                .map_err(|error| format!("the folder {} cannot be made: {error}", folder.display()))?;
            if let Some(file) = FILES.iter().map(|name| folder.join(name)).find(|path| path.is_dir()) {
                return Err(format!("{}: this is a folder; move it out of the way", file.display()));
            }
            let open = move |name: &str| -> io::Result<Box<dyn Write>> {
                Ok(Box::new(BufWriter::new(File::create(folder.join(name))?)))
            };
            collector = collector.with_tables(Tables::new(Box::new(open)).map_err(|error| error.to_string())?);
        }
        Ok(Self { collector: Rc::new(RefCell::new(collector)), places })
    }

    /// Watches a world from here on.
    pub(super) fn watch(&self, world: &mut World) {
        world.observe(Box::new(Rc::clone(&self.collector)));
    }

    /// Writes what waits for the end.
    pub(super) fn finish(&self, about: &About<'_>, outcome: &Outcome) -> Result<(), String> {
        let mut collector = self.collector.borrow_mut();
        collector.finish(outcome).map_err(|error| error.to_string())?;
        if let Some(path) = &self.places.html {
            let page = html::page(about, &collector, outcome);
            let mut file = create(path)?;
            file.write_all(page.as_bytes())
                .and_then(|()| file.flush())
                .map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
        }
        Ok(())
    }

    /// The files that were written.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        let Places { perfetto, html, csv } = &self.places;
        [perfetto, html, csv].into_iter().flatten().map(PathBuf::as_path)
    }
}

fn create(path: &Path) -> Result<BufWriter<File>, String> {
    File::create(path).map(BufWriter::new).map_err(|error| format!("{} cannot be written: {error}", path.display()))
}

/// `out/page.html` for a run as `out/page-run.html`.
fn beside(path: &Path, run: &str) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let end = path.extension().map_or_else(String::new, |end| format!(".{}", end.to_string_lossy()));
    path.with_file_name(format!("{stem}-{run}{end}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs(file: &str) -> Outputs {
        Outputs { perfetto: None, html: Some(file.into()), csv: Some("tables".into()) }
    }

    #[test]
    fn several_runs_get_a_file_and_a_folder_each() {
        let mut used = BTreeSet::new();
        let outputs = outputs("out/page.v1.html");
        let first = outputs.places("restart_reload/hole", false, &mut used);
        assert_eq!(first.html, Some("out/page.v1-restart_reload-hole.html".into()));
        assert_eq!(first.csv, Some("tables/restart_reload-hole".into()));
        // Another file of the same name in another folder.
        let second = outputs.places("restart_reload/hole", false, &mut used);
        assert_eq!(second.html, Some("out/page.v1-restart_reload-hole-2.html".into()));
        let only = outputs.places("restart_reload", true, &mut BTreeSet::new());
        assert_eq!((only.html, only.csv), (Some("out/page.v1.html".into()), Some("tables".into())));
    }

    #[test]
    fn places_that_cannot_work_are_refused_with_a_reason() {
        let folder = env!("CARGO_MANIFEST_DIR");
        let file = format!("{folder}/Cargo.toml");
        let problem = |outputs: Outputs| outputs.check().expect_err("this cannot work");
        assert!(problem(outputs(folder)).contains("this is a folder"));
        assert!(problem(outputs(&format!("{folder}/nowhere/page.html"))).contains("there is no folder"));
        assert!(problem(outputs(&format!("{file}/page.html"))).contains("is not a folder"));
        let tables = Outputs { perfetto: None, html: None, csv: Some(file.into()) };
        assert!(problem(tables).contains("this is a file"));
        let same = Outputs { perfetto: Some("page".into()), html: Some("page".into()), csv: None };
        assert!(problem(same).contains("same file"));
        assert_eq!(outputs("page.html").check(), Ok(()));
    }
}
