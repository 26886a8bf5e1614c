//! Which request paths are ours.

/// A path to serve: exact, or with `{name}` for one whole segment, or open behind a trailing `*`.
///
/// `/{tenant}/cable` takes `/acme/cable`; `/x/*` takes `/x/` and `/x/y/z`, not `/x`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    pieces: Vec<Piece>,
    open_end: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    /// These characters.
    Exact(String),
    /// One segment, not empty.
    Segment,
}

/// A path pattern that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathPatternError {
    /// Request paths start with a slash.
    #[error("path `{0}` does not start with `/`")]
    NoSlash(String),
    /// A star is taken at the end only.
    #[error("path `{0}` has a `*` that is not its last character")]
    InnerStar(String),
    /// A request path has no spaces, no query and no fragment.
    #[error("path `{0}` has a character that no request path has")]
    Character(String),
    /// Braces stand around the name of a whole segment.
    #[error("path `{0}` has braces that are not a whole segment `{{name}}`")]
    Braces(String),
}

impl PathPattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// It does not start with a slash, has a character that no path has, or stars or braces where they mean nothing.
    pub fn parse(text: &str) -> Result<PathPattern, PathPatternError> {
        if !text.starts_with('/') {
            return Err(PathPatternError::NoSlash(text.to_owned()));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'?' && byte != b'#') {
            return Err(PathPatternError::Character(text.to_owned()));
        }
        let (path, open_end) = text.strip_suffix('*').map_or((text, false), |path| (path, true));
        if path.contains('*') {
            return Err(PathPatternError::InnerStar(text.to_owned()));
        }
        let mut pieces = Vec::new();
        let mut exact = String::new();
        let mut segments = path.split('/').skip(1).peekable();
        while let Some(segment) = segments.next() {
            exact.push('/');
            let name = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
            if name.unwrap_or(segment).contains(['{', '}']) || name == Some("") {
                return Err(PathPatternError::Braces(text.to_owned()));
            }
            if name.is_none() {
                exact.push_str(segment);
                continue;
            }
            if open_end && segments.peek().is_none() {
                // `{name}*`: the star would have nothing left to take.
                return Err(PathPatternError::Braces(text.to_owned()));
            }
            pieces.extend([Piece::Exact(std::mem::take(&mut exact)), Piece::Segment]);
        }
        if !exact.is_empty() {
            pieces.push(Piece::Exact(exact));
        }
        Ok(PathPattern { pieces, open_end })
    }

    /// Whether it means one path only.
    pub fn is_plain(&self) -> bool {
        !self.open_end && matches!(self.pieces[..], [Piece::Exact(_)])
    }

    /// Whether a request path, without its query, is meant.
    pub fn matches(&self, path: &str) -> bool {
        let mut rest = path;
        for piece in &self.pieces {
            let taken = match piece {
                Piece::Exact(text) if rest.starts_with(text.as_str()) => text.len(),
                Piece::Exact(_) => return false,
                Piece::Segment => rest.find('/').unwrap_or(rest.len()),
            };
            if taken == 0 {
                return false;
            }
            rest = &rest[taken..];
        }
        self.open_end || rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_take_the_paths_they_mean() {
        for (pattern, takes, leaves) in [
            ("/cable", &["/cable"][..], &["/cable/", "/cabl", "/cables", "/", "cable", "", "/Cable"][..]),
            ("/", &["/"], &["", "/x"]),
            ("/x/*", &["/x/", "/x/y", "/x/y/z"], &["/x", "/y/", "/"]),
            ("/x*", &["/x", "/xy", "/x/y"], &["/y", "/"]),
            ("/*", &["/", "/x"], &["", "*"]),
            ("/{tenant}/cable", &["/a/cable", "/{tenant}/cable"], &["//cable", "/a/b/cable", "/a/cable/", "/a"]),
            ("/v/{id}", &["/v/1"], &["/v/", "/v", "/v/1/", "/v/1/2"]),
            ("/{a}/{b}/*", &["/1/2/", "/1/2/3/4"], &["/1/2", "/1//", "/1/"]),
        ] {
            let parsed = PathPattern::parse(pattern).unwrap();
            for path in takes {
                assert!(parsed.matches(path), "{pattern} takes {path}");
            }
            for path in leaves {
                assert!(!parsed.matches(path), "{pattern} leaves {path}");
            }
        }
    }

    #[test]
    fn a_path_without_stars_and_braces_is_plain() {
        for (pattern, plain) in [("/", true), ("/a/b", true), ("/a*", false), ("/*", false), ("/{a}", false)] {
            assert_eq!(PathPattern::parse(pattern).unwrap().is_plain(), plain, "{pattern}");
        }
    }

    #[test]
    fn patterns_that_cannot_be_meant_are_refused() {
        for pattern in ["", "cable", "*"] {
            assert!(matches!(PathPattern::parse(pattern), Err(PathPatternError::NoSlash(_))), "{pattern}");
        }
        for pattern in ["/a b", "/a?b", "/a#", "/ä"] {
            assert!(matches!(PathPattern::parse(pattern), Err(PathPatternError::Character(_))), "{pattern}");
        }
        for pattern in ["/*/x", "/x**", "/a*b"] {
            assert!(matches!(PathPattern::parse(pattern), Err(PathPatternError::InnerStar(_))), "{pattern}");
        }
        for pattern in ["/{}", "/{a", "/a}", "/x{a}", "/{a}x", "/{a}*", "/{{a}}"] {
            assert!(matches!(PathPattern::parse(pattern), Err(PathPatternError::Braces(_))), "{pattern}");
        }
    }
}
