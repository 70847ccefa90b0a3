use super::*;
pub fn parse(_name: &str, _text: &str) -> Result<Config, Mistake> {
    todo!()
}
