//! x
use super::{Mistake, Mode, value::Match};
pub struct Cut {
    pub mode: Mode,
    pub replicas: u32,
    pub name: Option<String>,
    pub memory: Option<String>,
    pub sm_percent: Option<u32>,
    pub advisory: bool,
}
pub fn share(
    _f: &str,
    t: &str,
    _d: &str,
    _c: &dyn Fn(&Match) -> bool,
    _cut: Option<&Cut>,
) -> Result<String, Mistake> {
    Ok(t.into())
}
pub fn difference(_f: &str, _b: &str, _a: &str) -> String {
    String::new()
}
