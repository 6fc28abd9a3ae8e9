//! Other people's sentences, fit to stand in ours: without what changes from one try to the next and tells nobody anything
//! (UIDs, addresses, folders of the kubelet, wrappings of remote calls).

/// Wrappings with which one component repeats another.
const WRAPPINGS: [&str; 5] =
    ["rpc error: code = ", "failed to pull and unpack image ", "Get \"http", "dial tcp ", "Head \"http"];

/// One line without noise and without a full stop, so that a sentence can go on after it.
pub(super) fn plain(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = WRAPPINGS.iter().fold(text, |text, wrapping| unwrap(&text, wrapping));
    let words = text.split(' ').filter(|word| !is_uid(word)).map(without_folder);
    words.collect::<Vec<_>>().join(" ").trim_end_matches(['.', ' ']).to_owned()
}

/// Takes a wrapping and its argument, up to what it wraps, out.
fn unwrap(text: &str, wrapping: &str) -> String {
    let end = if wrapping.contains("code = ") { " desc = " } else { ": " };
    let mut text = text.to_owned();
    while let Some(start) = text.find(wrapping) {
        let Some(length) = text[start + wrapping.len()..].find(end) else { break };
        text.replace_range(start..start + wrapping.len() + length + end.len(), "");
    }
    text
}

/// A UID, also in brackets.
fn is_uid(word: &str) -> bool {
    let word = word.trim_matches(|c: char| !c.is_ascii_hexdigit());
    let lengths = word.split('-').map(str::len);
    lengths.eq([8, 4, 4, 4, 12]) && word.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

/// A folder of one pod on its node holds the pod's UID: only what it is named matters.
fn without_folder(word: &str) -> &str {
    if word.contains("/kubelet/pods/") { word.rsplit('/').next().unwrap_or(word) } else { word }
}

/// The line of a log that says most: the last one that tells of an error, else the last one, without its time and level.
pub(super) fn last_line(log: &str) -> Option<String> {
    let is_telling = |line: &&str| {
        let line = line.to_ascii_lowercase();
        line.contains("error") || line.contains("panicked")
    };
    let lines = || log.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("note: run with"));
    let line = lines().rfind(is_telling).or_else(|| lines().next_back()).map(without_time)?;
    let line = ["ERROR ", "WARN ", "INFO "].iter().fold(line, |line, level| line.strip_prefix(level).unwrap_or(line));
    Some(plain(line)).filter(|line| !line.is_empty())
}

fn without_time(line: &str) -> &str {
    match line.split_once(' ') {
        Some((time, rest))
            if time.ends_with('Z') && time.contains('T') && time.starts_with(|c: char| c.is_ascii_digit()) =>
        {
            rest.trim_start()
        }
        _ => line,
    }
}

/// What stands in quotation marks after `before`.
pub(super) fn quoted_after<'a>(text: &'a str, before: &str) -> Option<&'a str> {
    let rest = &text[text.find(before)? + before.len()..];
    rest.strip_prefix('"')?.split_once('"').map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_taken_out_and_words_stay() {
        for (text, words) in [
            ("0/2 nodes are available: 2 Insufficient cpu.", "0/2 nodes are available: 2 Insufficient cpu"),
            ("rpc error: code = NotFound desc = no such image\n", "no such image"),
            (
                "Get \"http://10.244.0.9:9090/readyz\": dial tcp 10.244.0.9:9090: connect: connection refused",
                "connect: connection refused",
            ),
            (
                "Unable to mount /var/lib/kubelet/pods/5a3d9c1e-9c2e-4f6e-8a41-0b51d0a3c111/volumes/model for 5a3d9c1e-9c2e-4f6e-8a41-0b51d0a3c111 now",
                "Unable to mount model for now",
            ),
        ] {
            assert_eq!(plain(text), words);
        }
    }

    #[test]
    fn the_last_line_of_a_log_has_no_time() {
        let log = "2026-11-25T01:02:03.000004Z  INFO listening\n2026-11-25T01:02:04.5Z ERROR it broke\nnote: run with `RUST_BACKTRACE=1`\n";
        assert_eq!(last_line(log).as_deref(), Some("it broke"));
        let usage =
            "error: unexpected argument '--x' found\n\nUsage: server serve\n\nFor more information, try '--help'.\n";
        assert_eq!(last_line(usage).as_deref(), Some("error: unexpected argument '--x' found"));
        assert_eq!(last_line("first\nSegmentation fault\n").as_deref(), Some("Segmentation fault"));
        assert_eq!(last_line(" \n"), None);
    }

    #[test]
    fn names_are_found_in_quotation_marks() {
        assert_eq!(quoted_after("configmap \"nowhere\" not found", "configmap "), Some("nowhere"));
        assert_eq!(quoted_after("configmap references", "configmap "), None);
    }
}
