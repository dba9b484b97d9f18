//! Which migrations live, as text: how the cluster's side tells the hypervisor's.

use std::collections::BTreeSet;

/// One uid a line, and at the end how many there are: half a list would turn the living into leftovers.
pub fn write_living(living: &BTreeSet<String>) -> String {
    let lines: String = living.iter().map(|uid| format!("{uid}\n")).collect();
    format!("{lines}# {} living\n", living.len())
}

/// Reads what [`write_living`] wrote. The error is for people.
pub fn read_living(text: &str) -> Result<BTreeSet<String>, String> {
    let mut lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let end = lines.pop().and_then(|line| line.strip_prefix("# ")?.strip_suffix(" living")?.parse::<usize>().ok());
    match end {
        Some(count) if count == lines.len() => Ok(lines.into_iter().map(str::to_owned).collect()),
        Some(count) => Err(format!("the list names {} and says that it has {count}: make it again", lines.len())),
        None => {
            Err("the list does not end as `drover doctor --living` prints it: it is cut short, make it again".into())
        }
    }
}
