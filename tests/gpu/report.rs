//! What the checks found, as rows of a table that can be pasted into a report: each question, how it was asked, and what
//! the answer was.

use std::sync::Mutex;

use anyhow::Result;
use libtest_mimic::{Completion, Failed};

use super::ground::Ground;

/// What an answer is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// ARCHITECTURE.md says so.
    Holds,
    /// ARCHITECTURE.md says otherwise.
    Fails,
    /// It says nothing, or nothing that one machine could contradict.
    Measured,
    /// It could not be asked here.
    Skipped,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Fails => "FAILS",
            Self::Measured => "measured",
            Self::Skipped => "skipped",
        }
    }
}

#[derive(Debug)]
struct Row {
    check: &'static str,
    question: String,
    asked: String,
    answer: String,
    verdict: Verdict,
}

/// All rows of a run.
#[derive(Debug, Default)]
pub struct Report {
    rows: Mutex<Vec<Row>>,
}

/// Where one check writes.
#[derive(Debug)]
pub struct Rows<'a> {
    check: &'static str,
    report: &'a Report,
}

impl Rows<'_> {
    /// A figure, whatever it is.
    pub fn measured(&mut self, question: &str, asked: &str, answer: impl ToString) {
        self.row(question, asked, answer.to_string(), Verdict::Measured);
    }

    /// An answer that ARCHITECTURE.md gives too.
    pub fn claim(&mut self, question: &str, asked: &str, answer: impl ToString, holds: bool) {
        self.row(question, asked, answer.to_string(), if holds { Verdict::Holds } else { Verdict::Fails });
    }

    /// What cannot be asked here, and why.
    pub fn skipped(&mut self, question: &str, reason: &str) {
        self.row(question, "", reason.to_owned(), Verdict::Skipped);
    }

    fn row(&mut self, question: &str, asked: &str, answer: String, verdict: Verdict) {
        let row = Row {
            check: self.check,
            question: question.to_owned(),
            asked: asked.to_owned(),
            answer,
            verdict,
        };
        self.report.rows.lock().unwrap().push(row);
    }
}

impl Report {
    /// Runs a check: failed if it could not be carried out or an answer contradicts; ignored if nothing could be asked.
    pub fn run(
        &self,
        name: &'static str,
        ground: &Ground,
        check: impl FnOnce(&Ground, &mut Rows<'_>) -> Result<()>,
    ) -> Result<Completion, Failed> {
        let outcome = check(ground, &mut Rows { check: name, report: self });
        let mut rows = self.rows.lock().unwrap();
        if let Err(error) = outcome {
            let answer = format!("it could not be carried through: {error:#}");
            let (question, asked) = (String::from("all of it"), String::new());
            rows.push(Row { check: name, question, asked, answer, verdict: Verdict::Fails });
        }
        let own: Vec<&Row> = rows.iter().filter(|row| row.check == name).collect();
        let failed: Vec<String> = own
            .iter()
            .filter(|row| row.verdict == Verdict::Fails)
            .map(|row| format!("{} {} ({})", row.question, row.answer, row.asked))
            .collect();
        if !failed.is_empty() {
            return Err(failed.join("\n").into());
        }
        if own.iter().all(|row| row.verdict == Verdict::Skipped) {
            let reason = own.first().map_or("nothing to ask", |row| row.answer.as_str());
            return Ok(Completion::ignored_with(reason.to_owned()));
        }
        Ok(Completion::Completed)
    }

    /// Prints the table.
    pub fn print(&self, ground: &Ground) {
        let gpu = &ground.gpu;
        let kind = if gpu.is_mig { "its first MIG device" } else { "whole" };
        let kept = if ground.mode_is_fixed().is_some() { "kept" } else { "restored at the end" };
        let (major, minor) = gpu.capability;
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        println!("\n## MPS on a real GPU, divvy {}\n", env!("CARGO_PKG_VERSION"));
        println!(
            "{}, {kind}, compute capability {major}.{minor}, {} MiB of which the driver keeps {}, {} SMs; driver {}, CUDA {}.{}; \
             Linux {}; compute mode {:?}, {kept}\n",
            gpu.name,
            gpu.memory_mib,
            gpu.reserved_mib,
            ground.sms().map_or_else(|_| "unknown".into(), |sms| sms.to_string()),
            gpu.driver,
            gpu.cuda / 1000,
            gpu.cuda % 1000 / 10,
            kernel.trim(),
            gpu.mode,
        );
        println!("| check | question | asked | answer | |\n|---|---|---|---|---|");
        for row in self.rows.lock().unwrap().iter() {
            let cells = [row.check, &row.question, &row.asked, &row.answer, row.verdict.word()];
            println!("| {} |", cells.map(|cell| cell.replace('|', "\\|").replace('\n', " / ")).join(" | "));
        }
    }
}
