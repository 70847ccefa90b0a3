//! docs/attacks.md holds the table of attacks, row by row.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::common::DIR;
use crate::{ATTACKS, LIBRARY};

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
            "docs/attacks.md; UPDATE_GOLDEN=1 cargo test -p divvy-hooks --test attacks writes it anew"
        );
    }
    panic!("docs/attacks.md has more or fewer rows than the table");
}

fn table() -> String {
    let mut table = HEAD.to_owned();
    for attack in ATTACKS {
        let happens = attack.happens.iter().map(|(outcome, groups)| match places(groups).as_str() {
            "" => outcome.to_string(),
            places => format!("{outcome}: {places}"),
        });
        let happens: Vec<_> = happens.collect();
        let separator = if attack.exactly { "; " } else { ", or " };
        let _ = writeln!(table, "| {} | {} | {} |", attack.name, attack.copies, happens.join(separator));
    }
    table
}

/// Places in the order of the table, in the page's letters.
fn places(groups: &[&str]) -> String {
    let short = |place: &str| {
        let name = place.replace(LIBRARY, "LIBRARY").replace(DIR, "DIR");
        format!("`{name}`")
    };
    let places: Vec<_> = groups.iter().flat_map(|places| places.split(' ')).map(short).collect();
    places.join(", ")
}
