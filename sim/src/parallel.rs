//! Independent jobs on several threads, results in the order of the jobs.
//!
//! Each job runs in one thread from its begin to its end; which thread takes which job depends on the machine, what comes
//! out does not. After the first failure no new jobs are taken; jobs are taken in order, so the failure that is reported
//! is the same with any number of threads.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

/// Threads that this machine runs at once.
#[must_use]
pub fn threads() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Does all jobs; `each` hears of every end in the order of ends, on the caller's thread.
///
/// # Errors
/// That of the first job, in their order, that failed.
///
/// # Panics
/// If a job panics.
pub fn in_order<J: Sync, R: Send, E: Send>(
    threads: NonZeroUsize,
    jobs: &[J],
    work: impl Fn(&J) -> Result<R, E> + Sync,
    each: &mut dyn FnMut(usize, &R) -> Result<(), E>,
) -> Result<Vec<R>, E> {
    let next = AtomicUsize::new(0);
    let is_over = AtomicBool::new(false);
    let (sender, receiver) = mpsc::channel();
    let mut results: Vec<Option<R>> = jobs.iter().map(|_| None).collect();
    let mut failure: Option<(usize, E)> = None;
    thread::scope(|scope| {
        for _ in 0..threads.get().min(jobs.len()) {
            let sender = sender.clone();
            let (next, is_over, work) = (&next, &is_over, &work);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(index) else { break };
                    let result = work(job);
                    if result.is_err() {
                        is_over.store(true, Ordering::Relaxed);
                    }
                    if sender.send((index, result)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for (index, result) in receiver {
            let heard = result.and_then(|result| {
                each(index, &result)?;
                results[index] = Some(result);
                Ok(())
            });
            if let Err(error) = heard {
                is_over.store(true, Ordering::Relaxed);
                if failure.as_ref().is_none_or(|(first, _)| index < *first) {
                    failure = Some((index, error));
                }
            }
        }
    });
    match failure {
        Some((_, error)) => Err(error),
        None => Ok(results.into_iter().map(|result| result.expect("each job has ended")).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_jobs_with_any_number_of_threads() {
        let jobs: Vec<u64> = (0..100).collect();
        for threads in [1, 2, 7] {
            let mut heard = 0;
            let results = in_order(
                NonZeroUsize::new(threads).unwrap(),
                &jobs,
                |job| Ok::<_, ()>((0..(100 - job) * 1000).fold(*job, |sum, one| sum ^ std::hint::black_box(one))),
                &mut |_, _| {
                    heard += 1;
                    Ok(())
                },
            );
            let want: Vec<u64> =
                jobs.iter().map(|job| (0..(100 - job) * 1000).fold(*job, |sum, one| sum ^ one)).collect();
            assert_eq!(results, Ok(want), "{threads} threads");
            assert_eq!(heard, 100);
        }
    }

    #[test]
    fn the_first_failure_is_reported_and_nothing_is_begun_after_it() {
        let jobs: Vec<u64> = (0..1000).collect();
        for threads in [1, 4] {
            let begun = AtomicUsize::new(0);
            let result = in_order(
                NonZeroUsize::new(threads).unwrap(),
                &jobs,
                |job| {
                    begun.fetch_add(1, Ordering::Relaxed);
                    if job % 10 == 3 { Err(*job) } else { Ok(()) }
                },
                &mut |_, ()| Ok(()),
            );
            assert_eq!(result, Err(3), "{threads} threads");
            assert!(begun.into_inner() < 1000);
        }
    }

    #[test]
    fn no_jobs_are_no_results() {
        assert_eq!(in_order(threads(), &[], |(): &()| Ok::<(), ()>(()), &mut |_, ()| Ok(())), Ok(Vec::new()));
    }
}
