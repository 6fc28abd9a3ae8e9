//! Paths that stay inside a folder.
//!
//! Models and archives name files, and whoever made them may be hostile: a name that is taken from one becomes a path only
//! through this. What it cannot know is what lies on the disk: links are for whoever opens the file.

use std::fmt;
use std::path::Path;

const LONGEST: usize = 1024;

/// A relative path of plain names with `/` between them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Inside(String);

impl Inside {
    /// `None`: the text is no such path, or leads out. `.` and empty parts, as in `./weights`, are dropped.
    pub fn parse(text: &str) -> Option<Self> {
        let is_plain = |part: &str| part != ".." && part.len() <= 255 && part.chars().all(is_plain_character);
        let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        let is_inside = !text.starts_with('/') && !parts.is_empty() && text.len() <= LONGEST;
        (is_inside && parts.iter().all(|part| is_plain(part))).then(|| Self(parts.join("/")))
    }

    /// The name that a model's file has where nothing says another one.
    pub fn model() -> Self {
        Self("model.onnx".to_owned())
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its parts, from the outside in.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// The last part.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// The folder that holds it, if that is not the outermost.
    pub fn folder(&self) -> Option<Self> {
        self.0.rsplit_once('/').map(|(folder, _)| Self(folder.to_owned()))
    }

    /// `other`, seen from the folder that holds this.
    #[must_use]
    pub fn beside(&self, other: &Self) -> Self {
        self.folder().map_or_else(|| other.clone(), |folder| Self(format!("{folder}/{other}")))
    }
}

impl AsRef<Path> for Inside {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl fmt::Display for Inside {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Neither of those that mean something to a system or a shell, nor of those that mean something to ONNX Runtime, which reads a
/// location with asterisks as an address in its own memory.
fn is_plain_character(character: char) -> bool {
    !character.is_control() && !matches!(character, '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_are_taken_and_needless_parts_dropped() {
        for (text, path) in [("w.bin", "w.bin"), ("./w", "w"), ("a//b c/./w", "a/b c/w"), ("..w", "..w"), ("ä", "ä")]
        {
            assert_eq!(Inside::parse(text).unwrap().as_str(), path);
        }
        let path = Inside::parse("a/b/w").unwrap();
        assert_eq!((path.name(), path.folder().unwrap().as_str()), ("w", "a/b"));
        assert_eq!(path.beside(&Inside::parse("c/d").unwrap()).as_str(), "a/b/c/d");
        assert_eq!(Inside::parse("m").unwrap().beside(&path).as_str(), "a/b/w");
    }

    #[test]
    fn what_leads_out_or_means_something_else_is_not_taken() {
        let long = "a".repeat(256);
        for text in [
            "",
            ".",
            "/",
            "..",
            "../w",
            "a/../w",
            "/etc/passwd",
            "a\\..\\w",
            "C:w",
            "a\0b",
            "a\nb",
            "*/_ORT_MEM_ADDR_/*",
            &long,
            &"a/".repeat(600),
        ] {
            assert_eq!(Inside::parse(text), None, "{text:?}");
        }
    }
}
