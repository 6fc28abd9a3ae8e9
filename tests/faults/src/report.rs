//! What was tried, as a table.

use std::{collections::BTreeMap, io::Write, time::Duration};

/// What [`Row::hit`] says where the scenario came to its end before the fault.
pub const MISSED: &str = "(did not come to it)";

/// One fault that was tried.
#[derive(Debug)]
pub struct Row {
    /// What the user did.
    pub scenario: String,
    /// What went wrong.
    pub fault: String,
    /// What exactly it hit.
    pub hit: String,
    /// How long it took until all was as it should be.
    pub took: Duration,
    /// Why it is not as it should be.
    pub result: Result<(), String>,
}

/// Prints a line at once, for who watches.
pub fn say(line: &str) {
    // Nobody reads on: nothing to be done.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Prints a line for each scenario and kind of fault; whether all is well.
pub fn print(rows: &[Row]) -> bool {
    let mut groups: BTreeMap<(&str, &str), Vec<&Row>> = BTreeMap::new();
    for row in rows {
        let numbered = row.fault.rsplit_once(' ').filter(|(_, number)| number.parse::<u32>().is_ok());
        let kind = numbered.map_or(row.fault.as_str(), |(kind, _)| kind);
        groups.entry((&row.scenario, kind)).or_default().push(row);
    }
    let [tried, hit, good, median, longest] = ["tried", "hit", "good", "median", "longest"];
    say(&format!("\n{:<10} {:<44} {tried:>6} {hit:>6} {good:>6} {median:>8} {longest:>8}", "scenario", "fault"));
    let mut idle = 0;
    for ((scenario, kind), rows) in &groups {
        let good = rows.iter().filter(|row| row.result.is_ok()).count();
        let hit = rows.iter().filter(|row| row.hit != MISSED).count();
        // A run has some writes or events more or less than another; where half are missing it is a fault of the test.
        idle += usize::from(hit * 2 < rows.len());
        let mut took: Vec<_> = rows.iter().map(|row| row.took.as_secs_f64()).collect();
        took.sort_by(f64::total_cmp);
        let (median, longest) = (took[took.len() / 2], took[took.len() - 1]);
        let tried = rows.len();
        say(&format!("{scenario:<10} {kind:<44} {tried:>6} {hit:>6} {good:>6} {median:>6.1} s {longest:>6.1} s"));
    }
    let failed = rows.iter().filter(|row| row.result.is_err()).count();
    say(&format!("\n{} tried, {failed} failed", rows.len()));
    if idle > 0 {
        say(&format!(
            "{idle} kinds of faults were seldom met: the undisturbed run had more writes or events than the others"
        ));
    }
    failed == 0 && idle == 0
}

impl Row {
    /// One line.
    pub fn say(&self) {
        let fault = format!("{} {}", self.fault, self.hit);
        let result = if self.result.is_ok() { "ok" } else { "FAILED" };
        say(&format!("{:<10} {fault:<90} {result} {:.1} s", self.scenario, self.took.as_secs_f64()));
        if let Err(why) = &self.result {
            say(&format!("    {why}"));
        }
    }
}
