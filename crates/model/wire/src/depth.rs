//! How deep a JSON text is nested, found without recursion and before any parser sees it.

/// Whether the first JSON value of `text` nests deeper than `max`. Stops at the end of that value, or at the first
/// bracket too many; malformed text is left for the parser to refuse.
pub(crate) fn exceeds(text: &str, max: usize) -> bool {
    let mut depth = 0_usize;
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => skip_string(&mut bytes),
            b'{' | b'[' => {
                depth += 1;
                if depth > max {
                    return true;
                }
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return false;
                }
            }
            _scalar_or_separator => {}
        }
    }
    false
}

fn skip_string(bytes: &mut std::str::Bytes<'_>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                bytes.next();
            }
            b'"' => return,
            _inside => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::exceeds;

    #[test]
    fn brackets_count_only_outside_strings_and_inside_the_first_value() {
        for (text, max, deeper) in [
            ("[[[]]]", 3, false),
            ("[[[]]]", 2, true),
            (r#"["[[[[", "\"[[["]"#, 1, false),
            ("{} [[[[", 1, false),
            ("[{},{},{}]", 2, false),
            ("]]]]", 0, false),
            ("", 0, false),
        ] {
            assert_eq!(exceeds(text, max), deeper, "{text} within {max}");
        }
    }
}
