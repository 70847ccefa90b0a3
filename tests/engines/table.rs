//! The tables of docs/engines.md: a row for each thing that a spec can ask for, a column for each engine, a table for each
//! Debian suite. Trials fill their engine's column; with UPDATE_GOLDEN=1 they write it, else they compare.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crate::engine::ENGINES;

/// Versions move with the suite: they are written, and not compared.
const VERSIONS: &str = "version";

/// Columns of one run are written one after the other.
static DOCUMENT: Mutex<()> = Mutex::new(());

/// One table: the heads of its columns, and rows of a name and as many cells.
#[derive(Debug, Default)]
struct Table {
    columns: Vec<String>,
    rows: Vec<(String, Vec<String>)>,
}

fn document() -> PathBuf {
    crate::ground::project_dir().join("docs/engines.md")
}

/// Compares what an engine did with its column, or writes the column.
pub fn compare(suite: &str, engine: &str, cells: &[(&str, String)]) {
    let _alone = DOCUMENT.lock().unwrap_or_else(PoisonError::into_inner);
    let text = std::fs::read_to_string(document()).unwrap_or_default();
    let heading = format!("\n## Debian {suite}\n");
    let Some((before, section)) = text.split_once(&heading) else {
        panic!("docs/engines.md has no{heading}")
    };
    let end = section.find("\n## ").unwrap_or(section.len());
    let (section, after) = section.split_at(end);
    let mut table = Table::parse(section);
    // In the order of the trials, whichever is done first.
    table.order();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        for (row, cell) in cells {
            *table.cell(row, engine) = cell.clone();
        }
        let prose: String =
            section.lines().filter(|line| !line.starts_with('|')).map(|line| format!("{line}\n")).collect();
        let text = format!("{before}{heading}{}\n{}{after}", prose.trim_end(), table.render());
        std::fs::write(document(), text).unwrap_or_else(|error| panic!("docs/engines.md: {error}"));
        return;
    }
    let mut differences = String::new();
    for (row, cell) in cells.iter().filter(|(row, _)| *row != VERSIONS) {
        let documented = table.cell(row, engine);
        if documented != cell {
            let _ = writeln!(differences, "{row}: {cell}, and docs/engines.md says {documented:?}");
        }
    }
    assert!(
        differences.is_empty(),
        "{engine} of Debian {suite}:\n{differences}UPDATE_GOLDEN=1 writes the page anew"
    );
}

impl Table {
    fn parse(section: &str) -> Self {
        let cells = |line: &str| {
            line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>()
        };
        let mut lines = section.lines().filter(|line| line.starts_with('|')).map(cells);
        let columns = lines.next().map(|head| head[1..].to_vec()).unwrap_or_default();
        let rows = lines.skip(1).map(|cells| (cells[0].clone(), cells[1..].to_vec())).collect();
        Self { columns, rows }
    }

    /// Gives every engine its column, in the engines' own order.
    fn order(&mut self) {
        let columns = ENGINES.iter().map(|engine| engine.name.to_owned()).collect();
        let mut ordered = Self { columns, rows: Vec::new() };
        for (row, cells) in &self.rows {
            for (column, cell) in self.columns.iter().zip(cells) {
                *ordered.cell(row, column) = cell.clone();
            }
        }
        *self = ordered;
    }

    fn cell(&mut self, row: &str, column: &str) -> &mut String {
        let at = self.columns.iter().position(|name| name == column).unwrap_or_else(|| {
            self.columns.push(column.to_owned());
            self.columns.len() - 1
        });
        if !self.rows.iter().any(|(name, _)| name == row) {
            self.rows.push((row.to_owned(), Vec::new()));
        }
        let (_, cells) = self.rows.iter_mut().find(|(name, _)| name == row).unwrap_or_else(|| unreachable!());
        if cells.len() <= at {
            cells.resize(at + 1, String::new());
        }
        &mut cells[at]
    }

    /// Without the columns of engines that this suite has not.
    fn render(&self) -> String {
        let filled = |at: &usize| {
            self.rows.iter().any(|(_, cells)| cells.get(*at).is_some_and(|cell| !cell.is_empty()))
        };
        let columns: Vec<usize> = (0..self.columns.len()).filter(filled).collect();
        let line = |first: &str, cells: &[String]| {
            let cells: Vec<&str> =
                columns.iter().map(|at| cells.get(*at).map_or("", String::as_str)).collect();
            format!("| {first} | {} |\n", cells.join(" | "))
        };
        let rule = format!("|---|{}\n", "---|".repeat(columns.len()));
        let rows: String = self.rows.iter().map(|(name, cells)| line(name, cells)).collect();
        line("", &self.columns) + &rule + &rows
    }
}
