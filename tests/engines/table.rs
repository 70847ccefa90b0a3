//! The tables of docs/engines.md, a row for each thing that a spec can ask for, a column for each engine, a table for each
//! Debian suite; and that of docs/images.md. Trials measure cells of a column, and they must be as the page has it.

use std::fmt::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The row of versions. They move with the suite: they are written, and not compared.
pub const VERSION: &str = "version";

/// Cells of one run are written one after the other.
static DOCUMENT: Mutex<()> = Mutex::new(());

/// Where a table is.
#[derive(Debug)]
pub struct Place<'a> {
    /// The page's name in docs.
    pub page: &'a str,
    /// The section's heading.
    pub heading: &'a str,
    /// The heads of its columns, in their order, whichever is done first.
    pub columns: &'a [&'a str],
    /// All its rows, in their order.
    pub rows: &'a [&'a str],
    /// The trials that write it, as `cargo test` knows them.
    pub trials: &'a str,
    /// Whether another run writes it, and this one only compares.
    pub is_only_compared: bool,
}

/// One table: the heads of its columns, and rows of a name and as many cells.
#[derive(Debug, Default)]
struct Table {
    columns: Vec<String>,
    rows: Vec<(String, Vec<String>)>,
}

impl Place<'_> {
    /// Compares what was measured with these cells of the column. It is written too: into the page of that name in the
    /// build directory, and with UPDATE_GOLDEN=1 into docs itself.
    #[track_caller]
    pub fn compare(&self, column: &str, cells: &[(&str, String)]) {
        let _alone = DOCUMENT.lock().unwrap_or_else(PoisonError::into_inner);
        let document = crate::ground::project_dir().join("docs").join(self.page);
        let text = read(&document).unwrap_or_else(|error| panic!("docs/{}: {error}", self.page));
        if !self.is_only_compared {
            let measured = crate::ground::build_dir().join(self.page);
            // One of an earlier run may be of an earlier page.
            let so_far = read(&measured).ok().filter(|page| page.contains(&self.title()));
            let so_far = so_far.unwrap_or_else(|| without_tables(&text));
            write(&measured, &self.filled(&so_far, column, cells));
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                return write(&document, &self.filled(&text, column, cells));
            }
        }
        let (_, section, _) = self.split(&text);
        let table = Table::parse(section);
        let mut differences = String::new();
        for (row, cell) in cells.iter().filter(|(row, _)| *row != VERSION) {
            let documented = table.get(row, column);
            if documented != cell {
                let _ = writeln!(differences, "  {row}\n    - {documented}\n    + {cell}");
            }
        }
        for (row, _) in table.rows.iter().filter(|(row, _)| !self.rows.contains(&row.as_str())) {
            let _ = writeln!(differences, "  {row}\n    which is measured no more");
        }
        assert!(
            differences.is_empty(),
            "{column}, in docs/{} under \"{}\" (-) and as measured (+):\n{differences}\
             UPDATE_GOLDEN=1 cargo test --test engines -- {}    writes the page anew",
            self.page,
            self.heading,
            self.trials
        );
    }

    fn title(&self) -> String {
        format!("\n## {}\n", self.heading)
    }

    /// The page before the section with its heading, the section, and the page after it.
    fn split<'a>(&self, text: &'a str) -> (&'a str, &'a str, &'a str) {
        let heading = self.title();
        let Some(start) = text.find(&heading).map(|at| at + heading.len()) else {
            panic!("docs/{} has no{heading}", self.page)
        };
        let end = text[start..].find("\n## ").map_or(text.len(), |at| start + at);
        (&text[..start], &text[start..end], &text[end..])
    }

    /// The page with the cells in the column.
    fn filled(&self, text: &str, column: &str, cells: &[(&str, String)]) -> String {
        let (before, section, after) = self.split(text);
        let old = Table::parse(section);
        let mut table =
            Table { columns: self.columns.iter().map(ToString::to_string).collect(), rows: Vec::new() };
        for row in self.rows {
            let measured = cells.iter().find(|(name, _)| name == row).map(|(_, cell)| cell.as_str());
            let cell = |name: &String| match measured {
                Some(cell) if name == column => cell.to_owned(),
                _ => old.get(row, name).to_owned(),
            };
            table.rows.push(((*row).to_owned(), table.columns.iter().map(cell).collect()));
        }
        let prose = without_tables(section);
        let gap = if prose.trim_end().is_empty() { "\n" } else { "\n\n" };
        format!("{before}{}{gap}{}{after}", prose.trim_end(), table.render())
    }
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

    /// Without columns that are empty: a suite may lack an engine.
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
