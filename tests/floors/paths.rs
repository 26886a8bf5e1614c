//! Finds the top modules that a source text names, in any of the ways there are: `crate::…`, `super::…` that climbs
//! out of the file's own module, `use` trees with braces in braces, over as many lines as they like.

/// Stands for the whole crate: a glob or another name for the root, behind which anything could be used.
pub const EVERYTHING: &str = "*";

/// Top modules named in the text of the module `path`, such as `["shard", "open"]`, in order. Those of macros that
/// other modules call count too.
pub fn used(text: &str, path: &[&str]) -> Vec<String> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    // The module that the text is in at each point, and at which depth of braces the inline ones began.
    let mut module: Vec<&str> = path.to_vec();
    let mut inline = Vec::new();
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate() {
        match token.as_str() {
            "{" => {
                depth += 1;
                if at >= 2 && tokens[at - 2] == "mod" {
                    module.push(&tokens[at - 1]);
                    inline.push(depth);
                }
            }
            "}" => {
                if inline.last() == Some(&depth) {
                    inline.pop();
                    module.pop();
                }
                depth -= 1;
            }
            // The first word of a path; `self::super` begins one too.
            "crate" | "super" if at == 0 || tokens[at - 1] != "::" || (at >= 2 && tokens[at - 2] == "self") => {
                tree(&tokens, at, &module, &mut found);
            }
            _ => {}
        }
    }
    found
}

/// Reads the path or `use` tree that begins at a token, seen from `module`; gives the place behind it.
fn tree(tokens: &[String], mut at: usize, module: &[&str], found: &mut Vec<String>) -> usize {
    let word = |at: usize| tokens.get(at).map_or("", String::as_str);
    let mut module = module.to_vec();
    loop {
        match word(at) {
            "crate" => module.clear(),
            "super" => drop(module.pop()),
            "self" => {}
            "{" => {
                at += 1;
                while !matches!(word(at), "}" | "") {
                    at = tree(tokens, at, &module, found);
                    // What an item is called here (`as name`), and the comma.
                    while !matches!(word(at), "," | "}" | "") {
                        at += 1;
                    }
                    at += usize::from(word(at) == ",");
                }
                return at + 1;
            }
            name => {
                if module.is_empty() && !name.is_empty() {
                    found.push(name.to_owned());
                }
                return behind_path(tokens, at);
            }
        }
        if word(at + 1) != "::" {
            // `pub(crate)` gives and takes nothing.
            if module.is_empty() && word(at + 1) == "as" {
                found.push(EVERYTHING.to_owned());
            }
            return at + 1;
        }
        at += 2;
    }
}

/// The place behind a path whose top module is known, and behind the tree that it may end in.
fn behind_path(tokens: &[String], mut at: usize) -> usize {
    let word = |at: usize| tokens.get(at).map_or("", String::as_str);
    while word(at + 1) == "::" {
        at += 2;
    }
    let mut depth = 0;
    loop {
        match word(at) {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth <= 0 || at >= tokens.len() {
            return at;
        }
    }
}

/// Words, `::` and single signs of a Rust text; comments, strings and characters are left out.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let get = |at: usize| chars.get(at).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut tokens: Vec<String> = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        match (get(at), get(at + 1)) {
            ('/', '/') => at = (at..chars.len()).find(|&n| chars[n] == '\n').unwrap_or(chars.len()),
            ('/', '*') => at = behind_comment(&chars, at),
            ('"', _) => at = behind_string(&chars, at + 1),
            ('\'', '\\') => at = (at + 3..chars.len()).find(|&n| chars[n] == '\'').map_or(chars.len(), |n| n + 1),
            ('\'', _) if get(at + 2) == '\'' => at += 3,
            (':', ':') => {
                tokens.push("::".to_owned());
                at += 2;
            }
            (c, _) if is_word(c) => {
                let end = (at..chars.len()).find(|&n| !is_word(chars[n])).unwrap_or(chars.len());
                let word: String = chars[at..end].iter().collect();
                let quote = (end..chars.len()).find(|&n| chars[n] != '#').unwrap_or(chars.len());
                let raw = matches!(word.as_str(), "r" | "br" | "cr");
                at = match get(quote) {
                    '"' if raw => behind_raw_string(&chars, quote, quote - end),
                    _ if raw && quote == end + 1 => quote,
                    _ => {
                        tokens.push(word);
                        end
                    }
                };
            }
            (c, _) => {
                if !c.is_whitespace() {
                    tokens.push(c.to_string());
                }
                at += 1;
            }
        }
    }
    tokens
}

fn behind_comment(chars: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < chars.len() {
        match chars[at..chars.len().min(at + 2)] {
            ['/', '*'] => (depth, at) = (depth + 1, at + 2),
            ['*', '/'] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn behind_string(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

fn behind_raw_string(chars: &[char], quote: usize, hashes: usize) -> usize {
    let ends = |&n: &usize| chars[n] == '"' && chars[n + 1..].iter().take_while(|c| **c == '#').count() >= hashes;
    (quote + 1..chars.len()).find(ends).map_or(chars.len(), |n| n + 1 + hashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_used(text: &str, path: &[&str], expected: &[&str]) {
        assert_eq!(used(text, path), expected, "{text}");
    }

    #[test]
    fn plain_paths_are_found_in_use_statements_and_in_code() {
        assert_used("use crate::front;", &["hub"], &["front"]);
        assert_used(
            "fn f() { crate::node::g(); let x: crate::shard::Shard<crate::os::A>; }",
            &["hub"],
            &["node", "shard", "os"],
        );
        assert_used("pub(crate) fn f() {} pub(in crate::node) fn g() {}", &["hub"], &["node"]);
        assert_used("macro_rules! m { () => { $crate::telemetry::x() } }", &["hub"], &["telemetry"]);
    }

    #[test]
    fn statements_over_several_lines_and_braces_in_braces_are_found() {
        assert_used(
            "use crate::{\n    model::Sid,\n    // the offender\n    front::{\n A, B },\n};",
            &["hub"],
            &["model", "front"],
        );
        assert_used("use crate::{a, b::{c, d::{e, f}, g}, h as i, j};", &["hub"], &["a", "b", "h", "j"]);
        assert_used("use crate\n    ::\n    front;", &["hub"], &["front"]);
        assert_used("use {crate::a, std::fs, crate::{b::{self, c}}};", &["hub"], &["a", "b"]);
        assert_used("use crate::{self, a};", &["hub"], &["a"]);
    }

    #[test]
    fn super_that_leaves_the_module_is_found_and_super_within_it_is_not() {
        assert_used("use super::front;", &["hub"], &["front"]);
        assert_used("use super::super::front;", &["shard", "open"], &["front"]);
        assert_used("use super::{slots, super::{front, node::x}};", &["shard", "open"], &["front", "node"]);
        assert_used("fn f() { self::super::super::node::g() }", &["shard", "open"], &["node"]);
        assert_used("use super::{slots::Stage, Shard}; use super::wheel;", &["shard", "open"], &[]);
        assert_used("use super::super::wheel;", &["backend", "grpc", "channel"], &[]);
    }

    #[test]
    fn modules_within_a_file_are_a_step_down() {
        let text = "mod tests { use super::*; use super::super::front; mod more { use super::super::x; } }
                    use super::node;";
        assert_used(text, &["hub"], &["front", "node"]);
        assert_used("mod a { fn f() { { } } } mod b { use super::super::front; }", &["hub"], &["front"]);
    }

    #[test]
    fn the_whole_crate_under_another_name_is_found() {
        assert_used("use crate as root;", &["hub"], &[EVERYTHING]);
        assert_used("use super::super::*;", &["shard", "open"], &[EVERYTHING]);
        assert_used("use super::super::{self as root, model};", &["shard", "open"], &[EVERYTHING, "model"]);
    }

    #[test]
    fn comments_and_strings_do_not_count() {
        let text = r####"// crate::a
            /* crate::b /* crate::c */ crate::d */
            /// crate::e
            const S: &str = "crate::f \" crate::g"; const R: &str = r#"crate::h " { "#; const C: char = '{';
            fn f<'a>(x: &'a str, quote: char) -> bool { quote == '"' || quote == '\'' || r#type() }
            use crate::found;"####;
        assert_used(text, &["hub"], &["found"]);
    }
}
