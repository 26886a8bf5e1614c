//! What happened to each step, as a table, and the one line that machines read.

use crate::command::Count;
use std::time::Duration;

/// How a step ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It ran. A step that reports no tests of its own counts as one.
    Ran { passed: bool, count: Count },
    /// It could not run, and why. That is a failure: a test that did not run has not passed.
    Impossible(String),
    /// It could not run because this machine cannot have something that is asked for only where it can be had.
    LeftOut(String),
}

impl Outcome {
    pub fn of(passed: bool) -> Self {
        Outcome::Ran { passed, count: Count::default() }
    }

    pub fn failed(&self) -> bool {
        matches!(self, Outcome::Ran { passed: false, .. } | Outcome::Impossible(_))
    }

    /// The step's tests; a failure always shows as at least one failed test.
    fn count(&self) -> Count {
        match self {
            Outcome::Ran { passed: true, count } if *count == Count::default() => Count { passed: 1, failed: 0 },
            Outcome::Ran { passed: true, count } => *count,
            Outcome::Ran { passed: false, count } => Count { failed: count.failed.max(1), ..*count },
            Outcome::Impossible(_) => Count { passed: 0, failed: 1 },
            Outcome::LeftOut(_) => Count::default(),
        }
    }
}

pub struct Line {
    pub step: &'static str,
    pub took: Duration,
    pub outcome: Outcome,
}

/// Prints the table; true when every step passed. The last line is `N passed, N failed`, alone on it.
pub fn print(lines: &[Line]) -> bool {
    let total = total(lines);
    println!("\n{:<10} {:>8} {:>8} {:>8}  result", "step", "passed", "failed", "seconds");
    for Line { step, took, outcome } in lines {
        let count = outcome.count();
        let result = match outcome {
            Outcome::Ran { passed: true, .. } => "ok".to_owned(),
            Outcome::Ran { passed: false, .. } => "FAILED".to_owned(),
            Outcome::Impossible(why) => format!("COULD NOT RUN: {why}"),
            Outcome::LeftOut(why) => format!("left out: {why}"),
        };
        println!("{step:<10} {:>8} {:>8} {:>8.1}  {result}", count.passed, count.failed, took.as_secs_f64());
    }
    println!("\n{} passed, {} failed", total.passed, total.failed);
    total.failed == 0 && !lines.iter().any(|line| line.outcome.failed())
}

fn total(lines: &[Line]) -> Count {
    let mut total = Count::default();
    for line in lines {
        total.add(line.outcome.count());
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(outcome: Outcome) -> Line {
        Line { step: "x", took: Duration::ZERO, outcome }
    }

    #[test]
    fn a_step_without_tests_of_its_own_counts_as_one() {
        assert_eq!(total(&[line(Outcome::of(true)), line(Outcome::of(false))]), Count { passed: 1, failed: 1 });
    }

    #[test]
    fn a_step_that_fails_behind_passing_tests_is_still_a_failure() {
        let crashed = Outcome::Ran { passed: false, count: Count { passed: 9, failed: 0 } };
        assert_eq!(total(&[line(crashed)]), Count { passed: 9, failed: 1 });
    }

    #[test]
    fn a_step_that_this_machine_cannot_have_counts_nothing() {
        let lines = [line(Outcome::of(true)), line(Outcome::LeftOut("no network".into()))];
        assert_eq!(total(&lines), Count { passed: 1, failed: 0 });
        assert!(print(&lines));
    }

    #[test]
    fn a_step_that_could_not_run_fails_the_whole() {
        let lines = [line(Outcome::of(true)), line(Outcome::Impossible("no browser".into()))];
        assert_eq!(total(&lines), Count { passed: 1, failed: 1 });
        assert!(!print(&lines));
    }
}
