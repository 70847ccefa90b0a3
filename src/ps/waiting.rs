//! Who waits, for people and beside the rows: lines below the table.

use crate::plan::VENDOR;
use crate::serve::waiting::Waits;
use crate::sys;

use super::table::{short_id, short_name};

/// `WAITING  docker container q3, for shared, since 15:47, until 16:17, 1 ahead`; `now` in seconds since the epoch.
pub fn line(waits: &Waits, now: u64) -> String {
    let engine = waits.engine.as_ref().map(|engine| format!("{engine} ")).unwrap_or_default();
    let name = waits.name.clone().unwrap_or_else(|| short_id(&waits.id));
    let asked: Vec<_> = waits.asked.iter().map(|asked| short_name(&format!("{VENDOR}/{asked}"))).collect();
    let (since, until) = (sys::local_time(waits.since, now), sys::local_time(waits.until, now));
    let turn = match waits.ahead {
        0 => "next in turn".to_owned(),
        ahead => format!("{ahead} ahead"),
    };
    format!(
        "WAITING  {engine}container {name}, for {}, since {since}, until {until}, {turn}",
        asked.join(" and ")
    )
}
