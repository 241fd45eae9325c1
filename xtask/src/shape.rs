//! The size of rooms: a file or a function that has grown too large is hard to live in.

use crate::sources;
use anyhow::{Result, bail};
use std::path::Path;

/// A file that is longer is split into modules.
const FILE_LINES_MAX: usize = 1000;
/// A function should fit a screen; beyond this it is split.
const FUNCTION_LINES_MAX: usize = 100;
/// A test is a story and may take a little longer to tell.
const STORY_LINES_MAX: usize = 150;
/// How many of the largest are listed.
const LISTED: usize = 5;

struct Room {
    place: String,
    lines: usize,
}

pub(crate) fn check() -> Result<()> {
    let root = sources::root();
    let mut files = Vec::new();
    let mut functions = Vec::new();
    let mut stories = Vec::new();
    for folder in ["crates", "test", "xtask"] {
        for path in sources::rust_files(&root.join(folder))? {
            let text = sources::read(&path)?;
            let shown = path.strip_prefix(&root).unwrap_or(&path);
            files.push(Room {
                place: shown.display().to_string(),
                lines: text.lines().count(),
            });
            let measured = measure_functions(shown, &text);
            if is_test(shown) {
                stories.extend(measured);
            } else {
                functions.extend(measured);
            }
        }
    }
    let mut broken = report("files", &mut files, FILE_LINES_MAX);
    broken.extend(report("functions", &mut functions, FUNCTION_LINES_MAX));
    broken.extend(report("functions of tests", &mut stories, STORY_LINES_MAX));
    if broken.is_empty() {
        return Ok(());
    }
    bail!("{} rooms are too large:\n  {}", broken.len(), broken.join("\n  "))
}

fn report(what: &str, rooms: &mut [Room], max: usize) -> Vec<String> {
    rooms.sort_by(|a, b| b.lines.cmp(&a.lines).then_with(|| a.place.cmp(&b.place)));
    println!("shape: {} {what}, limit {max} lines; the largest:", rooms.len());
    for room in rooms.iter().take(LISTED) {
        println!("  {:>5}  {}", room.lines, room.place);
    }
    let too_large = rooms.iter().filter(|room| room.lines > max);
    too_large
        .map(|room| format!("{} has {} lines, the limit is {max}", room.place, room.lines))
        .collect()
}

fn is_test(path: &Path) -> bool {
    path.iter().any(|part| part == "tests" || part == "tests.rs")
}

/// Functions by indentation: rustfmt puts the closing brace under the first letter of the item.
fn measure_functions(path: &Path, text: &str) -> Vec<Room> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = line.len() - line.trim_start().len();
        let close = format!("{}}}", " ".repeat(indent));
        let rest = &lines[start..];
        let Some(length) = rest.iter().position(|line| *line == close) else {
            continue;
        };
        let place = format!("{}:{} {name}", path.display(), start + 1);
        found.push(Room {
            place,
            lines: length + 1,
        });
    }
    found
}

fn function_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    for word in [
        "pub(crate) ",
        "pub(super) ",
        "pub ",
        "const ",
        "async ",
        "unsafe ",
    ] {
        rest = rest.strip_prefix(word).unwrap_or(rest);
    }
    let rest = rest.strip_prefix("fn ")?;
    rest.split(['(', '<']).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_measured_by_their_braces() {
        let text =
            "impl X {\n    pub async fn run(&self) {\n        if x {\n        }\n    }\n}\nfn short() {}\n";
        let rooms = measure_functions(Path::new("x.rs"), text);
        let shown: Vec<_> = rooms
            .iter()
            .map(|room| (room.place.as_str(), room.lines))
            .collect();
        assert_eq!(shown, [("x.rs:2 run", 4)]);
    }
}
