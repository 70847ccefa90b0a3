//! docs/attacks.md holds the table of attacks, row by row.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::ATTACKS;

const HEAD: &str = "| attack | what it copies | what happens |\n|---|---|---|\n";

/// Fails where the page has another table. UPDATE_GOLDEN=1 writes it anew.
pub fn compare() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/attacks.md");
    let page = fs::read_to_string(&path).unwrap_or_else(|error| panic!("docs/attacks.md: {error}"));
    let is_row = |line: &&str| line.starts_with('|');
    let documented: String = page.lines().filter(is_row).map(|line| format!("{line}\n")).collect();
    let table = table();
    if documented == table {
        return;
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let start = page.find("\n|").map_or(page.len(), |at| at + 1);
        let rest: String = page[start..].lines().skip_while(is_row).map(|line| format!("{line}\n")).collect();
        return fs::write(&path, format!("{}{table}{rest}", &page[..start])).unwrap();
    }
    for (documented, measured) in documented.lines().zip(table.lines()) {
        assert_eq!(
            documented, measured,
            "docs/attacks.md; UPDATE_GOLDEN=1 cargo test --test attacks writes it anew"
        );
    }
    panic!("docs/attacks.md has more or fewer rows than the table");
}

fn table() -> String {
    let mut table = HEAD.to_owned();
    for attack in ATTACKS {
        let mut happens: Vec<_> = attack.happens.to_vec();
        happens.sort();
        let happens: Vec<_> = happens.iter().map(ToString::to_string).collect();
        let separator = if attack.exactly { "; " } else { " or " };
        let _ = writeln!(table, "| {} | {} | {} |", attack.name, attack.copies, happens.join(separator));
    }
    table
}
