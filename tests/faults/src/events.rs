//! The body of a watch: one JSON object a line, in pieces of any size.

use serde_json::Value;

/// Puts lines together from the pieces of a body.
#[derive(Default)]
pub struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Takes a piece in and gives out the lines that are complete now, each with its end.
    pub fn take(&mut self, piece: &[u8]) -> Vec<Vec<u8>> {
        self.rest.extend_from_slice(piece);
        let mut lines = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            lines.push(self.rest.drain(..=end).collect());
        }
        lines
    }
}

/// What a line of a watch tells, as `MODIFIED Pod m-1`; `None` for bookmarks and errors, which change nothing.
pub fn told(line: &[u8]) -> Option<String> {
    let event: Value = serde_json::from_slice(line).ok()?;
    let type_ = event["type"].as_str().filter(|type_| matches!(*type_, "ADDED" | "MODIFIED" | "DELETED"))?;
    let object = &event["object"];
    Some(format!(
        "{type_} {} {}",
        object["kind"].as_str().unwrap_or("object"),
        object["metadata"]["name"].as_str().unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_whatever_the_pieces() {
        let mut lines = Lines::default();
        assert!(lines.take(b"{\"a\":").is_empty());
        assert_eq!(lines.take(b"1}\n{}\n{"), [b"{\"a\":1}\n".to_vec(), b"{}\n".to_vec()]);
        assert_eq!(lines.take(b"}\n"), [b"{}\n".to_vec()]);
    }

    #[test]
    fn only_changes_count_as_events() {
        let line = br#"{"type":"ADDED","object":{"kind":"Pod","metadata":{"name":"a"}}}"#;
        assert_eq!(told(line).as_deref(), Some("ADDED Pod a"));
        assert_eq!(told(br#"{"type":"BOOKMARK","object":{"kind":"Pod"}}"#), None);
        assert_eq!(told(b"{"), None);
    }
}
