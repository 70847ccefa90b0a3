//! Changes one rule in the TOML text and keeps all the rest: comments, order, spelling. Knows nothing of the machine:
//! whether an entry is about the same device is the caller's word. What comes out parses, or nothing comes out.

use similar::TextDiff;
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, Value};

use super::value::Match;
use super::{Config, Mistake, Mode, Place};

/// Equal shares, as they are typed.
#[derive(Clone, Debug)]
pub struct Cut {
    /// How the device is shared; if it is not said, as it is now, else in time slices.
    pub mode: Option<Mode>,
    /// How many shares.
    pub replicas: u32,
    /// Their name, without the number.
    pub name: Option<String>,
    /// Memory of each, as `8GiB`.
    pub memory: Option<String>,
    /// Percent of the SMs of each.
    pub sm_percent: Option<u32>,
    /// Limits that nothing holds are accepted.
    pub advisory: bool,
}

/// The text with `device` cut into equal shares; with none, whole again. `covers` says of a match entry whether it is
/// about a device that `device` means; the first table that is so decides today, and the changed rule goes before it.
pub fn share(
    file: &str,
    text: &str,
    device: &str,
    covers: &dyn Fn(&Match) -> bool,
    cut: Option<&Cut>,
) -> Result<String, Mistake> {
    Config::parse(file, text)?;
    let refuse =
        |what: String, hint: &str| Mistake { place: Place::file(file), what, hint: Some(hint.to_owned()) };
    let matches = Match::parse(device).map_err(|why| refuse(why, "`divvy list` shows what there is"))?;
    let mut document: DocumentMut = text
        .parse()
        .map_err(|error: toml_edit::TomlError| refuse(error.message().to_owned(), "mend it by hand"))?;
    let gpus = document.entry("gpu").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
    let Some(gpus) = gpus.as_array_of_tables_mut() else {
        return Err(refuse(
            "gpu is one list in here, which is not edited".into(),
            "write each rule as a [[gpu]] table",
        ));
    };
    let is_unequal = |table: &Table| entries(table) == [matches.clone()] && table.contains_key("share");
    if cut.is_some() && gpus.iter().any(is_unequal) {
        let hint = "edit the file by hand, or make the device whole with --none first";
        return Err(refuse(format!("the shares of {device:?} are not all alike, and would be gone"), hint));
    }
    let changed = change(gpus, device, &matches, covers, cut);
    let mut trailing = changed.orphaned + document.trailing().as_str().unwrap_or_default();
    // What stands at the end of the file stands above a table that comes after it.
    let last = document
        .get_mut("gpu")
        .and_then(Item::as_array_of_tables_mut)
        .and_then(|gpus| gpus.iter_mut().last());
    if let Some(last) = last.filter(|_| changed.at_end && !trailing.trim().is_empty()) {
        let prefix = std::mem::take(&mut trailing) + prefix(last);
        last.decor_mut().set_prefix(prefix);
    }
    document.set_trailing(trailing);
    let mut changed = document.to_string();
    // The editor writes \n alone.
    if text.contains('\n') && text.matches('\n').count() == text.matches("\r\n").count() {
        changed = changed.replace("\r\n", "\n").replace('\n', "\r\n");
    }
    Config::parse(file, &changed)?;
    Ok(changed)
}

/// What a table says of its devices, shared or whole.
#[derive(Clone, Copy, Default, PartialEq)]
struct OwnAffair {
    graphics: Option<bool>,
    /// As a whole it is leased.
    exclusive: bool,
}

impl OwnAffair {
    fn of(table: &Table) -> Self {
        let set = |key: &str| table.get(key).and_then(Item::as_bool);
        Self { graphics: set("graphics"), exclusive: set("exclusive").unwrap_or(false) }
    }
}

/// What became of the tables.
#[derive(Default)]
struct Changed {
    /// Comments of a removed table that no other follows.
    orphaned: String,
    /// There is a new one at the end.
    at_end: bool,
}

/// Changes the tables.
fn change(
    gpus: &mut ArrayOfTables,
    device: &str,
    matches: &Match,
    covers: &dyn Fn(&Match) -> bool,
    cut: Option<&Cut>,
) -> Changed {
    let own = gpus.iter().position(|table| entries(table).iter().any(|entry| entry == matches));
    // In vain where an earlier table covers the device: then it moves there.
    let first = gpus.iter().position(|table| entries(table).iter().any(covers));
    let mode = cut.and_then(|cut| cut.mode).unwrap_or_else(|| present_mode(gpus, covers));
    let is_shared = |table: &Table| entries(table).iter().any(covers) && !is_whole(table);
    if cut.is_none() && !gpus.iter().any(is_shared) {
        return Changed::default();
    }
    let own_affair = first.and_then(|at| gpus.get(at)).map(OwnAffair::of).unwrap_or_default();
    if let Some(table) = own.filter(|_| first == own).and_then(|at| gpus.get_mut(at))
        && entries(table).len() == 1
    {
        match cut {
            Some(cut) => write_cut(table, cut, mode),
            None if is_whole(table) => {}
            None if own_affair != OwnAffair::default() => make_whole(table),
            None => return remove(gpus, own, matches, device, own_affair, covers),
        }
        return Changed::default();
    }
    match cut {
        None => remove(gpus, own, matches, device, own_affair, covers),
        Some(cut) => {
            let orphaned = own.and_then(|at| take_out(gpus, at, matches)).unwrap_or_default();
            let first = gpus.iter().position(|table| entries(table).iter().any(covers));
            insert(gpus, first, rule(device, own_affair, |table| write_cut(table, cut, mode)));
            Changed { orphaned, at_end: first.is_none() }
        }
    }
}

/// Takes the entry away, and says that the device is whole where another table would still share it.
fn remove(
    gpus: &mut ArrayOfTables,
    own: Option<usize>,
    matches: &Match,
    device: &str,
    own_affair: OwnAffair,
    covers: &dyn Fn(&Match) -> bool,
) -> Changed {
    let orphaned = own.and_then(|at| take_out(gpus, at, matches)).unwrap_or_default();
    let first = gpus.iter().position(|table| entries(table).iter().any(covers));
    // A table that stays may say other things of the device, or share it. Any of them: the device may be several, of which
    // an earlier table decides on some.
    let next = first.and_then(|at| gpus.get(at)).map(OwnAffair::of).unwrap_or_default();
    if next != own_affair || gpus.iter().any(|table| entries(table).iter().any(covers) && !is_whole(table)) {
        insert(gpus, first, rule(device, own_affair, |table| table["mode"] = toml_edit::value("whole")));
    }
    Changed { orphaned, at_end: false }
}

/// What a table's match list means. It has been parsed before, so every entry means something.
fn entries(table: &Table) -> Vec<Match> {
    let list = table.get("match").and_then(Item::as_array);
    list.into_iter().flatten().filter_map(|entry| Match::parse(entry.as_str()?).ok()).collect()
}

fn is_whole(table: &Table) -> bool {
    table.get("mode").and_then(Item::as_str).is_none_or(|mode| mode == "whole")
}

fn is_mps(table: &Table) -> bool {
    table.get("mode").and_then(Item::as_str) == Some("mps")
}

/// How the first table that is about the device has it shared.
fn present_mode(gpus: &ArrayOfTables, covers: &dyn Fn(&Match) -> bool) -> Mode {
    let first = gpus.iter().find(|table| entries(table).iter().any(covers));
    if first.is_some_and(is_mps) { Mode::Mps } else { Mode::TimeSlice }
}

/// Keys that the second text has not any more of what the first one says of `device` alone, which is shared by MPS.
pub fn removed_with_mps(before: &str, after: &str, device: &Match) -> Vec<&'static str> {
    let own = |text: &str| -> Option<Table> {
        let document: DocumentMut = text.parse().ok()?;
        let gpus = document.get("gpu")?.as_array_of_tables()?;
        gpus.iter().find(|table| entries(table) == [device.clone()]).cloned()
    };
    let (Some(before), Some(after)) = (own(before).filter(is_mps), own(after)) else { return Vec::new() };
    let keys = HELD_BY_MPS.iter().chain(&OF_MPS);
    keys.filter(|key| before.contains_key(key) && !after.contains_key(key)).copied().collect()
}

/// Takes the entry out of the table's list, and the table away with its last one. Comments of a table that goes move to
/// the next one, or are returned.
fn take_out(gpus: &mut ArrayOfTables, at: usize, matches: &Match) -> Option<String> {
    let list = gpus.get_mut(at)?.get_mut("match")?.as_array_mut()?;
    if list.len() > 1 {
        take_out_of_list(list, matches);
        return None;
    }
    let comments = comments(&gpus.remove(at));
    if comments.trim().is_empty() {
        return None;
    }
    let Some(next) = gpus.get_mut(at) else { return Some(comments) };
    let prefix = comments + prefix(next);
    next.decor_mut().set_prefix(prefix);
    None
}

/// What stands in front of a value belongs to it, but a comment there may be about the one before.
fn take_out_of_list(list: &mut Array, matches: &Match) {
    let is_it =
        |entry: &Value| entry.as_str().and_then(|text| Match::parse(text).ok()).as_ref() == Some(matches);
    let Some(index) = list.iter().position(is_it) else { return };
    let in_front = |value: &Value| {
        let prefix = value.decor().prefix().and_then(|prefix| prefix.as_str());
        prefix.unwrap_or_default().to_owned()
    };
    let gone = in_front(&list.remove(index));
    let trailing = list.trailing().as_str().unwrap_or_default().to_owned();
    let next = list.get(index).map_or(trailing, in_front);
    let kept = if gone.contains('#') {
        format!("{}{}", gone.trim_end(), on_new_line(&next))
    } else if index == 0 {
        // The list begins as it began.
        gone
    } else {
        next
    };
    match list.get_mut(index) {
        Some(next) => next.decor_mut().set_prefix(kept),
        None => list.set_trailing(kept),
    }
}

/// What follows a comment begins a line.
fn on_new_line(text: &str) -> String {
    if text.starts_with(['\n', '\r']) { text.to_owned() } else { format!("\n{text}") }
}

/// All comments of a table that goes: above it, between its keys, behind its values.
fn comments(table: &Table) -> String {
    let mut above = prefix(table).to_owned();
    let text = table.to_string();
    for line in text.lines() {
        if let Some(at) = comment_in(line) {
            above.push_str(&line[at..]);
            above.push('\n');
        }
    }
    let shares = table.get("share").and_then(Item::as_array_of_tables);
    above.extend(shares.into_iter().flatten().map(comments));
    above
}

/// Where a line's comment begins: behind its strings.
fn comment_in(line: &str) -> Option<usize> {
    let mut quote = None;
    for (at, c) in line.char_indices() {
        match (quote, c) {
            (None, '#') => return Some(at),
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), _) if open == c => quote = None,
            _ => {}
        }
    }
    None
}

fn prefix(table: &Table) -> &str {
    table.decor().prefix().and_then(|prefix| prefix.as_str()).unwrap_or_default()
}

/// Keys that are about shares.
const OF_SHARES: [&str; 15] = [
    "mode",
    "name",
    "replicas",
    "memory",
    "sm_percent",
    "advisory",
    "require",
    "priority",
    "start",
    "shm",
    "time_slice",
    "overcommit",
    "rename",
    "whole",
    "share",
];

/// Those that are about MPS alone, and a mistake elsewhere.
const OF_MPS: [&str; 3] = ["shm", "start", "priority"];

/// Limits that MPS holds and nothing else does.
const HELD_BY_MPS: [&str; 2] = ["memory", "sm_percent"];

/// Takes away all that makes shares.
fn make_whole(table: &mut Table) {
    for key in OF_SHARES {
        table.remove(key);
    }
}

fn rule(device: &str, own_affair: OwnAffair, fill: impl FnOnce(&mut Table)) -> Table {
    let mut table = Table::new();
    table["match"] = toml_edit::value(Array::from_iter([device]));
    fill(&mut table);
    if let Some(graphics) = own_affair.graphics {
        table["graphics"] = toml_edit::value(graphics);
    }
    if own_affair.exclusive && is_whole(&table) {
        table["exclusive"] = toml_edit::value(true);
    }
    table
}

/// Before the table at `before`, else at the end. What stands right above that table is about it and stays there; what
/// a blank line parts from it is about the file.
fn insert(gpus: &mut ArrayOfTables, before: Option<usize>, mut table: Table) {
    let Some(at) = before else {
        table.decor_mut().set_prefix(if gpus.is_empty() { "" } else { "\n" });
        gpus.push(table);
        return;
    };
    if let Some(next) = gpus.get_mut(at) {
        let above = prefix(next).to_owned();
        let (file, own) = match above.rfind("\n\n") {
            Some(blank) => above.split_at(blank + 2),
            None if at == 0 => ("", above.as_str()),
            None => above.split_at(above.find(|c| c != '\n').unwrap_or(above.len())),
        };
        table.decor_mut().set_prefix(file);
        next.decor_mut().set_prefix(format!("\n{own}"));
    }
    gpus.insert(at, table);
}

/// Sets the keys that are asked for and leaves the others. Each value keeps what stands beside it.
fn write_cut(table: &mut Table, cut: &Cut, mode: Mode) {
    let word = match mode {
        Mode::Whole => "whole",
        Mode::TimeSlice => "time-slice",
        Mode::Mps => "mps",
    };
    if mode != Mode::Mps && is_mps(table) {
        for key in HELD_BY_MPS {
            table.remove(key);
        }
    }
    let asked = [
        ("mode", Some(word.into())),
        ("name", cut.name.as_deref().map(Value::from)),
        ("replicas", Some(i64::from(cut.replicas).into())),
        ("memory", cut.memory.as_deref().map(Value::from)),
        ("sm_percent", cut.sm_percent.map(|percent| i64::from(percent).into())),
        ("advisory", cut.advisory.then(|| true.into())),
    ];
    for (key, value) in asked {
        if let Some(value) = value {
            set(table, key, value);
        }
    }
    for key in OF_MPS.iter().filter(|_| mode != Mode::Mps) {
        table.remove(key);
    }
    if mode != Mode::TimeSlice {
        table.remove("time_slice");
    }
    // Of shares alone it says nothing, and is a mistake.
    if table.get("whole").and_then(Item::as_bool) != Some(true) {
        table.remove("exclusive");
    }
}

fn set(table: &mut Table, key: &str, mut value: Value) {
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        None => {
            table.insert(key, Item::Value(value));
        }
    }
}

/// The change for people to read: a unified diff; empty if nothing changes.
pub fn difference(file: &str, before: &str, after: &str) -> String {
    TextDiff::from_lines(before, after).unified_diff().context_radius(3).header(file, file).to_string()
}

#[cfg(test)]
mod tests;
