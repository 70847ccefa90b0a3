//! The tables of docs/engines.md: a row for each thing that a spec can ask for, a column for each engine, a table for
//! each Debian suite. Trials measure their engine's column, and it must be as the page has it.

use std::fmt::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::engine::ENGINES;

/// The row of versions. They move with the suite: they are written, and not compared.
pub const VERSION: &str = "version";

/// Columns of one run are written one after the other.
static DOCUMENT: Mutex<()> = Mutex::new(());

/// One table: the heads of its columns, and rows of a name and as many cells.
#[derive(Debug, Default)]
struct Table {
    columns: Vec<String>,
    rows: Vec<(String, Vec<String>)>,
}

/// Compares what an engine did with its column. What was measured is written too: into engines.md of the build directory,
/// and with UPDATE_GOLDEN=1 into docs/engines.md itself, unless the run is only there `to_compare`.
pub fn compare(suite: &str, engine: &str, cells: &[(&str, String)], to_compare: bool) {
    let _alone = DOCUMENT.lock().unwrap_or_else(PoisonError::into_inner);
    let document = crate::ground::project_dir().join("docs/engines.md");
    let text = read(&document).unwrap_or_else(|error| panic!("docs/engines.md: {error}"));
    if !to_compare {
        let measured = crate::ground::build_dir().join("engines.md");
        let so_far = read(&measured).unwrap_or_else(|_| without_tables(&text));
        write(&measured, &filled(&so_far, suite, engine, cells));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            return write(&document, &filled(&text, suite, engine, cells));
        }
    }
    let (_, section, _) = split(&text, suite);
    let table = Table::parse(section);
    let mut differences = String::new();
    for (row, cell) in cells.iter().filter(|(row, _)| *row != VERSION) {
        let documented = table.get(row, engine);
        if documented != cell {
            let _ = writeln!(differences, "  {row}\n    - {documented}\n    + {cell}");
        }
    }
    for (row, _) in table.rows.iter().filter(|(row, _)| !cells.iter().any(|(measured, _)| measured == row)) {
        let _ = writeln!(differences, "  {row}\n    which is measured no more");
    }
    assert!(
        differences.is_empty(),
        "{engine} of Debian {suite}, in docs/engines.md (-) and as measured (+):\n{differences}\
         UPDATE_GOLDEN=1 cargo test --test engines -- honours    writes the page anew"
    );
}

fn without_tables(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with('|')).map(|line| format!("{line}\n")).collect()
}

fn read(path: &Path) -> std::io::Result<String> {
    std::fs::read_to_string(path)
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// The page before a suite's section with its heading, the section, and the page after it.
fn split<'a>(text: &'a str, suite: &str) -> (&'a str, &'a str, &'a str) {
    let heading = format!("\n## Debian {suite}\n");
    let Some(start) = text.find(&heading).map(|at| at + heading.len()) else {
        panic!("docs/engines.md has no{heading}")
    };
    let end = text[start..].find("\n## ").map_or(text.len(), |at| start + at);
    (&text[..start], &text[start..end], &text[end..])
}

/// The page with the cells in the engine's column. Rows are those of the trial, in its order.
fn filled(text: &str, suite: &str, engine: &str, cells: &[(&str, String)]) -> String {
    let (before, section, after) = split(text, suite);
    let old = Table::parse(section);
    // In the order of the engines, whichever is done first.
    let mut table = Table { columns: ENGINES.map(|engine| engine.name.to_owned()).into(), rows: Vec::new() };
    for (row, cell) in cells {
        let of_engine = |name: &String| if name == engine { cell } else { old.get(row, name) }.to_owned();
        table.rows.push(((*row).to_owned(), table.columns.iter().map(of_engine).collect()));
    }
    let prose = without_tables(section);
    let gap = if prose.trim_end().is_empty() { "\n" } else { "\n\n" };
    format!("{before}{}{gap}{}{after}", prose.trim_end(), table.render())
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

    /// A cell, empty where there is none.
    fn get(&self, row: &str, column: &str) -> &str {
        let cells = self.rows.iter().find(|(name, _)| name == row).map(|(_, cells)| cells);
        let at = self.columns.iter().position(|name| name == column);
        cells.zip(at).and_then(|(cells, at)| cells.get(at)).map_or("", String::as_str)
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
